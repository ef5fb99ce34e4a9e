"""What the readers of all formats return: pictures with annotations in the terms of COCO."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from ...errors import UserError

Box = tuple[float, float, float, float]
"""The left and top edge, width and height in pixels. The top left corner of a picture is (0, 0)."""


Problems = defaultdict[str, list[str]]
"""What is left out or unusual, and for each time the picture."""


@dataclass(slots=True)
class Instance:
    """An object in a picture."""

    name: str
    """Its class."""
    box: Box
    segmentation: list[list[float]] | dict[str, Any] | None = None
    """Polygons as x, y, x, y … in pixels, or COCO's run-length code; None for a box alone."""
    area: float | None = None
    """In pixels; None for the box's."""
    crowd: bool = False
    """Whether it is ignored in training, and its matches in testing: COCO's crowds, Pascal VOC's difficult objects."""


@dataclass(slots=True)
class Picture:
    """A picture and what is annotated in it."""

    name: str
    """Its path within the data folder."""
    width: int
    height: int
    instances: list[Instance] = field(default_factory=list)
    label_map: str | None = None
    """The path of its label map within the data folder."""


@dataclass
class Description:
    """A data set."""

    classes: tuple[str, ...]
    splits: dict[str, list[Picture]]
    """The pictures of ``"train"``, ``"val"`` and ``"test"``, as far as the folder has these splits."""
    named_classes: bool
    """Whether the data set names its classes; otherwise they are those that occur."""
    problems: Problems = field(default_factory=lambda: defaultdict(list))

    def instances(self) -> list[Instance]:
        return [instance for pictures in self.splits.values() for picture in pictures for instance in picture.instances]


def add_instance(picture: Picture, instance: Instance, problems: Problems) -> None:
    """Add an object to a picture unless MMDetection would ignore its box, which is counted among the problems."""
    if _is_far_off(picture, instance):
        problems["objects that reach far out of their picture, left out"].append(picture.name)
        return
    x, y, width, height = instance.box
    inside = min(x + width, picture.width) > max(x, 0) and min(y + height, picture.height) > max(y, 0)
    if width < 1 or height < 1:
        problems["boxes narrower than a pixel, left out"].append(picture.name)
    elif not inside:
        problems["boxes outside of their picture, left out"].append(picture.name)
    else:
        if x < -0.5 or y < -0.5 or x + width > picture.width + 0.5 or y + height > picture.height + 0.5:
            problems["boxes that reach out of their picture, clipped when it is resized"].append(picture.name)
        picture.instances.append(instance)


def _is_far_off(picture: Picture, instance: Instance) -> bool:
    """Return whether an object leaves its picture by more than the picture's size; rasterizing it may take for ever."""
    boxes = [instance.box]
    if isinstance(instance.segmentation, list):
        boxes.append(box_around(instance.segmentation))
    return any(
        x < -picture.width or x + width > 2 * picture.width or y < -picture.height or y + height > 2 * picture.height
        for x, y, width, height in boxes
    )


def box_around(polygons: list[list[float]]) -> Box:
    """Return the box around polygons."""
    xs = [x for polygon in polygons for x in polygon[::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def area_of(polygons: list[list[float]]) -> float:
    """Return the sum of the polygons' areas in pixels."""
    total = 0.0
    for polygon in polygons:
        xs, ys = polygon[::2], polygon[1::2]
        total += abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2
    return total


def numbers(values: Any, where: str) -> list[float]:
    """Return values as numbers.

    Raises:
        UserError: one of them is not a finite number.
    """
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError):
        found = [math.nan]
    if not all(map(math.isfinite, found)):
        raise UserError(f"{where} has {str(values)[:80]} where numbers are expected: correct it")
    return found


def check_size(picture: Picture, width: Any, height: Any, where: str) -> None:
    """Check the size that an annotation file gives for a picture; it may give none, or 0.

    Raises:
        UserError: the picture has another size.
    """
    if width and height and (width, height) != (picture.width, picture.height):
        raise UserError(
            f"{where} is for a picture of {width}×{height} pixels, but {picture.name} has "
            f"{picture.width}×{picture.height} after any EXIF rotation: annotate the picture as it is, or put back the "
            "one that was annotated"
        )


def missing_pictures(names: list[str], where: str) -> UserError:
    """Return the error for annotations of pictures that are not there."""
    what = f"{len(names):,} pictures that are missing" if len(names) > 1 else "a picture that is missing"
    shown = ", ".join(names[:3]) + ("…" if len(names) > 3 else "")
    return UserError(f"{where} has annotations of {what} ({shown}): add the pictures, or remove the annotations")


def coco_masks() -> ModuleType:
    """Return pycocotools' functions for masks, which an installation for segmentation alone may lack.

    Raises:
        UserError: it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError("polygons and masks need pycocotools: pip install mmcare[data]") from error
    return mask
