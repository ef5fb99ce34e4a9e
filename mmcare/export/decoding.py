"""From the maps of a detector's heads to boxes, for a batch and of fixed size, so that a graph can have it.

The results are those of MMDetection's loops over images, levels and classes. What is dropped there gets the score -1
here, and what is missing at the end is padding: label -1, score 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Keep = Callable[[Tensor, Tensor, int, float], tuple[Tensor, Tensor]]

DROPPED = -1.0
"""The score of a box that is left out; scores are at least 0."""
DRAWN_AT_ONCE = 10
"""Masks of an image that are drawn together: before they are bools, their pixels take four times the memory."""


def gather(values: Tensor, numbers: Tensor) -> Tensor:
    """Take rows of each image: (B, N, C) and (B, K) → (B, K, C)."""
    return values.gather(1, numbers.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def by_anchor(values: Tensor, width: int) -> Tensor:
    """(B, A · width, H, W) → (B, H · W · A, width), the order of the anchors."""
    return values.permute(0, 2, 3, 1).reshape(values.shape[0], -1, width)


def top(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the highest scores of each image, and their numbers.

    Where N is not known yet, there are always ``most``: missing ones have the score -inf, and numbers from N on. So the
    sizes of what is computed with them are constants.

    Args:
        scores: (B, N).
        most: the largest number of scores; all if it is less than 1.
    """
    count = scores.shape[1]
    if most < 1:
        return scores.topk(count)
    if not isinstance(count, int):
        return F.pad(scores, (0, most), value=-math.inf).topk(most)
    return scores.topk(min(most, count))


def decode(coder: Any, anchors: Tensor, deltas: Tensor, size: tuple[int, int]) -> Tensor:
    """Return boxes, xyxy, from the deltas of a ``DeltaXYWHBBoxCoder``.

    Args:
        coder: MMDetection's coder, for its settings.
        anchors: (…, 4).
        deltas: (…, 4).
        size: height and width of the images, to which boxes are clipped.
    """
    deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    shift, stretch = deltas.split(2, dim=-1)
    start, end = anchors.split(2, dim=-1)
    centre, extent = (start + end) * 0.5, end - start
    shift = extent * shift
    limit = abs(math.log(16 / 1000))  # the coder's default, which the heads keep
    if coder.add_ctr_clamp:
        shift = shift.clamp(-coder.ctr_clamp, coder.ctr_clamp)
        stretch = stretch.clamp(max=limit)
    else:
        stretch = stretch.clamp(-limit, limit)
    centre, half = centre + shift, extent * stretch.exp() * 0.5
    boxes = torch.cat((centre - half, centre + half), dim=-1)
    if not coder.clip_border:
        return boxes
    height, width = size
    x1, y1, x2, y2 = boxes.split(1, dim=-1)
    clipped = (x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height))
    return torch.cat(clipped, dim=-1)


def suppress(
    keep: Keep, boxes: Tensor, scores: Tensor, kinds: Tensor, labels: Tensor, settings: Mapping[str, Any], low: float
) -> tuple[Tensor, Tensor]:
    """Return the boxes that remain after non-maximum suppression among those of a kind, the highest scores first.

    As mmcv does, boxes are moved apart by kind, and then suppressed as if there were one kind only.

    Args:
        keep: the target's non-maximum suppression: :func:`mmcare.export.operators.keep`, or that of :mod:`.portable`.
        boxes: (B, N, 4), xyxy.
        scores: (B, N).
        kinds: (B, N): boxes of different kinds, such as classes, do not suppress each other.
        labels: (B, N), int64: the labels to return.
        settings: MMDetection's ``nms``, ``max_per_img`` and ``min_bbox_size``.
        low: boxes with a score that is not higher are left out.

    Returns:
        ``dets`` (B, K, 5), boxes and scores, and ``labels`` (B, K), with K = ``max_per_img``.
    """
    valid = scores > low
    smallest = settings.get("min_bbox_size", -1)
    if smallest >= 0:
        valid = valid & ((boxes[..., 2:] - boxes[..., :2]) > smallest).all(-1)
    scores = torch.where(valid, scores, DROPPED)
    apart = boxes
    if not settings["nms"].get("class_agnostic", False):
        largest = torch.where(valid.unsqueeze(-1), boxes, 0.0).amax((1, 2))
        apart = boxes + (kinds.to(boxes.dtype) * (largest + 1).unsqueeze(1)).unsqueeze(-1)
    most = settings["max_per_img"]
    scores, numbers = keep(apart, scores, most, float(settings["nms"]["iou_threshold"]))
    # An image may have fewer candidates than boxes are returned: then there are numbers from N on.
    found = scores > DROPPED / 2
    boxes = gather(F.pad(boxes, (0, 0, 0, most)), numbers)
    labels = F.pad(labels, (0, most)).gather(1, numbers)
    dets = torch.cat((boxes, scores.unsqueeze(-1)), dim=-1)
    return torch.where(found.unsqueeze(-1), dets, 0.0), torch.where(found, labels, -1)


def join(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Concatenate the candidates of all levels, each tensor (B, N, …)."""
    return [torch.cat(values, dim=1) for values in zip(*parts, strict=True)]


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int], least: float) -> Tensor:
    """Draw masks in their boxes, with bilinear interpolation.

    The interpolation is separable, so it is two matrix products: row i of the first matrix has the weights of the
    mask's rows in row i of the image.

    Args:
        masks: (B, K, M, M).
        boxes: (B, K, 4), xyxy in pixels.
        size: height and width of the images.
        least: the value from which a pixel belongs to a mask.

    Returns:
        (B, K, height, width), bool.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    rows = _weights(y1, y2, size[0], masks.shape[-2])
    columns = _weights(x1, x2, size[1], masks.shape[-1])
    parts = (values.split(DRAWN_AT_ONCE, dim=1) for values in (rows, masks, columns.transpose(-1, -2)))
    return torch.cat([a @ b @ c >= least for a, b, c in zip(*parts, strict=True)], dim=1)


def _weights(start: Tensor, end: Tensor, pixels: int, cells: int) -> Tensor:
    """Return the weight of each cell between start and end in each pixel: (B, K) → (B, K, pixels, cells)."""
    centres = torch.arange(pixels, dtype=start.dtype, device=start.device) + 0.5
    extent = (end - start).clamp(min=1e-6).unsqueeze(-1)
    position = (centres - start.unsqueeze(-1)) / extent * cells - 0.5
    numbers = torch.arange(cells, dtype=start.dtype, device=start.device)
    return (1 - (position.unsqueeze(-1) - numbers).abs()).clamp(min=0)
