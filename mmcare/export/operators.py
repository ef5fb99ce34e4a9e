"""Operators that ONNX has and torch has not: one call in the graph instead of the loops that mmcv runs.

Each is an operator of torch with an implementation by ``mmcv.ops``, so that a prepared model also runs in torch; a
target translates it into its own. :func:`keep` and :func:`pool` are what the detectors call; for targets that have no
such operators, those of :mod:`.portable` do the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .decoding import DROPPED

if TYPE_CHECKING:
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor


def keep(boxes: Tensor, scores: Tensor, most: int, iou: float) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression for each image.

    Args:
        boxes: (B, N, 4), xyxy.
        scores: (B, N); :data:`~.decoding.DROPPED` of boxes that are left out.
        most: K, the largest number of boxes that are kept of an image, the ones with the highest scores.
        iou: a box is suppressed by a kept one of a higher score if their IoU is larger.

    Returns:
        The scores (B, K), the highest first and ``DROPPED`` where there are not so many, and the numbers (B, K) of the
        boxes, from 0 to N + K.
    """
    kept = nms(boxes, scores, most, iou, DROPPED / 2)
    images, numbers = kept[:, 0], kept[:, 2]
    scores = torch.full_like(scores, DROPPED).index_put((images, numbers), scores[images, numbers])
    return F.pad(scores, (0, most), value=DROPPED).topk(most, dim=1)


def pool(extractor: SingleRoIExtractor, maps: tuple[Tensor, ...], rois: Tensor) -> Tensor:
    """Return the features of regions, each from the level for its size.

    Args:
        extractor: MMDetection's, for its settings.
        maps: of the levels, each (B, C, H, W).
        rois: (R, 5): the number of the image, and the region in its pixels, xyxy.

    Returns:
        (R, C, side, side).
    """
    levels = extractor.map_roi_levels(rois, len(maps))
    side = extractor.roi_layers[0].output_size[0]
    out = rois.new_zeros((rois.shape[0], extractor.out_channels, side, side))
    for number, (features, layer) in enumerate(zip(maps, extractor.roi_layers, strict=True)):
        rows = (levels == number).nonzero()[:, 0]
        part = roi_align(features, rois[rows], side, layer.spatial_scale, layer.sampling_ratio, layer.aligned)
        out = out.index_put((rows,), part)
    return out


@torch.library.custom_op("mmcare::nms", mutates_args=())
def nms(boxes: Tensor, scores: Tensor, most: int, iou: float, low: float) -> Tensor:
    """Non-maximum suppression for each image.

    Args:
        boxes: (B, N, 4), xyxy.
        scores: (B, N).
        most: the largest number of boxes that are kept of an image, the ones with the highest scores.
        iou: a box is suppressed by a kept one of a higher score if their IoU is larger.
        low: boxes with a score that is not higher are left out.

    Returns:
        (M, 3), int64: for each kept box its image, 0, and its number, as ONNX's NonMaxSuppression with one class.
    """
    from mmcv.ops import nms as suppress

    kept = []
    for image, (corners, values) in enumerate(zip(boxes, scores, strict=True)):
        numbers = (values > low).nonzero()[:, 0]
        if len(numbers):
            _, chosen = suppress(corners[numbers].contiguous(), values[numbers].contiguous(), iou)
            numbers = numbers[chosen[:most]]
        kept.append(torch.stack((torch.full_like(numbers, image), torch.zeros_like(numbers), numbers), dim=1))
    return torch.cat(kept)


@nms.register_fake
def _(boxes: Tensor, scores: Tensor, most: int, iou: float, low: float) -> Tensor:
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(), 3), dtype=torch.int64)


@torch.library.custom_op("mmcare::roi_align", mutates_args=())
def roi_align(features: Tensor, rois: Tensor, size: int, scale: float, samples: int, aligned: bool) -> Tensor:
    """Average pooling of regions, as ``mmcv.ops.RoIAlign``.

    Args:
        features: (B, C, H, W).
        rois: (R, 5): the number of the image, and the region in its pixels, xyxy.
        size: side of the output.
        scale: size of the map relative to the image.
        samples: number of samples in each direction of a cell; 0 for as many as the cell has pixels.
        aligned: whether pixels have their centre at a half.

    Returns:
        (R, C, size, size).
    """
    from mmcv.ops import roi_align as align

    return align(features.contiguous(), rois.contiguous(), size, scale, samples, "avg", aligned)


@roi_align.register_fake
def _(features: Tensor, rois: Tensor, size: int, scale: float, samples: int, aligned: bool) -> Tensor:
    return features.new_empty((rois.shape[0], features.shape[1], size, size))
