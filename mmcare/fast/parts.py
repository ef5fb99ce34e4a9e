"""Wide hidden maps, computed in parts of their channels.

Between two 1×1 convolutions the map is several times as wide as before and after, and nothing else uses it. Its
channels are independent: depth-wise convolutions and activations do not mix them, and the second convolution sums over
them. So on a CPU, where a large map does not fit in the cache, it is computed in parts that do.
"""

from __future__ import annotations

from torch import Tensor

Part = tuple[int, int]
"""The index of a part and the number of parts."""

PART_BYTES = 4 * 2**20
"""Hidden maps larger than this are computed in parts."""

MIN_PART_CHANNELS = 32
"""Narrower parts are slow: many matrix products with few columns each."""


def count_parts(x: Tensor, channels: int, pixels: int | None = None) -> int:
    """Return the number of parts for a hidden map: a power of two that divides its channels.

    Args:
        x: (B, C, H, W), from which the hidden map is computed.
        channels: channels of the hidden map.
        pixels: pixels of the batch; None for those of x.
    """
    if x.device.type != "cpu":
        return 1
    size = channels * (x.shape[0] * x.shape[2] * x.shape[3] if pixels is None else pixels) * x.element_size()
    count = 1
    while size > count * PART_BYTES and channels % (2 * count) == 0 and channels >= 2 * count * MIN_PART_CHANNELS:
        count *= 2
    return count


def part_of(weight: Tensor, bias: Tensor | None, part: Part, inputs: bool) -> tuple[Tensor, Tensor | None]:
    """Return the weights with which a convolution computes a part of a hidden map, or reads it.

    Args:
        weight, bias: of the convolution.
        part: which part.
        inputs: whether the convolution reads the hidden map. Its output is then the sum of the parts, so only the first
            part has the bias.
    """
    index, count = part
    if count == 1:
        return weight, bias
    if inputs:
        return weight.chunk(count, dim=1)[index], bias if index == 0 else None
    return weight.chunk(count)[index], None if bias is None else bias.chunk(count)[index]
