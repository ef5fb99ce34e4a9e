"""An exported file as a model of MMEngine, which the same data, pipeline and evaluator test as the trained one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.structures import InstanceData, PixelData

from ..errors import UserError
from ..registry import MODELS
from ..runtime import ExportedFile, draw_mask, open_file, resize_labels

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
                sample.pred_instances = _detections(outputs, size, sample, self.file.certificate.mask_threshold)
            else:
                labels = _label_map(outputs, size, sample.ori_shape[:2])
                sample.set_data({"pred_sem_seg": PixelData(data=torch.from_numpy(labels[None]))})
        if self.file.certificate.task == "detection":
            from mmdet.models.utils import samplelist_boxtype2tensor  # a segmentor does without MMDetection

            samplelist_boxtype2tensor(samples)  # the annotated boxes, too, which visualizers take as tensors
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
    check_size((height, width), wanted, file)
    result = np.empty((3, *wanted), np.float32)
    result[:] = np.asarray(mean, np.float32)[:, None, None]
    result[:, :height, :width] = image
    return result


def check_size(size: Size, largest: Size, file: str) -> None:
    """Raise UserError if an image of a size does not fit a file, both height and width."""
    if size[0] > largest[0] or size[1] > largest[1]:
        raise UserError(
            f"an image of {size[0]}×{size[1]} does not fit {file}, which takes {largest[0]}×{largest[1]}: export with "
            f"--shape {max(size)} or larger sides, or where the format has it with --dynamic"
        )


def _detections(outputs: dict[str, np.ndarray], size: Size, sample: Any, least: float) -> InstanceData:
    """Return the detections of an image of a size before padding, in pixels of the original; see :func:`draw_mask`."""
    height, width = size
    whole = outputs["dets"][:, :4]
    boxes = whole.clip(0, (width, height, width, height))
    found = (outputs["labels"] >= 0) & (boxes[:, 2:] > boxes[:, :2]).all(1)  # the others are in the padding
    scale = np.tile(sample.scale_factor, 2)
    boxes = (boxes[found] / scale).astype(np.float32)
    instances = InstanceData(
        bboxes=torch.from_numpy(boxes),
        scores=torch.from_numpy(outputs["dets"][found, 4]),
        labels=torch.from_numpy(outputs["labels"][found].astype(np.int64)),
    )
    if "mask_probs" in outputs:
        masks = np.zeros((len(boxes), *sample.ori_shape[:2]), bool)
        for mask, drawn, box in zip(outputs["mask_probs"][found], masks, whole[found] / scale, strict=True):
            draw_mask(mask, box, drawn, least)
        instances.masks = torch.from_numpy(masks)
    return instances


def _label_map(outputs: dict[str, np.ndarray], size: Size, original: Size) -> np.ndarray:
    """Return the label map of an image of a size before padding, in the original size, int64."""
    height, width = size
    labels, scores = (outputs[name][:height, :width] for name in ("output", "scores"))
    return resize_labels(labels, scores, tuple(original)).astype(np.int64)
