"""Non-maximum suppression and RoI align in plain tensor operations of constant shapes.

They are for targets that have no such operators. Both take and return what those of :mod:`.operators` do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .decoding import DROPPED, gather

if TYPE_CHECKING:
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

FEW = 128
"""Up to this number, boxes are found one after another; more of them in blocks."""
BLOCK = 256
"""Boxes of successive scores among which suppression is found together."""
STEPS = 17
"""Rounds in a block; odd, so that the last one gives the boxes that remain for sure."""
POOLED = 2**24
"""Numbers that are fetched at a time for pooling, 64 MiB of them: that many regions are pooled together."""


def keep(boxes: Tensor, scores: Tensor, most: int, iou: float) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression for each image.

    A box is suppressed by a kept one of a higher score if their IoU is larger than ``iou``. Up to :data:`FEW` boxes are
    exactly those. Where more are wanted, every box that is returned is kept by exact suppression too, so no two overlap
    more; a box is missing only if it depends on a chain of :data:`STEPS` boxes or more in one block of :data:`BLOCK`,
    each of which would suppress the next.

    Args:
        boxes: (B, N, 4), xyxy.
        scores: (B, N); :data:`~.decoding.DROPPED` of boxes that are left out.
        most: K, the largest number of boxes that are kept of an image, the ones with the highest scores.
        iou: the largest IoU that two kept boxes have.

    Returns:
        The scores (B, K), the highest first and ``DROPPED`` where there are not so many, and the numbers (B, K) of the
        boxes.
    """
    return _one_by_one(boxes, scores, most, iou) if most <= FEW else _in_blocks(boxes, scores, most, iou)


def _one_by_one(boxes: Tensor, scores: Tensor, most: int, iou: float) -> tuple[Tensor, Tensor]:
    # As few operations as possible: the graph has them once for each box that is kept.
    start, end = boxes.split(2, dim=2)
    area = (end - start).prod(2)
    table = torch.cat((boxes, area.unsqueeze(2)), dim=2)
    numbers = torch.arange(scores.shape[1], device=scores.device)
    kept = []
    for _ in range(most):
        number = scores.argmax(1, keepdim=True)
        kept.append((scores.gather(1, number), number))
        first, last, size = gather(table, number).split((2, 2, 1), dim=2)
        shared = torch.relu(torch.minimum(end, last) - torch.maximum(start, first)).prod(2)
        over = shared / (area + size.squeeze(2) - shared) > iou  # as mmcv computes it
        scores = torch.where(over | (numbers == number), DROPPED, scores)
    best, chosen = zip(*kept, strict=True)
    return torch.cat(best, dim=1), torch.cat(chosen, dim=1)


def _in_blocks(boxes: Tensor, scores: Tensor, most: int, iou: float) -> tuple[Tensor, Tensor]:
    """Suppress with a lower and an upper bound of what remains.

    Whether a box remains is 1 − "a remaining one of a higher score overlaps it". Put into this the largest set that may
    remain, and the result is a set that remains for sure; put that into it, and the result is a smaller set that may
    remain. Each round settles one more box of every chain of suppressions.
    """
    count = scores.shape[1]
    scores, order = scores.topk(count)
    boxes = gather(boxes, order)
    there = (scores > DROPPED / 2).to(boxes.dtype).unsqueeze(1)
    open_ = torch.cat((there, there), dim=1)  # (B, 2, N): not suppressed by what may remain, and by what does for sure
    kept = []
    for start in range(0, count, BLOCK):
        over = overlap(boxes[:, start : start + BLOCK], boxes[:, start:], iou).to(boxes.dtype)
        size = over.shape[1]
        inside, after = over[..., :size].triu(1), over[..., size:]
        surely, maybe = open_[..., :size].split(1, dim=1)
        lower = upper = maybe
        for step in range(STEPS):
            if step % 2 == 0:
                lower = torch.relu(surely - upper.bmm(inside))
            else:
                upper = torch.relu(maybe - lower.bmm(inside))
        kept.append(lower.squeeze(1))
        if start + size < count:
            open_ = torch.relu(open_[..., size:] - torch.cat((upper, lower), dim=1).bmm(after))
    scores = torch.where(torch.cat(kept, dim=1) > 0.5, scores, DROPPED)
    scores, chosen = F.pad(scores, (0, max(0, most - count)), value=DROPPED).topk(most)
    return scores, order.gather(1, chosen.clamp(max=count - 1))


def overlap(some: Tensor, others: Tensor, iou: float) -> Tensor:
    """Return whether the IoU is larger, as mmcv computes it: (B, N, 4) and (B, M, 4) → (B, N, M)."""
    start, end = some.unsqueeze(2).split(2, dim=-1)
    other_start, other_end = others.unsqueeze(1).split(2, dim=-1)
    shared = torch.relu(torch.minimum(end, other_end) - torch.maximum(start, other_start)).prod(-1)
    area, other_area = (end - start).prod(-1), (other_end - other_start).prod(-1)
    return shared / (area + other_area - shared) > iou


def pool(extractor: SingleRoIExtractor, maps: tuple[Tensor, ...], rois: Tensor) -> Tensor:
    """Return the features of regions, each from the level for its size, as ``mmcv.ops.RoIAlign`` does.

    The average of a cell's bilinear samples is a sum of the map's pixels, weighted by row and by column. The pixels of
    a region are fetched from the maps of all levels, which lie one after another, and summed in one matrix product.

    Args:
        extractor: MMDetection's, for its settings.
        maps: of the levels, each (B, C, H, W).
        rois: (R, 5): the number of the image, and the region in its pixels, xyxy.

    Returns:
        (R, C, side, side).
    """
    sizes = [tuple(values.shape[2:]) for values in maps]
    table = torch.cat([values.flatten(2) for values in maps], dim=2).transpose(1, 2).flatten(0, 1)  # (B · pixels, C)
    levels = extractor.map_roi_levels(rois, len(maps))
    most = _most_pixels(extractor, sizes)
    together = max(1, POOLED // (most * table.shape[1]))
    starts = range(0, len(rois), together)  # not torch.split, whose only part LiteRT's and Core ML's converters refuse
    parts = [(rois[start : start + together], levels[start : start + together]) for start in starts]
    return torch.cat([_pool(extractor, table, sizes, most, *part) for part in parts])


def _most_pixels(extractor: SingleRoIExtractor, sizes: list[tuple[int, int]]) -> int:
    """Return the largest number of pixels that a region can need.

    All levels but the highest have regions of a limited area, so there a long region is thin.
    """
    largest = []
    for level, (height, width) in enumerate(sizes):
        area = (extractor.finest_scale * 2 ** (level + 1) * extractor.roi_layers[level].spatial_scale) ** 2
        if level == len(sizes) - 1:
            area = height * width
        # A region from y to y + 1 pixels high needs y + 3 rows at most, as it begins and ends between two.
        for y in range(height):
            columns = min(area // y + 4, width) if y else width
            largest.append(min(y + 3, height) * columns)
    return int(max(largest))


def _pool(
    extractor: SingleRoIExtractor,
    table: Tensor,
    sizes: list[tuple[int, int]],
    most: int,
    rois: Tensor,
    levels: Tensor,
) -> Tensor:
    """Pool regions (R, 5) of levels (R,) that need ``most`` pixels or fewer of a table (B · pixels, C)."""
    layer = extractor.roi_layers[0]
    areas = [height * width for height, width in sizes]
    begins = levels.new_tensor([sum(areas[:level]) for level in range(len(sizes))]).index_select(0, levels)
    begins = begins + rois[:, 0].long() * sum(areas)
    scales = rois.new_tensor([layer.spatial_scale for layer in extractor.roi_layers])
    scales = scales.index_select(0, levels).unsqueeze(1)
    size = rois.new_tensor(sizes).index_select(0, levels)  # (R, 2): here and below, first y, then x
    corners = rois[:, 1:] * scales - (0.5 if layer.aligned else 0.0)
    start, extent = corners[:, :2].flip(1), (corners[:, 2:] - corners[:, :2]).flip(1)
    if not layer.aligned:
        extent = extent.clamp(min=1)

    # The region's pixels, row by row.
    first = torch.minimum(start.floor().clamp(min=0), size - 1)
    last = torch.minimum((start + extent).floor().clamp(min=-1) + 1, size - 1)
    columns = (last - first + 1)[:, 1:]
    numbers = torch.arange(most, dtype=rois.dtype, device=rois.device)
    row = ((numbers + 0.5) / columns).floor()
    pixels = torch.stack((row, numbers - row * columns), dim=2) + first.unsqueeze(1)  # (R, most, 2)
    place = torch.minimum(pixels, (size - 1).unsqueeze(1)).long()
    place = begins.unsqueeze(1) + place[..., 0] * size[:, 1:].long() + place[..., 1]
    features = table.index_select(0, place.flatten()).unflatten(0, place.shape)  # (R, most, C)

    # Pixels after the last row have no weight, nor has the last of the side's, which is outside of all maps.
    side = max(map(max, sizes)) + 1
    weights = _weights(start, extent, size, side, layer.output_size[0], layer.sampling_ratio)
    lines = torch.arange(2 * len(rois), device=rois.device).reshape(-1, 1, 2) * side
    lines = (lines + pixels.clamp(max=side - 1).long()).flatten()
    weights = weights.flatten(0, 2).index_select(0, lines).unflatten(0, pixels.shape)
    weights = (weights[:, :, 0].unsqueeze(3) * weights[:, :, 1].unsqueeze(2)).flatten(2)  # (R, most, cells)
    return features.transpose(1, 2).bmm(weights).unflatten(2, layer.output_size)


def _weights(start: Tensor, extent: Tensor, size: Tensor, pixels: int, cells: int, samples: int) -> Tensor:
    """Return the weight of each of a map's lines in each cell of regions.

    Args:
        start: (R, 2), where a region begins, in pixels of the map.
        extent: (R, 2), of the region.
        size: (R, 2), of the map.
        pixels: P, the number of lines to compute.
        cells: N, into which each side of the region is divided.
        samples: in each direction of a cell; 0 for as many as it has pixels.

    Returns:
        (R, 2, P, N).
    """
    start, extent, size = (values[..., None, None] for values in (start, extent, size))
    cell = extent / cells
    number = torch.full_like(cell, samples) if samples else cell.ceil()
    step = cell / number.clamp(min=1)
    begin = start + torch.arange(cells, dtype=start.dtype, device=start.device) * cell
    line = torch.arange(pixels, dtype=start.dtype, device=start.device).unsqueeze(1)
    # If a cell has three samples or more, they are over 2/3 of a pixel apart: three are less than a pixel from a line.
    nearest = 0.0 if samples else ((line - 1 - begin) / step.clamp(min=1e-9) - 0.5).ceil().clamp(min=0)
    total = torch.zeros_like(begin + line)
    for offset in range(samples or 3):
        sample = nearest + offset
        position = begin + (sample + 0.5) * step
        weight = torch.relu(1 - (torch.minimum(position.clamp(min=0), size - 1) - line).abs())
        counts = (sample < number) & (position >= -1) & (position <= size)
        total = total + torch.where(counts, weight, 0.0)
    return total / number.clamp(min=1)
