"""From a trained model to its fast form."""

from __future__ import annotations

from copy import deepcopy

import torch
from mmcv.cnn import Conv2d, ConvModule
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from torch import Tensor, nn

from ..errors import UserError
from ..memory import Chain
from ..models import PyramidBackbone
from ..torch_internals import copy_model, has_hooks, is_compiled
from . import care, casvit
from .convolutions import FusedConv, InParts
from .folding import fold_chain, fold_norm_after, is_foldable, is_plain_conv

FUSED = {**care.FUSED, **casvit.FUSED, Chain: fold_chain, nn.Conv2d: FusedConv}
"""The fast form of each kind of module. It is of just that kind: a subclass may compute something else, and stays."""


def reparameterize(model: nn.Module) -> nn.Module:
    """Return the fast form of a trained backbone, detector or segmentor; the trained one stays as it was.

    In the backbones each norm that a convolution can take in is folded into its weights, and so is layer scale;
    branches that read the same map are computed together. Their weights, and the maps between their parts, lie in
    memory as channels-last, for any input. In necks and heads the batch norms that follow a convolution are folded.

    Args:
        model: the trained model, of any floating type, on any device. A distributed wrapper is taken off. A fast form
            is copied.

    Returns:
        A new model in eval mode whose weights need no gradients; it takes no weights of the trained model's any more.
        Its outputs are the trained model's in eval mode, to within 1e-5 of their size in float32. A backbone alone
        returns channels-last maps: before an operator of ``mmcv.ops``, such as RoI align, which reads memory without
        heeding the layout, they need ``.contiguous()``; in a whole model that is done.

    Raises:
        UserError: the model has no backbone of mmcare's, or is compiled, or has a norm that cannot be folded.
    """
    while is_model_wrapper(model):
        model = model.module
    modules = list(model.modules())
    if any(map(is_compiled, modules)):
        raise UserError("reparameterize was given a compiled model: give it the model itself, and compile the result")
    if not any(isinstance(module, PyramidBackbone) for module in modules):
        raise UserError(
            f"reparameterize makes models with mmcare's CARE or CASViT backbone faster, but was given a "
            f"{type(model).__name__} without one"
        )
    fast = copy_model(model)
    if any(isinstance(module, FusedConv) for module in modules):
        return fast.eval().requires_grad_(False)
    fast = revert_sync_batchnorm(fast)
    for module in list(fast.modules()):
        if isinstance(module, PyramidBackbone):
            _fuse_within(module)
            _tell_sizes(module)
            module.to(memory_format=torch.channels_last)
            if module is not fast:
                module.register_forward_hook(_contiguous)
        elif isinstance(module, ConvModule):
            _fold(module)
    return fast.eval().requires_grad_(False)


def _fuse_within(module: nn.Module) -> None:
    """Put the fast forms of the modules within a module, at any depth, in their places."""
    for name, child in module.named_children():
        if type(child) in FUSED and (type(child) is not nn.Conv2d or is_plain_conv(child)):
            child = FUSED[type(child)](child)
            setattr(module, name, child)
        _fuse_within(child)


def _tell_sizes(backbone: PyramidBackbone) -> None:
    for index, stage in enumerate(backbone.stages):
        for module in stage.modules():
            if isinstance(module, InParts):
                module.pixels = (512 // (4 * 2**index)) ** 2


def _fold(module: ConvModule) -> None:
    # Subclasses of Conv2d, and what a hook makes of the weights, compute them in each pass.
    plain = type(module.conv) in (nn.Conv2d, Conv2d) and not has_hooks(module.conv)
    follows = module.order.index("norm") == module.order.index("conv") + 1
    if not (plain and follows and module.with_norm and is_foldable(module.norm)):
        return
    module.conv = deepcopy(module.conv)  # heads may share it among levels that have norms of their own
    fold_norm_after(module.conv, module.norm)
    setattr(module, module.norm_name, nn.Identity())
    module.turn_on_efficient_conv_bn_eval(False)  # it would look for the norm's statistics


def _contiguous(backbone: nn.Module, inputs: tuple, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(feature.contiguous() for feature in maps)
