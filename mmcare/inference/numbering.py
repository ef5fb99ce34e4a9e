"""The numbers of images and categories in COCO's format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .prediction import Prediction
from .sources import is_video


class Numbers:
    """The numbers of the pictures to predict, and of the classes.

    A picture's number is the annotation file's. Without one it is the number that its name is, if all names are
    different numbers, as COCO's are, and otherwise its place among all, counted from 1. A class's number is the
    annotation file's, or its label counted from 1.

    Args:
        sources: paths of pictures and videos; none for a camera.
        classes: the class names, in the order of the labels.
        annotations: a COCO annotation file.

    Attributes:
        of_classes: the number of each class.

    Raises:
        UserError: the annotation file cannot be read, or lacks a picture or a class.
    """

    def __init__(self, sources: Sequence[str], classes: Sequence[str], annotations: Path | None) -> None:
        self.of_classes = {name: label for label, name in enumerate(classes, 1)}
        self._images: dict[str, int] = {}
        if not sources or any(map(is_video, sources)):
            if annotations:
                raise UserError("--annotations is for pictures: omit it for a video or a camera")
            return
        if annotations:
            images, categories = _read(annotations)
            self._images = {source: _find(source, images, annotations) for source in sources}
            lacking = [name for name in classes if name not in categories]
            if lacking:
                raise UserError(f"{annotations} has no category {lacking[0]}, which is a class of the model")
            self.of_classes = {name: categories[name] for name in classes}
            return
        stems = [Path(source).stem for source in sources]
        if all(stem.isascii() and stem.isdecimal() for stem in stems) and len(set(map(int, stems))) == len(stems):
            self._images = dict(zip(sources, map(int, stems), strict=True))

    def of_picture(self, prediction: Prediction) -> int:
        """Return the number of the picture of a prediction."""
        return self._images.get(prediction.source or "", prediction.index + 1)


def _read(path: Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, int]]:
    """Return the images of a COCO annotation file by the last part of their names, and the categories' numbers."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images: dict[str, list[dict[str, Any]]] = {}
        for image in content["images"]:
            images.setdefault(Path(image["file_name"]).name, []).append(image)
        return images, {category["name"]: int(category["id"]) for category in content["categories"]}
    except OSError as error:
        raise UserError(f"--annotations {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--annotations {path} is not a COCO annotation file, with images and categories ({type(error).__name__}: "
            f"{error})"
        ) from error


def _find(source: str, images: dict[str, list[dict[str, Any]]], path: Path) -> int:
    """Return the number of the image whose file_name the path of a picture ends in."""
    named = images.get(Path(source).name, [])
    fitting = [image for image in named if Path(source).absolute().as_posix().endswith(image["file_name"])] or named
    if len(fitting) != 1:
        raise UserError(f"{path} lists {len(fitting) or 'no'} images for {source}: predict only pictures that it lists")
    return int(fitting[0]["id"])
