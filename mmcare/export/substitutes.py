"""Modules that compute the same as others, in operations that a graph for images of all sizes can have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AveragePool(nn.Module):
    """Adaptive average pooling as two matrix products, which ONNX has for any size of the map.

    Args:
        sides: height and width of the output, or one number for both.
    """

    def __init__(self, sides: int | tuple[int, int]) -> None:
        super().__init__()
        self.sides = sides if isinstance(sides, tuple) else (sides, sides)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, height, width)."""
        rows, columns = (_averages(count, x.shape[axis], x) for axis, count in zip((2, 3), self.sides, strict=True))
        return rows @ x @ columns.transpose(0, 1)


def _averages(count: int, size: int, like: Tensor) -> Tensor:
    """Return the matrix (count, size) whose rows average the cells' pixels, which overlap as in torch."""
    cells = torch.arange(count, device=like.device).unsqueeze(1)
    start, end = cells * size // count, ((cells + 1) * size + count - 1) // count
    pixels = torch.arange(size, device=like.device)
    inside = ((pixels >= start) & (pixels < end)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


class Enlarge(nn.Module):
    """Interpolation by a whole factor, without rounding.

    Args:
        factor: of height and width.
        mode: torch's name of the interpolation.
        align_corners: as in torch.
    """

    def __init__(self, factor: int, mode: str, align_corners: bool | None) -> None:
        super().__init__()
        self.factor, self.mode, self.align_corners = factor, mode, align_corners

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, factor · H, factor · W)."""
        size = (x.shape[2] * self.factor, x.shape[3] * self.factor)
        return F.interpolate(x, size, mode=self.mode, align_corners=self.align_corners)
