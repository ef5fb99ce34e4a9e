"""Batch norms with frozen statistics, put into the weights of the convolutions beside them while training.

Such a norm is t ↦ s·t + b for each channel, with s = γ / sqrt(var + eps) and b = β - mean · s. Scaling the weights of a
convolution, which are far fewer than a map's values, does the same; autograd makes γ's and β's gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..torch_internals import has_global_hooks, has_hooks

FOLDED_VALUES = 2**18
"""A norm of a map of fewer values than this is a pass over the map: that takes less than putting it into weights."""

PIXELS_PER_WEIGHT = 8
"""So is a norm of a map that is not many times larger than the weights, of which a second copy would be kept."""

BatchNorm = nn.BatchNorm2d.__base__
"""The common base of torch's batch norms, for which torch has no public name: SyncBatchNorm has it too."""


class FoldedConv:
    """A convolution with the frozen batch norm before it, or after it, in its weights."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module, before: bool) -> None:
        self.conv, self.norm, self.before = conv, norm, before

    def __call__(self, x: Tensor) -> Tensor:
        conv, norm = self.conv, self.norm
        weight, bias = conv.weight, conv.bias
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = torch.addcmul(norm.bias, norm.running_mean, scale, value=-1)
        if self.before:
            moved = (weight.sum((2, 3)) * shift).sum(1)
            weight, bias = weight * scale.view(1, -1, 1, 1), moved if bias is None else bias + moved
        else:
            bias = shift if bias is None else torch.addcmul(shift, bias, scale)
            weight = weight * scale.view(-1, 1, 1, 1)
        return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)

    def modules(self) -> Iterator[nn.Module]:
        """Return what has the parameters."""
        return iter((self.conv, self.norm))


def without_frozen_norms(layers: Sequence[nn.Module], x: Tensor) -> list[nn.Module | FoldedConv]:
    """Return layers with each frozen norm in the convolution beside it, where that takes less time than a pass over x.

    Layers that a hook listens to stay by themselves.
    """
    folded: list[nn.Module | FoldedConv] = []
    if has_global_hooks():
        return list(layers)
    for layer in layers:
        last = folded[-1] if folded else None
        if _is_frozen_norm(last) and _can_follow_norm(layer, x):
            folded[-1] = FoldedConv(layer, last, before=True)
        elif _is_frozen_norm(layer) and _can_take_norm(last, x):
            folded[-1] = FoldedConv(last, layer, before=False)
        else:
            folded.append(layer)
    return folded


def _is_frozen_norm(layer: nn.Module | FoldedConv | None) -> bool:
    frozen = isinstance(layer, BatchNorm) and not layer.training and layer.running_var is not None and layer.affine
    return frozen and not has_hooks(layer)


def _can_follow_norm(layer: nn.Module, x: Tensor) -> bool:
    """Whether a convolution can take in the norm before it: it must not read the zeros around the map."""
    half = torch.is_autocast_enabled(x.device.type)  # would round x before the norm has taken its mean away
    return _can_take_norm(layer, x) and layer.groups == 1 and not any(layer.padding) and not half


def _can_take_norm(layer: nn.Module | FoldedConv | None, x: Tensor) -> bool:
    if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return False
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    values = pixels * max(layer.in_channels, layer.out_channels)
    return values >= FOLDED_VALUES and pixels >= PIXELS_PER_WEIGHT * layer.out_channels and not has_hooks(layer)
