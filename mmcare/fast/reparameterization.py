"""Conversion of a trained model to its fast form."""

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
"""The fast form of each module type. Subclasses are not converted, as they may compute something else."""


def reparameterize(model: nn.Module) -> nn.Module:
    """Return the fast form of a trained backbone, detector or segmentor; the trained model is not changed.

    In the backbone, norms and layer scale are folded into adjacent convolutions, and branches that read the same map
    are computed together. Its weights and maps are in channels-last layout for any input. In the neck and the heads,
    batch norms after a convolution are folded.

    Args:
        model: the trained model, of any floating type, on any device. A distributed wrapper is removed. A fast form is
            copied.

    Returns:
        A new model in eval mode, without gradients. It cannot load the trained model's weights. In float32 its outputs
        match those of the trained model in eval mode to within 1e-5 relative error. A backbone alone returns
        channels-last maps; operators of ``mmcv.ops`` such as RoI align ignore the layout, so call ``.contiguous()``
        on the maps first. Inside a detector or segmentor this is done automatically.

    Raises:
        UserError: the model has no mmcare backbone, is compiled, or has a norm that cannot be folded.
    """
    while is_model_wrapper(model):
        model = model.module
    modules = list(model.modules())
    if any(map(is_compiled, modules)):
        raise UserError("reparameterize was given a compiled model: give it the model itself, and compile the result")
    if not any(isinstance(module, PyramidBackbone) for module in modules):
        raise UserError(
            f"reparameterize takes models with an mmcare backbone (CARE or CASViT), but was given a "
            f"{type(model).__name__} without one"
        )
    fast = copy_model(model)
    if any(isinstance(module, FusedConv) for module in modules):
        return fast.eval().requires_grad_(False)
    fast = revert_sync_batchnorm(fast)
    for module in list(fast.modules()):
        if isinstance(module, PyramidBackbone):
            _fuse_within(module)
            _set_pixels(module)
            module.to(memory_format=torch.channels_last)
            if module is not fast:
                module.register_forward_hook(_contiguous)
        elif isinstance(module, ConvModule):
            _fold(module)
    return fast.eval().requires_grad_(False)


def _fuse_within(module: nn.Module) -> None:
    """Replace the submodules of a module, at any depth, with their fast forms."""
    for name, child in module.named_children():
        if type(child) in FUSED and (type(child) is not nn.Conv2d or is_plain_conv(child)):
            child = FUSED[type(child)](child)
            setattr(module, name, child)
        _fuse_within(child)


def _set_pixels(backbone: PyramidBackbone) -> None:
    for index, stage in enumerate(backbone.stages):
        for module in stage.modules():
            if isinstance(module, InParts):
                module.pixels = (512 // (4 * 2**index)) ** 2


def _fold(module: ConvModule) -> None:
    # Subclasses of Conv2d and hooks may recompute the weights in each pass.
    plain = type(module.conv) in (nn.Conv2d, Conv2d) and not has_hooks(module.conv)
    follows = module.order.index("norm") == module.order.index("conv") + 1
    if not (plain and follows and module.with_norm and is_foldable(module.norm)):
        return
    module.conv = deepcopy(module.conv)  # heads may share it among levels with separate norms
    fold_norm_after(module.conv, module.norm)
    setattr(module, module.norm_name, nn.Identity())
    module.turn_on_efficient_conv_bn_eval(False)  # it would read the norm's statistics


def _contiguous(backbone: nn.Module, inputs: tuple, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(feature.contiguous() for feature in maps)
