"""What a model finds in one picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mmcv
import numpy as np
from mmengine.structures import BaseDataElement

from ..errors import UserError

if TYPE_CHECKING:
    import supervision as sv

OPACITY = 0.5
"""Of the masks and label maps in a drawing."""
SMALLEST_TEXT = 0.35
"""Scale of OpenCV's font below which it cannot be read; in larger pictures it grows with them."""


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What a detector or segmentor finds in one picture; N detections.

    Arrays are NumPy's. Of a segmentor, the picture has a ``label_map`` and no detections.

    Attributes:
        source: the path of the picture or video; None for an array, a PIL image or a camera.
        index: number of the picture in the call, from 0.
        frame: number of the frame in its video or camera, from 0; None for a picture.
        size: (height, width) of the picture in pixels, after its EXIF rotation, which is applied when it is read.
        classes: names of all classes of the model, in the order of the labels.
        boxes: (N, 4), float32: x1, y1, x2, y2 in pixels of the picture.
        scores: (N,), float32, in descending order as the model returns them.
        labels: (N,), int64: index into ``classes``.
        masks: (N, height, width), bool; None for a model without masks.
        label_map: (height, width), the label of each pixel; None for a detector.
    """

    source: str | None
    index: int
    frame: int | None
    size: tuple[int, int]
    classes: tuple[str, ...]
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None
    label_map: np.ndarray | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    picture: np.ndarray | None = None
    """(height, width, 3), BGR, of what was given as an array; a picture from a file is read again when it is drawn."""

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.classes[label] for label in self.labels]

    def __repr__(self) -> str:
        source = self.source or "array"
        where = source if self.frame is None else f"{source}, frame {self.frame}"
        if self.label_map is None:
            found = [f"{count} {name}" for name, count in Counter(self.names).items()]
        else:
            found = [self.classes[label] for label in np.unique(self.label_map)]
        return f"<Prediction of {where}, {self.size[1]}×{self.size[0]}: {', '.join(found) or 'nothing'}>"

    def draw(self, score_thr: float = 0.3) -> np.ndarray:
        """Return the picture with the detections or the label map drawn on it, (height, width, 3), BGR, 8 bits.

        Args:
            score_thr: detections with a lower score are not drawn.

        Raises:
            UserError: supervision is not installed, or the file of the picture is gone.
        """
        sv = _supervision()
        found = self.to_supervision()
        if self.label_map is None:
            found = found[self.scores >= score_thr]
        picture = self._read()
        colour = sv.ColorPalette([sv.Color(*rgb) for rgb in self.palette]) if self.palette else sv.ColorPalette.DEFAULT
        if found.mask is not None:
            picture = sv.MaskAnnotator(colour, OPACITY).annotate(picture, found)
        if self.label_map is not None:
            return picture
        width_height = self.size[::-1]
        picture = sv.BoxAnnotator(colour, sv.calculate_optimal_line_thickness(width_height)).annotate(picture, found)
        scale = max(sv.calculate_optimal_text_scale(width_height), SMALLEST_TEXT)
        texts = [f"{name} {score:.2f}" for name, score in zip(found["class_name"], found.confidence, strict=True)]
        labels = sv.LabelAnnotator(colour, text_scale=scale, text_padding=round(12 * scale), smart_position=True)
        return labels.annotate(picture, found, texts)

    def to_coco(self, image_id: int | None = None, category_ids: Mapping[str, int] | None = None) -> list[dict]:
        """Return the detections in COCO's results format; of a label map, a region for each class in it.

        Args:
            image_id: the picture's number; ``index`` by default.
            category_ids: the categories' numbers by class name; by default the labels counted from 1.

        Returns:
            Dicts with ``image_id``, ``category_id``, and ``bbox`` (x, y, width, height) and ``score``, where the model
            has them, and ``segmentation``, a run-length code, where it has masks.
        """
        image_id = self.index if image_id is None else image_id
        category_ids = category_ids or {name: label for label, name in enumerate(self.classes, 1)}
        if self.label_map is not None:
            return [
                dict(
                    image_id=image_id,
                    category_id=category_ids[self.classes[label]],
                    segmentation=_run_lengths(self.label_map == label),
                )
                for label in np.unique(self.label_map)
            ]
        results = []
        for number, (box, score, name) in enumerate(
            zip(self.boxes.tolist(), self.scores.tolist(), self.names, strict=True)
        ):
            x1, y1, x2, y2 = box
            bbox = [x1, y1, x2 - x1, y2 - y1]
            result = dict(image_id=image_id, category_id=category_ids[name], bbox=bbox, score=score)
            if self.masks is not None:
                result["segmentation"] = _run_lengths(self.masks[number])
            results.append(result)
        return results

    def to_supervision(self) -> sv.Detections:
        """Return the detections, or a region for each class of a label map, for supervision's tools.

        Raises:
            UserError: supervision is not installed.
        """
        sv = _supervision()
        if self.label_map is None:
            return sv.Detections(
                xyxy=self.boxes,
                mask=self.masks,
                confidence=self.scores,
                class_id=self.labels,
                data={"class_name": np.array(self.names, str)},
            )
        labels = np.unique(self.label_map).astype(np.int64)
        masks = self.label_map == labels[:, None, None]
        names = np.array([self.classes[label] for label in labels], str)
        return sv.Detections(sv.mask_to_xyxy(masks).astype(np.float32), masks, None, labels, data={"class_name": names})

    def _read(self) -> np.ndarray:
        if self.picture is not None:
            return self.picture.copy()
        picture = mmcv.imread(self.source) if self.source else None
        if picture is None or picture.shape[:2] != self.size:
            raise UserError(f"{self.source} has changed since it was predicted: predict it again")
        return picture


def to_prediction(sample: BaseDataElement, size: tuple[int, int], **known: Any) -> Prediction:
    """Return the prediction in a data sample of MMDetection or MMSegmentation.

    Args:
        sample: what the model returned.
        size: (height, width) of the picture.
        known: the other fields that the model does not know.

    Raises:
        UserError: the model predicts something else.
    """
    if "pred_instances" in sample:
        found = sample.pred_instances.cpu().numpy()
        return Prediction(
            size=size,
            boxes=found.bboxes.astype(np.float32),
            scores=found.scores.astype(np.float32),
            labels=found.labels.astype(np.int64),
            masks=found.masks.astype(bool) if "masks" in found else None,
            **known,
        )
    if "pred_sem_seg" not in sample:
        raise UserError("the model predicts neither detections nor a label map: give another model")
    boxes, scores, labels = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
    kind = np.uint8 if len(known["classes"]) <= 256 else np.uint16
    label_map = sample.pred_sem_seg.data[0].cpu().numpy().astype(kind)
    return Prediction(size=size, boxes=boxes, scores=scores, labels=labels, label_map=label_map, **known)


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Return the run-length code of a mask as JSON takes it."""
    from pycocotools.mask import encode

    code = encode(np.asfortranarray(mask, np.uint8))
    return {"size": code["size"], "counts": code["counts"].decode()}


def check_drawing() -> None:
    """Raise UserError if predictions cannot be drawn here."""
    _supervision()


def _supervision() -> Any:
    try:
        import supervision
    except ImportError as error:
        raise UserError(
            f"drawing needs the package supervision ({error}): install it with `pip install supervision`"
        ) from error
    return supervision
