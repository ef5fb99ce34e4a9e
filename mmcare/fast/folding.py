"""Folding of batch norms and layer scales into adjacent convolutions.

The arithmetic is in float64, whatever the type of the weights. The convolutions are changed in place; the caller
removes the folded modules.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_weights

from ..errors import UserError
from ..memory import BatchNorm
from ..torch_internals import has_hooks


def is_foldable(norm: nn.Module | None) -> bool:
    """Return whether a module is a batch norm with running statistics, and so affine in eval mode."""
    return isinstance(norm, BatchNorm) and norm.running_mean is not None


def is_plain_conv(layer: nn.Module | None) -> bool:
    """Return whether a layer is a plain convolution: no subclass, no hooks, zero padding."""
    plain = type(layer) is nn.Conv2d and not has_hooks(layer)
    return plain and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def fold_norm_after(conv: nn.Conv2d, norm: nn.Module) -> None:
    """Fold a batch norm into the convolution before it, which is exact with any padding.

    Raises:
        UserError: the norm cannot be folded.
    """
    _check_foldable(norm)
    tensors = (conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    weight, bias, mean, variance, scale, shift = (None if tensor is None else tensor.double() for tensor in tensors)
    _set(conv, *fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift))


def fold_norm_before(norm: nn.Module, conv: nn.Conv2d) -> None:
    """Fold an affine batch norm into the convolution after it, which must have no groups.

    Nor may it have padding: at the border it would read zeros, which the norm does not shift.

    Raises:
        UserError: the norm cannot be folded.
    """
    _check_foldable(norm)
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    weight = conv.weight.double()
    bias = weight.sum((2, 3)) @ shift
    _set(conv, weight * scale[:, None, None], bias if conv.bias is None else bias + conv.bias.double())


def fold_chain(layers: nn.Sequential) -> nn.Sequential:
    """Return a sequence of convolutions, norms and ReLUs with the norms folded into adjacent convolutions.

    Raises:
        UserError: a norm next to a convolution cannot be folded.
    """
    kept: dict[str, nn.Module] = {}
    name, last = "", None
    for next_name, layer in layers.named_children():
        if isinstance(layer, nn.Identity):
            continue
        if not isinstance(layer, nn.Conv2d | nn.ReLU) and is_plain_conv(last):
            fold_norm_after(last, layer)
            continue
        if isinstance(layer, nn.ReLU) and isinstance(last, nn.Conv2d):
            layer.inplace = True
        elif last is not None and not isinstance(last, nn.Conv2d | nn.ReLU) and _has_no_border(layer):
            fold_norm_before(last, layer)
            del kept[name]
        kept[next_name] = layer
        name, last = next_name, layer
    return nn.Sequential(OrderedDict(kept))


def fold_norms(layers: nn.Sequential) -> None:
    """Fold the batch norms of a sequence into the convolutions beside them, in place; others stay.

    An identity takes the place of a norm that was folded.
    """
    neighbours = [None, *layers, None]
    for number, (last, norm, following) in enumerate(zip(neighbours, layers, neighbours[2:], strict=False)):
        if not is_foldable(norm):
            continue
        if is_plain_conv(last):
            fold_norm_after(last, norm)
        elif _has_no_border(following) and following.groups == 1:
            fold_norm_before(norm, following)
        else:
            continue
        layers[number] = nn.Identity()


def _has_no_border(layer: nn.Module) -> bool:
    return is_plain_conv(layer) and not any(layer.padding)


def fold_scale_after(conv: nn.Conv2d, scale: Tensor) -> None:
    """Fold a factor for each output channel into a convolution with a bias."""
    scale = scale.double()
    _set(conv, conv.weight.double() * scale[:, None, None, None], conv.bias.double() * scale)


def fold_bias_before(first: nn.Conv2d, conv: nn.Conv2d) -> None:
    """Move the bias of a convolution into the 1×1 convolution after it, which has a bias, no groups and no padding."""
    _set(conv, conv.weight, conv.bias.double() + conv.weight.double().flatten(1) @ first.bias.double())
    first.bias = None


def conv_with(weight: Tensor, bias: Tensor | None, groups: int = 1, **kwargs: Any) -> nn.Conv2d:
    """Return a convolution with the given weights; the other arguments are those of ``nn.Conv2d``."""
    outputs, inputs, *kernel_size = weight.shape
    # On the meta device, as drawing random weights would advance the global generator.
    conv = nn.Conv2d(inputs * groups, outputs, kernel_size, groups=groups, bias=False, device="meta", **kwargs)
    _set(conv, weight, bias)
    return conv


def _check_foldable(norm: nn.Module) -> None:
    if not is_foldable(norm):
        raise UserError(
            f"a norm of the backbone, {norm}, cannot be folded: give reparameterize a backbone with batch norms that "
            "have running statistics"
        )


def _set(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> None:
    dtype = weight.dtype if conv.weight.is_meta else conv.weight.dtype
    conv.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    conv.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype), requires_grad=False)
