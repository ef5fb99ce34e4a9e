"""Batch norms with frozen statistics, folded into adjacent convolutions during training.

Such a norm is t ↦ s·t + b for each channel, with s = γ / sqrt(var + eps) and b = β - mean · s. Scaling the weights of
the convolution has the same effect, and there are far fewer weights than values in a map. Autograd computes the
gradients of γ and β.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..torch_internals import has_global_hooks, has_hooks

FOLDED_VALUES = {"cpu": 2**18, "cuda": 2**26}
"""Norms of maps with fewer values than this are not folded: normalizing the map is faster than scaling the weights.

On a GPU, scaling the weights takes 20 small operations, and the CPU needs as long to start one as the GPU needs for
millions of values.
"""

PIXELS_PER_WEIGHT = 8
"""Nor are norms of maps not much larger than the weights: folding stores a second copy of the weights."""

BatchNorm = nn.BatchNorm2d.__base__
"""The common base class of torch's batch norms, SyncBatchNorm included; torch has no public name for it."""


class FoldedConv:
    """A convolution with the frozen batch norm before or after it folded into its weights."""

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
        """Return the modules that own the parameters."""
        return iter((self.conv, self.norm))


def without_frozen_norms(layers: Sequence[nn.Module], x: Tensor) -> list[nn.Module | FoldedConv]:
    """Return layers with each frozen norm folded into the adjacent convolution, where that is faster for x.

    Layers with hooks are not folded.
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
    """Return whether the norm before a convolution can be folded into it: the convolution must not pad."""
    half = torch.is_autocast_enabled(x.device.type)  # would round x before the norm subtracts the mean
    return _can_take_norm(layer, x) and layer.groups == 1 and not any(layer.padding) and not half


def _can_take_norm(layer: nn.Module | FoldedConv | None, x: Tensor) -> bool:
    if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return False
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    values = pixels * max(layer.in_channels, layer.out_channels)
    enough = values >= FOLDED_VALUES.get(x.device.type, FOLDED_VALUES["cpu"])
    return enough and pixels >= PIXELS_PER_WEIGHT * layer.out_channels and not has_hooks(layer)
