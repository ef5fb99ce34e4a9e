"""Files for predictions, written one prediction at a time, so that their number does not matter."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from ..errors import UserError
from ..files import whole_file, write_file
from .prediction import Prediction

_DRAWABLE = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
"""Endings of pictures that are drawn in the format in which they came."""


@contextmanager
def coco_files(
    folder: Path, classes: Sequence[str], category_ids: Mapping[str, int] | None = None
) -> Iterator[Callable[[Prediction, int], None]]:
    """Write ``predictions.json``, COCO's results format, and ``images.json``, which says what its numbers mean.

    The latter is an annotation file without annotations: ``COCO("images.json").loadRes("predictions.json")`` reads the
    two. Both get their names when all is written, and neither does if an exception ends the context.

    Args:
        folder: an existing folder.
        classes: the model's class names.
        category_ids: the categories' numbers by class name; by default the labels counted from 1.

    Yields:
        A function that writes a prediction with the number of its picture.
    """
    category_ids = category_ids or {name: label for label, name in enumerate(classes, 1)}
    with whole_file(folder / "predictions.json") as results, whole_file(folder / "images.json") as images:
        separators = {results: b"", images: b""}

        def write(file, entry) -> None:
            file.write(separators[file] + b"\n" + json.dumps(entry, ensure_ascii=False).encode())
            separators[file] = b","

        def add(prediction: Prediction, image_id: int) -> None:
            for result in prediction.to_coco(image_id, category_ids):
                write(results, result)
            height, width = prediction.size
            image = dict(id=image_id, file_name=Path(prediction.source or "camera").name, height=height, width=width)
            write(images, image if prediction.frame is None else {**image, "frame_id": prediction.frame})

        results.write(b"[")
        images.write(b'{"info": {}, "annotations": [], "images": [')
        yield add
        results.write(b"\n]\n")
        categories = [dict(id=category_ids[name], name=name) for name in classes]
        images.write(b'\n], "categories": ' + json.dumps(categories, ensure_ascii=False).encode() + b"}\n")


def drawing_name(name: str) -> str:
    """Return the name of the drawing of a picture or video: its own, where its format can be written."""
    return name if name.lower().endswith(_DRAWABLE) else f"{name}.png"


def write_image(path: Path, picture: np.ndarray) -> None:
    """Write a picture, BGR or one channel, in the format of the path's ending.

    Raises:
        UserError: the file cannot be written.
    """
    write_file(path, cv2.imencode(path.suffix, picture)[1].tobytes())


@contextmanager
def video_file(path: Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Write an MP4 video, which gets its name when all of it is written.

    Args:
        path: the file.
        rate: frames per second.

    Yields:
        A function that writes a frame, (H, W, 3) in BGR, 8 bits, all of one size.

    Raises:
        UserError: OpenCV cannot write the video.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")  # the ending tells OpenCV the format
    writer = cv2.VideoWriter()

    def write(frame: np.ndarray) -> None:
        if not writer.isOpened():
            height, width = frame.shape[:2]
            if not writer.open(str(partial), cv2.VideoWriter_fourcc(*"mp4v"), rate, (width, height)):
                raise UserError(f"the video {path} cannot be written: check that the folder can be written to")
        writer.write(frame)

    try:
        yield write
        writer.release()
        os.replace(partial, path)
    finally:
        writer.release()
        partial.unlink(missing_ok=True)
