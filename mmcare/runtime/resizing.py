"""Bilinear interpolation of pictures and masks without OpenCV, with its rounding."""

from __future__ import annotations

import numpy as np

_BITS = 11
"""Of the weights' fixed-point numbers, as in OpenCV."""


def resize(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize a picture as ``cv2.resize(picture, (width, height))`` does, to the last bit.

    OpenCV computes with 16-bit fixed-point numbers: the weights have 11 bits behind the point, the rows between the two
    passes lose 4 bits, and the products of the second pass 16.

    Args:
        picture: (H, W) or (H, W, C), uint8.

    Returns:
        (height, width) or (height, width, C), uint8.
    """
    old_height, old_width = picture.shape[:2]
    if (old_height, old_width) == (height, width):
        return picture
    left, fraction = _positions(old_width, width)
    # Beyond the centres of the first and the last column there is only one of them; rows are repeated instead.
    fraction[(left < 0) | (left >= old_width - 1)] = 0
    left = left.clip(0, old_width - 1)
    right = (left + 1).clip(max=old_width - 1)
    columns = [weights.reshape(-1, *(1,) * (picture.ndim - 2)) for weights in _weights(fraction)]
    top, fraction = _positions(old_height, height)
    result = np.full((height, width, *picture.shape[2:]), 2, np.int32)
    for rows, weights in zip((top, top + 1), _weights(fraction), strict=True):
        source = picture[rows.clip(0, old_height - 1)]
        narrow = source[:, left] * columns[0] + source[:, right] * columns[1]
        result += (narrow >> 4) * weights.reshape(-1, *(1,) * (picture.ndim - 1)) >> 16
    return (result >> 2).astype(np.uint8)


def _positions(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the old pixel before the centre of each new one, and the distance from its centre, in single precision."""
    centres = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    before = np.floor(centres)
    return before.astype(np.int64), centres - before


def _weights(fraction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of the pixels before and after, as fixed-point numbers."""
    return tuple(np.rint(share * np.float32(1 << _BITS)).astype(np.int32) for share in (1 - fraction, fraction))
