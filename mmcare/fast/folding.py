"""Batch norms and scales folded into the convolutions beside them.

The arithmetic is in float64, whatever the weights' type. The convolutions are changed in place; what is folded into
them belongs to their owner, who puts what these functions return in the norm's place.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_weights

from ..errors import UserError


def is_foldable(norm: nn.Module | None) -> bool:
    """Whether a module is a batch norm that, in eval mode, multiplies and adds what it has learned."""
    return isinstance(norm, _BatchNorm) and norm.running_mean is not None


def fold_norm_after(conv: nn.Conv2d, norm: nn.Module) -> nn.Module:
    """Folds a batch norm into the convolution before it, which is exact whatever the padding.

    Returns:
        An identity to take the norm's place. If it has taken it before, nothing is done.

    Raises:
        UserError: the norm cannot be folded.
    """
    if isinstance(norm, nn.Identity):
        return norm
    _check_foldable(norm)
    tensors = (conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    weight, bias, mean, variance, scale, shift = (None if tensor is None else tensor.double() for tensor in tensors)
    _set(conv, *fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift))
    return nn.Identity()


def fold_norm_before(norm: nn.Module, conv: nn.Conv2d) -> nn.Module:
    """Folds a batch norm, with scale and shift, into the convolution after it, which has no groups.

    The convolution must have no padding: at a padded border it reads zeros, which the norm does not shift.

    Returns:
        An identity to take the norm's place. If it has taken it before, nothing is done.

    Raises:
        UserError: the norm cannot be folded.
    """
    if isinstance(norm, nn.Identity):
        return norm
    _check_foldable(norm)
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    weight = conv.weight.double()
    bias = weight.sum((2, 3)) @ shift
    _set(conv, weight * scale[:, None, None], bias if conv.bias is None else bias + conv.bias.double())
    return nn.Identity()


def fold_scale_after(conv: nn.Conv2d, scale: Tensor) -> None:
    """Folds a factor for each output channel into a convolution with a bias."""
    scale = scale.double()
    _set(conv, conv.weight.double() * scale[:, None, None, None], conv.bias.double() * scale)


def conv_with(weight: Tensor, bias: Tensor | None, groups: int = 1, **kwargs: Any) -> nn.Conv2d:
    """A convolution with the given weights; the further arguments are ``nn.Conv2d``'s."""
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
