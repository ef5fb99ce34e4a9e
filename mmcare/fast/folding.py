"""Batch norms and scales folded into the convolutions beside them.

The arithmetic is in float64, whatever the weights' type. The convolutions are changed in place; their owner leaves out
what was folded into them.
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
    """Return whether a module is a batch norm that, in eval mode, multiplies and adds what it has learned."""
    return isinstance(norm, BatchNorm) and norm.running_mean is not None


def is_plain_conv(layer: nn.Module | None) -> bool:
    """Return whether a layer is a convolution that computes what its weights say, and with zeros around the map."""
    plain = type(layer) is nn.Conv2d and not has_hooks(layer)
    return plain and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def fold_norm_after(conv: nn.Conv2d, norm: nn.Module) -> None:
    """Fold a batch norm into the convolution before it, which is exact whatever the padding.

    Raises:
        UserError: the norm cannot be folded.
    """
    _check_foldable(norm)
    tensors = (conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    weight, bias, mean, variance, scale, shift = (None if tensor is None else tensor.double() for tensor in tensors)
    _set(conv, *fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift))


def fold_norm_before(norm: nn.Module, conv: nn.Conv2d) -> None:
    """Fold a batch norm, with scale and shift, into the convolution after it, which has no groups.

    The convolution must have no padding: at a padded border it reads zeros, which the norm does not shift.

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
    """Return convolutions, norms and ReLUs in a row without the norms that stand beside a convolution.

    Raises:
        UserError: there is a norm beside a convolution that cannot be folded.
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


def _has_no_border(layer: nn.Module) -> bool:
    return is_plain_conv(layer) and not any(layer.padding)


def fold_scale_after(conv: nn.Conv2d, scale: Tensor) -> None:
    """Fold a factor for each output channel into a convolution with a bias."""
    scale = scale.double()
    _set(conv, conv.weight.double() * scale[:, None, None, None], conv.bias.double() * scale)


def conv_with(weight: Tensor, bias: Tensor | None, groups: int = 1, **kwargs: Any) -> nn.Conv2d:
    """Return a convolution with the given weights; the further arguments are ``nn.Conv2d``'s."""
    outputs, inputs, *kernel_size = weight.shape
    # On the meta device no random weights are drawn, which would move the generator.
    conv = nn.Conv2d(inputs * groups, outputs, kernel_size, groups=groups, bias=False, device="meta", **kwargs)
    _set(conv, weight, bias)
    return conv


def _check_foldable(norm: nn.Module) -> None:
    if not is_foldable(norm):
        raise UserError(
            f"a norm of the backbone, {norm}, cannot be folded: give reparameterize a backbone with batch norms that "
            "keep running statistics"
        )


def _set(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> None:
    dtype = weight.dtype if conv.weight.is_meta else conv.weight.dtype
    conv.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    conv.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype), requires_grad=False)
