"""From what a user gives to pictures: files, folders, arrays, PIL images, videos, cameras."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from ..errors import UserError

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".gif")


@dataclass(frozen=True)
class Item:
    """A picture to predict: a file, or an array of BGR colours, or why there is none."""

    source: str | None = None
    frame: int | None = None
    array: np.ndarray | None = None
    error: UserError | None = None
    index: int = 0

    @property
    def name(self) -> str:
        """Its name in messages."""
        name = self.source or f"picture {self.index}"
        return name if self.frame is None else f"frame {self.frame} of {self.source or 'the camera'}"


def items(images: Any) -> Iterator[Item]:
    """Yield a numbered item for each picture in what :class:`mmcare.Predictor` takes, lazily."""
    for index, item in enumerate(_items(images)):
        yield replace(item, index=index)


def count(images: Any) -> int | None:
    """Return the number of pictures without opening any; None if it is unknown."""
    if isinstance(images, Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4):
        return 1
    if isinstance(images, str | Path):
        path = Path(images)
        if path.is_dir():
            return sum(map(_is_picture, path.iterdir()))
        return None if is_video(path) else 1
    if isinstance(images, Sequence | np.ndarray):
        counts = [count(image) for image in images]
        return None if None in counts else sum(counts)
    return None


def pictures_in(folder: str | Path) -> list[str]:
    """Return the paths of the pictures in a folder, not in its subfolders; numbers in names count as numbers.

    Raises:
        UserError: there is none.
    """
    found = sorted((path for path in Path(folder).iterdir() if _is_picture(path)), key=_natural)
    if not found:
        raise UserError(
            f"there is no picture in the folder {folder}: none of its files ends in "
            f"{', '.join(PICTURES)}, and its subfolders are not looked into"
        )
    return list(map(str, found))


def is_video(path: str | Path) -> bool:
    """Return whether the ending of a path is a video's."""
    return Path(path).suffix.lower() in VIDEOS


def video_rate(path: str) -> float:
    """Return the frames per second of a video; 25 if it does not say."""
    capture = cv2.VideoCapture(path)
    rate = capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    return rate if 0 < rate < 1000 else 25.0


def _items(images: Any) -> Iterator[Item]:
    if isinstance(images, str | Path):
        yield from _in_path(str(images))
    elif isinstance(images, np.integer | int):
        yield from _frames(int(images), None, f"the camera {images}")
    elif isinstance(images, Image.Image):
        upright = ImageOps.exif_transpose(images).convert("RGB")
        yield Item(array=np.asarray(upright)[..., ::-1].copy())
    elif isinstance(images, np.ndarray) and images.ndim < 4:
        yield Item(array=_colours(images))
    elif isinstance(images, Iterable) and not isinstance(images, dict | set) and not hasattr(images, "is_cuda"):
        for image in images:
            yield from _items(image)
    else:
        raise UserError(
            f"a {type(images).__name__} is not a picture: give paths, NumPy arrays in BGR, PIL images, or a camera's "
            "number"
        )


def _in_path(path: str) -> Iterator[Item]:
    if Path(path).is_dir():
        yield from (Item(picture) for picture in pictures_in(path))
    elif not Path(path).exists():
        yield Item(path, error=UserError(f"there is no file {path}: check the path"))
    elif is_video(path):
        yield from _frames(path, path, path)
    else:
        yield Item(path)


def _frames(target: str | int, source: str | None, name: str) -> Iterator[Item]:
    """Yield the frames of a video or a camera, upright."""
    capture = cv2.VideoCapture(target)
    try:
        if not capture.isOpened():
            advice = "check that it is connected" if source is None else "it is damaged or not a video"
            yield Item(source, error=UserError(f"{name} cannot be opened: {advice}"))
            return
        for number in itertools.count():
            is_read, frame = capture.read()
            if is_read:
                yield Item(source, number, frame)
                continue
            if not number:
                yield Item(source, error=UserError(f"{name} has no frame that can be decoded: give another video"))
            return
    finally:
        capture.release()


def _colours(array: np.ndarray) -> np.ndarray:
    """Return an array as (H, W, 3) BGR of 8 bits."""
    if array.dtype != np.uint8 or not array.size or array.ndim not in (2, 3):
        raise UserError(
            f"an array of {array.dtype} and shape {array.shape} is not a picture: give (height, width, 3) of uint8, "
            "in BGR order as cv2.imread returns"
        )
    channels = array.shape[2] if array.ndim == 3 else 1
    if channels not in (1, 3, 4):
        raise UserError(f"an array of {channels} channels is not a picture: give (height, width, 3) in BGR order")
    if channels == 1:
        return cv2.cvtColor(array.reshape(array.shape[:2]), cv2.COLOR_GRAY2BGR)
    return np.ascontiguousarray(array[..., :3])


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES and not path.name.startswith(".") and path.is_file()


def _natural(path: Path) -> list[Any]:
    """Return a sorting key: 2.jpg comes before 10.jpg."""
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", path.name)]
