"""An exported file as a model of MMEngine, which the same data, pipeline and evaluator test as the trained one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.structures import InstanceData, PixelData

from ..errors import UserError
from ..registry import MODELS
from ..runtime import ExportedFile, open_file

Size = tuple[int, int]


@MODELS.register_module()
class ExportedModel(BaseModel):
    """A detector or segmentor in an exported file: ``test_step`` returns data samples as the trained model's does.

    It has no weights. Images are padded at the bottom and the right with the mean colour if the file takes one size,
    and the padding is cut off from the results.

    Args:
        file: the file, or its path.

    Raises:
        FileError: the file cannot be opened.
        UserError: it has no decoding.
    """

    def __init__(self, file: ExportedFile | str | Path) -> None:
        super().__init__()
        self.file = file if isinstance(file, ExportedFile) else open_file(file)
        part = self.file.certificate.part
        if part != "model":
            raise UserError(
                f"{self.file.path} is the {part} alone, which finds nothing that could be tested: export the whole "
                "model, without --part"
            )

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "predict") -> list[Any]:
        """Return the predictions for a batch; there is neither a loss nor a gradient."""
        return self.test_step({"inputs": inputs, "data_samples": data_samples})

    def test_step(self, data: dict[str, Any]) -> list[Any]:
        """Return the data samples of a batch with ``pred_instances`` or ``pred_sem_seg``, in the original sizes.

        Args:
            data: ``inputs``, images (3, H, W) in BGR order as the test pipeline packs them, and ``data_samples``.

        Raises:
            UserError: an image does not fit the file.
        """
        images = [image.flip(0).float().numpy() for image in data["inputs"]]
        samples = data["data_samples"]
        for sample, image, outputs in zip(samples, images, self._run(images), strict=True):
            size = image.shape[1:]
            if self.file.certificate.task == "detection":
                sample.pred_instances = _detections(outputs, size, sample)
            else:
                labels = _label_map(outputs, size, sample.ori_shape[:2])
                sample.set_data({"pred_sem_seg": PixelData(data=torch.from_numpy(labels[None]))})
        return samples

    def _run(self, images: Sequence[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the outputs for each image; as many neighbours of one size run together as the file takes."""
        number, *size = self.file.takes
        fitted = [self._fit(image, size) for image in images]
        for _, group in groupby(fitted, lambda image: image.shape):
            same = list(group)
            step = number or len(same)
            for start in range(0, len(same), step):
                chunk = same[start : start + step]
                filled = chunk + chunk[-1:] * (step - len(chunk) if number else 0)
                found = self.file.run(np.stack(filled))
                for index in range(len(chunk)):
                    yield {name: values[index] for name, values in found.items()}

    def _fit(self, image: np.ndarray, size: Sequence[int | None]) -> np.ndarray:
        return padded(image, size, self.file.certificate.normalization.mean, str(self.file.path))


def padded(image: np.ndarray, size: Sequence[int | None], mean: Sequence[float], file: str) -> np.ndarray:
    """Return an image (3, H, W) in a size, with the mean colour at the bottom and the right.

    Args:
        image: the image.
        size: height and width; None for the image's own.
        mean: a colour that normalization makes 0.
        file: what takes this size, in messages.

    Raises:
        UserError: the image is larger.
    """
    height, width = image.shape[1:]
    wanted = (size[0] or height, size[1] or width)
    if height > wanted[0] or width > wanted[1]:
        side = max(height, width)
        raise UserError(
            f"an image of {height}×{width} does not fit {file}, which takes {wanted[0]}×{wanted[1]}: export with "
            f"--shape {side} or larger sides, or where the format has it with --dynamic"
        )
    result = np.empty((3, *wanted), np.float32)
    result[:] = np.asarray(mean, np.float32)[:, None, None]
    result[:, :height, :width] = image
    return result


def _detections(outputs: dict[str, np.ndarray], size: Size, sample: Any) -> InstanceData:
    """Return the detections of an image of a size before padding, in pixels of the original image."""
    height, width = size
    found = outputs["labels"] >= 0
    dets = outputs["dets"][found]
    boxes = np.clip(dets[:, :4], 0, (width, height, width, height)) / np.tile(sample.scale_factor, 2)
    instances = InstanceData(
        bboxes=torch.from_numpy(boxes.astype(np.float32)),
        scores=torch.from_numpy(dets[:, 4]),
        labels=torch.from_numpy(outputs["labels"][found].astype(np.int64)),
    )
    if "masks" in outputs:
        masks = outputs["masks"][found, :height, :width]
        instances.masks = torch.from_numpy(_resized_masks(masks, sample.ori_shape[:2]))
    return instances


def _resized_masks(masks: np.ndarray, size: Size) -> np.ndarray:
    """Return masks (N, H, W), bool, in another size."""
    if masks.shape[1:] == tuple(size):
        return masks
    resized = np.empty((len(masks), *size), bool)
    for mask, result in zip(masks, resized, strict=True):
        result[:] = cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR) >= 0.5
    return resized


def _label_map(outputs: dict[str, np.ndarray], size: Size, original: Size) -> np.ndarray:
    """Return the label map of an image in its original size, int64.

    The trained model resizes its logits and takes the highest. The file has the highest class only, with its
    probability p: log(p / (1 − p)) is the distance of its logit from the others', which is resized for each class.
    """
    height, width = size
    labels, scores = outputs["output"][:height, :width], outputs["scores"][:height, :width]
    if labels.shape == tuple(original):
        return labels.astype(np.int64)
    scores = np.clip(scores.astype(np.float32), 0.5, 1 - 1e-7)
    margin = np.log(scores / (1 - scores)) + 1e-3  # more than nothing where no class has a half
    best = np.full(original, -np.inf, np.float32)
    found = np.zeros(original, np.int64)
    for label in np.unique(labels):
        signed = np.where(labels == label, margin, -margin)
        resized = cv2.resize(signed, original[::-1], interpolation=cv2.INTER_LINEAR)
        higher = resized > best
        found[higher], best[higher] = label, resized[higher]
    return found
