"""Bilinear interpolation of pictures, masks and label maps without OpenCV and PyTorch, as they do it."""

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


def draw_mask(probabilities: np.ndarray, box: np.ndarray, target: np.ndarray, least: float) -> None:
    """Draw the mask of a box, with bilinear interpolation, as MMDetection does.

    Args:
        probabilities: (M, M), of cells of the box to belong to the object.
        box: x1, y1, x2, y2 in pixels of the target, beyond which it may reach.
        target: (height, width), bool, all False, in which it is drawn.
        least: the probability from which a pixel belongs to the object.
    """
    (rows, down), (columns, across) = (
        _cell_weights(box[axis], box[axis + 2], target.shape[1 - axis], len(probabilities)) for axis in (1, 0)
    )
    target[rows, columns] = down @ probabilities @ across.T >= least


def _cell_weights(start: float, end: float, pixels: int, cells: int) -> tuple[slice, np.ndarray]:
    """Return the pixels that cells between start and end reach, and the weight of each cell in each: (P, cells)."""
    extent = max(np.float32(end - start), np.float32(1e-6))
    margin = extent / cells / 2  # beyond the first and the last centre, weights fall to 0 within a cell
    first, last = np.clip([np.floor(start - margin), np.ceil(end + margin)], 0, pixels).astype(int)
    centres = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
    position = (centres - np.float32(start)) / extent * np.float32(cells) - np.float32(0.5)
    numbers = np.arange(cells, dtype=np.float32)
    return slice(first, last), np.maximum(1 - np.abs(position[:, None] - numbers), 0)


def resize_labels(labels: np.ndarray, scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a label map: each pixel gets the label with the largest part in its bilinear interpolation.

    PyTorch interpolates the logits instead, which a file does not return. They fall towards an edge, steeper than the
    probabilities do; pixels count by the fourth power of these, which halves the pixels that differ.

    Args:
        labels: (H, W), whole numbers.
        scores: (H, W), the probability of each label.
        size: height and width.

    Returns:
        (height, width), of the type of the labels.
    """
    if labels.shape == size:
        return labels
    rows, columns = (_neighbours(old, new) for old, new in zip(labels.shape, size, strict=True))
    corners = [
        (labels[top[:, None], left], scores[top[:, None], left] ** 4 * (down[:, None] * right))
        for top, down in rows
        for left, right in columns
    ]
    best, largest = None, None
    for label, _ in corners:
        part = sum(np.where(other == label, weight, 0) for other, weight in corners)
        best = label if best is None else np.where(part > largest, label, best)
        largest = part if largest is None else np.maximum(part, largest)
    return best


def _neighbours(old: int, new: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the old pixels before and after the centre of each new one, each with its weight."""
    before, fraction = _positions(old, new)
    return [(before.clip(0, old - 1), 1 - fraction), ((before + 1).clip(0, old - 1), fraction)]


def _positions(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the old pixel before the centre of each new one, and the distance from its centre, in single precision."""
    centres = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    before = np.floor(centres)
    return before.astype(np.int64), centres - before


def _weights(fraction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of the pixels before and after, as fixed-point numbers."""
    return tuple(np.rint(share * np.float32(1 << _BITS)).astype(np.int32) for share in (1 - fraction, fraction))
