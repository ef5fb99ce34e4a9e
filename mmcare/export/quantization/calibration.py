"""Calibration pictures: read and resized as the test pipeline does, as the file takes them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from math import ceil
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ...errors import UserError
from ...inference import Item, pictures_in, prepare
from ..preparation import Prepared

DEFAULT_IMAGES = 100
"""Most pictures that ranges are taken from."""


def read_pictures(
    folder: str | Path, transforms: Sequence[Any], prepared: Prepared, most: int = DEFAULT_IMAGES
) -> list[np.ndarray]:
    """Return batches for calibration, float32 (B, 3, H, W), RGB from 0 to 255.

    A dynamic file takes each picture alone, in the size that the test pipeline gives it. In a file of a fixed size, a
    picture that is larger is scaled down to fit, and what it leaves free is the mean colour, which normalizes to 0.

    Args:
        folder: its pictures are taken evenly, in the order of their names.
        transforms: the test pipeline.
        prepared: the model, for the size that it takes.
        most: most pictures to read.

    Raises:
        UserError: there is no picture in the folder, or one cannot be read.
    """
    if not Path(folder).is_dir():
        raise UserError(f"--calibration {folder} is not a folder: give a folder of pictures like those to be predicted")
    if most < 1:
        raise UserError(f"calibration takes at least 1 picture, not {most}: give another --max-images")
    paths = pictures_in(folder)
    chosen = [paths[len(paths) * number // most] for number in range(most)] if most < len(paths) else paths
    pictures = []
    for found in prepare((Item(path) for path in chosen), tuple(transforms), workers=0):
        if found.error:
            raise found.error
        pictures.append(found.inputs.flip(0).numpy().astype(np.float32))  # the pipeline reads BGR
    if prepared.dynamic:
        return [picture[None] for picture in pictures]
    batch, _, *size = prepared.images.shape
    mean = prepared.module.mean.flatten().numpy()
    mean = mean if prepared.module.is_rgb else mean[::-1]
    fitted = [_fit(picture, tuple(size), mean) for picture in pictures]
    whole = list(islice(cycle(fitted), ceil(len(fitted) / batch) * batch))
    return [np.stack(whole[start : start + batch]) for start in range(0, len(whole), batch)]


def _fit(picture: np.ndarray, size: tuple[int, int], mean: np.ndarray) -> np.ndarray:
    """Return a picture (3, H, W) in the upper left corner of one of another size, smaller if need be."""
    scale = min(1.0, *(side / given for side, given in zip(size, picture.shape[1:], strict=True)))
    if scale < 1:
        width_height = [max(1, int(side * scale)) for side in picture.shape[:0:-1]]
        picture = cv2.resize(picture.transpose(1, 2, 0), width_height).transpose(2, 0, 1)
    out = np.broadcast_to(mean.astype(np.float32)[:, None, None], (3, *size)).copy()
    out[:, : picture.shape[1], : picture.shape[2]] = picture
    return out
