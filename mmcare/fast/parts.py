"""Wide hidden maps, made for a part of their channels at a time.

Between two 1×1 convolutions the map is several times as wide as before and after, and only made to be used up. The
channels do not meet there: a depth-wise convolution and an activation need no others, and what the second convolution
makes of the parts adds up. So on a CPU, where a large map does not fit in the cache, it is made in parts that do.
"""

from __future__ import annotations

from torch import Tensor

Part = tuple[int, int]
"""The number of a part, from 0, and how many there are."""

PART_BYTES = 4 * 2**20
"""A hidden map larger than this is made in parts."""

MIN_PART_CHANNELS = 32
"""Narrower parts are slow: products with few columns, and many of them."""


def count_parts(x: Tensor, channels: int, pixels: int | None = None) -> int:
    """In how many parts to make a hidden map of so many channels, a power of two that divides them.

    Args:
        x: (B, C, H, W), what the map is made of.
        channels: of the hidden map.
        pixels: of a batch, if not x's own.
    """
    if x.device.type != "cpu":
        return 1
    size = channels * (x.shape[0] * x.shape[2] * x.shape[3] if pixels is None else pixels) * x.element_size()
    count = 1
    while size > count * PART_BYTES and channels % (2 * count) == 0 and channels >= 2 * count * MIN_PART_CHANNELS:
        count *= 2
    return count


def part_of(weight: Tensor, bias: Tensor | None, part: Part, inputs: bool) -> tuple[Tensor, Tensor | None]:
    """What of a convolution's weights makes a part of a hidden map, or reads it.

    Args:
        weight, bias: the convolution's.
        part: which one.
        inputs: whether the map is what it reads, so that the outputs are the parts' sum and only one has the bias.
    """
    index, count = part
    if count == 1:
        return weight, bias
    if inputs:
        return weight.chunk(count, dim=1)[index], bias if index == 0 else None
    return weight.chunk(count)[index], None if bias is None else bias.chunk(count)[index]
