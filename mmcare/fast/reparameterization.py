"""The fast form of a trained model, for inference.

This module is not called ``reparameterize``: importing it would put it in the place of ``mmcare.reparameterize``, the
function.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from mmcv.cnn import Conv2d, ConvModule
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from torch import Tensor, nn

from ..errors import UserError
from ..models.base import PyramidBackbone
from .folding import fold_norm_after, is_foldable
from .convolutions import FusedConv, InParts
from ..memory.recompute import is_plain_conv


def reparameterize(model: nn.Module) -> nn.Module:
    """The fast form of a trained backbone, detector or segmentor; the trained one stays as it was.

    In the backbones each norm that a convolution can take in is folded into its weights, and so is layer scale;
    branches that read the same map are computed together. Their weights, and the maps between their parts, lie in
    memory as channels-last, for any input. In necks and heads the batch norms that follow a convolution are folded.
    With weights on the CPU, on Linux, the process from now on keeps some tens of MiB of memory that it has freed.

    Args:
        model: the trained model, of any floating type, on any device. A distributed wrapper is taken off. A fast form
            is copied.

    Returns:
        A new model in eval mode whose weights need no gradients; it takes no weights of the trained model's any more.
        Its outputs are the trained model's in eval mode, to within 1e-5 of their size in float32. A backbone alone
        returns channels-last maps: before an operator of ``mmcv.ops``, such as RoI align, which reads memory without
        heeding the layout, they need ``.contiguous()``; in a whole model that is done.

    Raises:
        UserError: the model has no backbone of mmcare's, or is compiled.
    """
    while is_model_wrapper(model):
        model = model.module
    modules = list(model.modules())
    if any(hasattr(module, "_orig_mod") for module in modules):
        raise UserError("reparameterize was given a compiled model: give it the model itself, and compile the result")
    if not any(isinstance(module, PyramidBackbone) for module in modules):
        raise UserError(
            f"reparameterize makes models with mmcare's CARE or CASViT backbone faster, but was given a "
            f"{type(model).__name__} without one"
        )
    fast = revert_sync_batchnorm(_copy(model))
    for module in list(fast.modules()):
        if isinstance(module, PyramidBackbone):
            _fuse(module)
            _tell_sizes(module)
            module.to(memory_format=torch.channels_last)
            if module is not fast and _contiguous not in module._forward_hooks.values():
                module.register_forward_hook(_contiguous)
        elif isinstance(module, ConvModule):
            _fold(module)
    if any(parameter.device.type == "cpu" for parameter in fast.parameters()):
        _keep_freed_memory()
    return fast.eval().requires_grad_(False)


def _keep_freed_memory() -> None:
    """Spares the passes to come the page faults of fetching the memory of their maps from the system, each time anew.

    glibc takes blocks above a threshold from the system and gives them back when freed, and so it does with what is
    free at the end of its heap. It raises the thresholds when it sees a block freed that is larger, to the block's size
    and twice that, up to 32 and 64 MiB (mallopt(3), ``M_MMAP_THRESHOLD``). Here it sees one. The block is never
    touched, and so takes no memory. Thresholds that the environment sets stay, and so do other allocators'.
    """
    torch.empty(2**25 - 2**13, dtype=torch.uint8)


def _copy(model: nn.Module) -> nn.Module:
    """A deep copy, but for the forward hooks: what they are bound to, such as the Runner, is not the model's."""
    hooks = [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    return deepcopy(model, {id(hook): hook for hook in hooks})


def _fuse(module: nn.Module) -> nn.Module:
    """Puts a module's fast form, and those of the modules in it, in their places."""
    if hasattr(module, "fuse"):
        module = module.fuse()
    if is_plain_conv(module):
        return FusedConv(module)
    for name, child in module.named_children():
        setattr(module, name, _fuse(child))
    return module


def _tell_sizes(backbone: PyramidBackbone) -> None:
    for index, stage in enumerate(backbone.stages):
        for module in stage.modules():
            if isinstance(module, InParts):
                module.pixels = (512 // (4 * 2**index)) ** 2


def _fold(module: ConvModule) -> None:
    # Subclasses of Conv2d, and spectral norm by its hook, compute their weights in each pass.
    plain = type(module.conv) in (nn.Conv2d, Conv2d) and not module.conv._forward_pre_hooks
    follows = module.order.index("norm") == module.order.index("conv") + 1
    if not (plain and follows and module.with_norm and is_foldable(module.norm)):
        return
    module.conv = deepcopy(module.conv)  # heads may share it among levels that have norms of their own
    setattr(module, module.norm_name, fold_norm_after(module.conv, module.norm))
    module.turn_on_efficient_conv_bn_eval(False)  # it would look for the norm's statistics


def _contiguous(backbone: nn.Module, inputs: tuple, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(feature.contiguous() for feature in maps)
