"""Results of an exported file for pictures, in the pictures' own pixels."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import FileError
from .opening import open_file
from .pictures import Picture, Prepared, prepare, read_picture
from .resizing import draw_mask, resize_labels


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What a file finds in a picture; N detections.

    Of a segmentor, there is a ``label_map`` and no detections. The fields are those of ``mmcare.Prediction``.

    Attributes:
        size: (height, width) of the picture in pixels, after its EXIF rotation.
        classes: names of all classes of the model, in the order of the labels.
        palette: a colour (R, G, B) for each class; None if the model has none.
        boxes: (N, 4), float32: x1, y1, x2, y2 in pixels of the picture.
        scores: (N,), float32, in descending order.
        labels: (N,), int64: index into ``classes``.
        masks: (N, height, width), bool; None for a model without masks.
        label_map: (height, width), the label of each pixel; None for a detector.
    """

    size: tuple[int, int]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...] | None
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None
    label_map: np.ndarray | None = None

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.classes[label] for label in self.labels]

    def __repr__(self) -> str:
        if self.label_map is None:
            found = [f"{count} {name}" for name, count in Counter(self.names).items()]
        else:
            found = [self.classes[label] for label in np.unique(self.label_map)]
        return f"<Result of {self.size[1]}×{self.size[0]}: {', '.join(found) or 'nothing'}>"

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON has it.

        Returns:
            The picture's ``width`` and ``height``, and a list: of a detector ``detections`` with ``label``, ``name``,
            ``score``, ``box`` and perhaps ``mask``, of a segmentor ``regions`` with ``label``, ``name`` and ``mask``. A
            mask is a run-length code as in COCO's annotations, not compressed.
        """
        size = {"width": self.size[1], "height": self.size[0]}
        if self.label_map is not None:
            regions = [
                {"label": int(label), "name": self.classes[label], "mask": _run_lengths(self.label_map == label)}
                for label in np.unique(self.label_map)
            ]
            return {**size, "regions": regions}
        detections = [
            {"label": label, "name": self.classes[label], "score": round(score, 6), "box": [round(x, 3) for x in box]}
            for label, score, box in zip(self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        ]
        if self.masks is not None:
            for detection, mask in zip(detections, self.masks, strict=True):
                detection["mask"] = _run_lengths(mask)
        return {**size, "detections": detections}


class Model:
    """An exported detector or segmentor that takes pictures, as ``mmcare.Predictor`` does with the trained one.

    Where the file takes any size, detections are those of the Predictor, and so are label maps if the test pipeline
    keeps a picture's size. If it resizes, a label map is brought from the resized picture's size to the picture's, so
    that a few pixels on edges differ. If a file has a fixed size, the padding up to it is part of what the network
    sees.

    Args:
        path: the file that ``mmcare export`` wrote, of the whole model.
        threads: number of threads; by default the runtime's own choice.
        precision: of the computation, for a runtime that has several.
        fit: for a file of a fixed size, whether pictures that the test pipeline makes larger are made smaller instead
            of refused.

    Attributes:
        file: the :class:`mmcare.runtime.ExportedFile`.

    Raises:
        FileError: see :func:`mmcare.runtime.open_file`; or the file is of a part of a model.
    """

    def __init__(
        self, path: str | Path, threads: int | None = None, precision: str | None = None, fit: bool = False
    ) -> None:
        self.file = open_file(path, threads, precision)
        self._fit = fit
        part = self.file.certificate.part
        if part != "model":
            raise FileError(f"{path} has the {part} of a model only, which finds nothing: export all of it")

    def __call__(self, picture: Picture) -> Result:
        """Return what the model finds in a picture.

        Args:
            picture: a path, a PIL image, or an array (H, W) or (H, W, 3), uint8, in the order RGB.

        Raises:
            FileError: the picture cannot be read, or the file cannot take it.
        """
        certificate = self.file.certificate
        prepared = prepare(read_picture(picture), certificate, self._fit)
        batch = self.file.takes[0] or 1
        outputs = self.file.run(np.repeat(prepared.image[None], batch, 0))
        known = {"size": prepared.size, "classes": certificate.classes, "palette": certificate.palette}
        if certificate.task == "segmentation":
            kind = np.uint8 if len(certificate.classes) <= 256 else np.uint16
            label_map = _label_map(outputs["output"][0].astype(kind), outputs["scores"][0], prepared)
            none = np.zeros((0, 4), np.float32)
            return Result(**known, boxes=none, scores=none[:, 0], labels=none[:, 0].astype(int), label_map=label_map)
        outputs = {name: value[0] for name, value in outputs.items()}
        return Result(**known, **_detections(outputs, prepared, certificate.mask_threshold))


def _detections(outputs: dict[str, np.ndarray], prepared: Prepared, least: float) -> dict[str, np.ndarray | None]:
    """Return the detections in pixels of the picture, without those in the padding; see :func:`draw_mask`."""
    labels, whole = outputs["labels"], outputs["dets"]
    found, dets = labels >= 0, whole.copy()
    if prepared.image.shape[1:] != prepared.inner:
        dets[:, :4] = np.minimum(dets[:, :4], np.float32(prepared.inner[::-1] * 2))
        found &= (dets[:, 2:4] > dets[:, :2]).all(1)
    back = np.float32([1 / (new / old) for new, old in zip(prepared.inner, prepared.size, strict=True)][::-1] * 2)
    boxes = dets[found, :4] * back
    drawn = None
    if "mask_probs" in outputs:
        drawn = np.zeros((len(boxes), *prepared.size), bool)
        for target, mask, box in zip(drawn, outputs["mask_probs"][found], whole[found, :4] * back, strict=True):
            draw_mask(mask, box, target, least)
    return {"boxes": boxes, "scores": dets[found, 4], "labels": labels[found].astype(np.int64), "masks": drawn}


def _label_map(labels: np.ndarray, scores: np.ndarray, prepared: Prepared) -> np.ndarray:
    height, width = prepared.inner
    return resize_labels(labels[:height, :width], scores[:height, :width], prepared.size)


def _run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """Return the lengths of the runs of a mask, down the columns, the first one of pixels outside."""
    pixels = mask.ravel("F")
    starts = np.flatnonzero(np.diff(pixels, prepend=False))
    return {"size": list(mask.shape), "counts": np.diff([0, *starts, pixels.size]).tolist()}
