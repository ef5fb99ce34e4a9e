"""Memory layout of feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .mode import Saving, present


def is_captured() -> bool:
    """Return whether torch is compiling or tracing: the graph should have plain operations and allow any image size."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_channels_last(x: Tensor) -> bool:
    """Return whether a map (B, C, H, W) is stored as (B, H, W, C), without gaps."""
    return x.is_contiguous(memory_format=torch.channels_last)


def trains_in_channels_last(x: Tensor) -> bool:
    """Return whether to train with x in channels-last: on CPUs it makes depth-wise convolutions much faster."""
    return x.device.type == "cpu" and not is_captured() and present() is not Saving.NOTHING


def laid_out_as(x: Tensor, like: Tensor) -> Tensor:
    """Return x in the layout of another map: operations on maps with different layouts copy one or both of them."""
    return x.contiguous(memory_format=torch.channels_last if like.stride(1) == 1 else torch.contiguous_format)


def split(x: Tensor, parts: int) -> Sequence[Tensor]:
    """Return equal parts of the channels, in the layout of x: convolutions copy maps with gaps in every pass."""
    chunks = x.chunk(parts, dim=1)
    plain = not is_captured() and present() is Saving.NOTHING
    return chunks if plain else [laid_out_as(part, x) for part in chunks]
