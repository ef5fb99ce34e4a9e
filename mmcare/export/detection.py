"""MMDetection's detectors as modules from images to tensors."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from mmdet.models.dense_heads import AnchorHead, RetinaHead, RPNHead
from mmdet.models.detectors import MaskRCNN, RetinaNet
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder
from torch import Tensor, nn

from ..errors import UserError
from . import operators, portable
from .decoding import DROPPED, by_anchor, decode, gather, join, paste, suppress, top

Size = tuple[int, int]


def check(model: nn.Module) -> None:
    """Raise UserError if a detector has a part or a setting that the exported graph would not compute alike."""
    heads = {
        "bbox_head": (RetinaHead,),
        "rpn_head": (RPNHead,),
        "roi_head": (StandardRoIHead,),
    }
    if type(model) not in (RetinaNet, MaskRCNN):
        raise UserError(
            f"there is no export of a {type(model).__name__}: give a RetinaNet or Mask R-CNN, or --part backbone"
        )
    for name, kinds in heads.items():
        _check_type(name, getattr(model, name, None), kinds)
    dense = model.rpn_head if hasattr(model, "roi_head") else model.bbox_head
    parts = {"bbox_coder": (dense.bbox_coder, DeltaXYWHBBoxCoder), "anchors": (dense.prior_generator, AnchorGenerator)}
    stages = {"test_cfg": dense.test_cfg}
    if hasattr(model, "roi_head"):
        head = model.roi_head
        parts["roi_head.bbox_head"] = (head.bbox_head, Shared2FCBBoxHead)
        parts["roi_head.mask_head"] = (head.mask_head, FCNMaskHead)
        parts["roi_head.bbox_roi_extractor"] = (head.bbox_roi_extractor, SingleRoIExtractor)
        parts["roi_head.mask_roi_extractor"] = (head.mask_roi_extractor, SingleRoIExtractor)
        stages = {"test_cfg.rpn": dense.test_cfg, "test_cfg.rcnn": head.test_cfg}
    for name, (part, kind) in parts.items():
        _check_type(name, part, (kind,))
    for name, settings in stages.items():
        kind = (settings.get("nms") or {"type": None}).get("type", "nms")
        if kind != "nms":
            raise UserError(f'{name} has nms of the type {kind!r}, which no exported file computes: set it to "nms"')
        if settings.get("max_per_img", -1) < 1:
            raise UserError(
                f"{name}.max_per_img is {settings.get('max_per_img')}, but an exported file returns a fixed number of "
                "boxes: set it to that number"
            )
    most = dense.test_cfg.get("nms_pre", -1)
    if not hasattr(model, "roi_head") and most < 1:
        raise UserError(
            f"test_cfg.nms_pre is {most}, with which MMDetection leaves out a candidate of each level: set it to the "
            "largest number of candidates"
        )
    if hasattr(model, "roi_head") and model.roi_head.test_cfg["mask_thr_binary"] <= 0:
        raise UserError(
            f"test_cfg.rcnn.mask_thr_binary is {model.roi_head.test_cfg['mask_thr_binary']}, but an exported file "
            "returns binary masks: set it to a probability above 0"
        )
    if not dense.use_sigmoid_cls:
        raise UserError("there is no export of a head whose classes exclude each other: set loss_cls.use_sigmoid")


def _check_type(name: str, part: Any, kinds: tuple[type, ...]) -> None:
    if part is not None and type(part) not in kinds:
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(
            f"there is no export of a {type(part).__name__} as {name}, only of {expected}: give another model, or "
            "--part backbone"
        )


def build(model: nn.Module, detection_operators: bool) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the module from images to detections, and the names of its outputs.

    Args:
        model: the detector.
        detection_operators: whether the target has :mod:`.operators`; if not, :mod:`.portable` computes them.
    """
    check(model)
    room = operators if detection_operators else portable
    if isinstance(model, MaskRCNN):
        return TwoStage(model, room), ("dets", "labels", "masks", "mask_probs")
    return OneStage(model, room), ("dets", "labels")


def build_network(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the module from images to the maps of the dense head, and the names of its outputs."""
    check(model)
    two_stages = isinstance(model, MaskRCNN)
    levels = range(len((model.rpn_head if two_stages else model.bbox_head).prior_generator.strides))
    kinds = ("rpn_cls_score", "rpn_bbox_pred") if two_stages else ("cls_score", "bbox_pred")
    names = [f"{kind}_{level}" for kind in kinds for level in levels]
    return Network(model), (*(f"p{level + 2}" for level in levels if two_stages), *names)


class Network(nn.Module):
    """Images to the maps of the dense head; of a two-stage detector, after the pyramid's maps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, size: Size) -> tuple[Tensor, ...]:
        maps = self.model.extract_feat(images)
        two_stages = hasattr(self.model, "roi_head")
        scores, deltas = (self.model.rpn_head if two_stages else self.model.bbox_head)(maps)
        return (*(maps if two_stages else ()), *scores, *deltas)


class OneStage(nn.Module):
    """RetinaNet: images (B, 3, H, W), normalized and padded → ``dets`` (B, K, 5), ``labels`` (B, K)."""

    def __init__(self, model: nn.Module, room: ModuleType) -> None:
        super().__init__()
        self.model, self.keep = model, room.keep

    def forward(self, images: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """``size`` is the height and width without padding."""
        head = self.model.bbox_head
        scores, deltas = head(self.model.extract_feat(images))
        settings = head.test_cfg
        levels = [
            _level(head, number, *maps, settings.get("nms_pre", -1))
            for number, maps in enumerate(zip(scores, deltas, strict=True))
        ]
        scores, labels, deltas, anchors = join(levels)
        boxes = decode(head.bbox_coder, anchors, deltas, size)
        return suppress(self.keep, boxes, scores, labels, labels, settings, settings.get("score_thr", 0))


def _level(head: AnchorHead, number: int, scores: Tensor, deltas: Tensor, most: int) -> tuple[Tensor, ...]:
    """Return the candidates of a level: scores, labels (B, N) and deltas, anchors (B, N, 4), the highest scores first.

    A candidate is an anchor with a class. Those with the highest scores belong to the anchors whose best class has the
    highest scores, so few anchors need be looked at in full.
    """
    anchors = head.prior_generator.single_level_grid_priors(scores.shape[-2:], number, scores.dtype, scores.device)
    logits, deltas = by_anchor(scores, head.cls_out_channels), by_anchor(deltas, 4)
    highest, rows = top(logits.amax(-1), most)
    missing = highest == -torch.inf
    rows = rows.clamp(max=logits.shape[1] - 1)
    logits = torch.where(missing.unsqueeze(-1), -torch.inf, gather(logits, rows))
    best, numbers = top(logits.flatten(1), most)
    rows = rows.gather(1, numbers // head.cls_out_channels)
    scores = torch.where(best == -torch.inf, DROPPED, best.sigmoid())
    return scores, numbers % head.cls_out_channels, gather(deltas, rows), anchors[rows]


class TwoStage(nn.Module):
    """Mask R-CNN: images (B, 3, H, W), normalized and padded → ``dets`` (B, K, 5), ``labels`` (B, K) and the masks.

    These are ``masks`` (B, K, height, width), bool, and what they are drawn from, ``mask_probs`` (B, K, M, M).
    """

    def __init__(self, model: nn.Module, room: ModuleType) -> None:
        super().__init__()
        self.model, self.keep, self.pool = model, room.keep, room.pool

    def forward(self, images: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``size`` is the height and width without padding, and of the masks."""
        maps = self.model.extract_feat(images)
        proposals, found = self._propose(maps, size)
        head = self.model.roi_head
        features = self._extract(head.bbox_roi_extractor, maps, proposals)
        logits, deltas = head.bbox_head(features)
        batch, count = found.shape
        classes = head.bbox_head.num_classes
        scores = logits.softmax(-1)[:, :classes].reshape(batch, count, classes)
        scores = torch.where(found.unsqueeze(-1), scores, DROPPED)
        boxes = decode(
            head.bbox_head.bbox_coder, proposals.unsqueeze(2), deltas.reshape(batch, count, -1, 4), size
        ).expand(-1, -1, classes, -1)
        labels = torch.arange(classes, device=images.device).expand(batch, count, classes).flatten(1)
        settings = head.test_cfg
        dets, labels = suppress(
            self.keep, boxes.flatten(1, 2), scores.flatten(1), labels, labels, settings, settings["score_thr"]
        )
        boxes = dets[..., :4]
        probabilities = self._masks(maps, boxes, labels)
        # What is missing has boxes of no size, in which nothing is drawn.
        return dets, labels, paste(probabilities, boxes, size, settings["mask_thr_binary"]), probabilities

    def _propose(self, maps: tuple[Tensor, ...], size: Size) -> tuple[Tensor, Tensor]:
        """Return proposals (B, P, 4), and which are none but padding (B, P)."""
        head = self.model.rpn_head
        scores, deltas = head(maps)
        settings = head.test_cfg
        levels = []
        for number, level in enumerate(zip(scores, deltas, strict=True)):
            best, _, *regions = _level(head, number, *level, settings.get("nms_pre", -1))
            levels.append((best, torch.full_like(best, number, dtype=torch.int64), *regions))
        scores, numbers, deltas, anchors = join(levels)
        boxes = decode(head.bbox_coder, anchors, deltas, size)
        dets, labels = suppress(self.keep, boxes, scores, numbers, torch.zeros_like(numbers), settings, DROPPED / 2)
        return dets[..., :4], labels >= 0

    def _masks(self, maps: tuple[Tensor, ...], boxes: Tensor, labels: Tensor) -> Tensor:
        """Return the probabilities (B, K, M, M) that cells of boxes (B, K, 4) belong to the object."""
        head = self.model.roi_head
        masks = head.mask_head(self._extract(head.mask_roi_extractor, maps, boxes))
        masks = masks.unflatten(0, labels.shape)  # (B, K, classes, M, M)
        if head.mask_head.class_agnostic:
            masks = masks[:, :, 0]
        else:
            chosen = labels.clamp(min=0)[..., None, None, None].expand(-1, -1, 1, *masks.shape[-2:])
            masks = masks.gather(2, chosen).squeeze(2)
        return masks.sigmoid()

    def _extract(self, extractor: SingleRoIExtractor, maps: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
        """Return the features of boxes (B, N, 4): (B · N, C, side, side)."""
        batch, count = boxes.shape[:2]
        images = torch.arange(batch, dtype=boxes.dtype, device=boxes.device)[:, None, None].expand(-1, count, 1)
        rois = torch.cat((images, boxes), dim=-1).flatten(0, 1)
        return self.pool(extractor, maps[: extractor.num_inputs], rois)
