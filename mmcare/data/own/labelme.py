"""labelme's JSON files, one for each picture.

labelme itself reads them only together with its user interface, so this reads them as its own conversion to COCO does:
shapes of one class with the same group are one object.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import posixpath
from collections import defaultdict
from typing import Any

from ...errors import UserError
from .description import (
    Description,
    Instance,
    Picture,
    Problems,
    add_instance,
    area_of,
    box_around,
    check_size,
    coco_masks,
    missing_pictures,
    numbers,
)
from .folder import MOST_PIXELS, Folder, split_of
from .voc import described

_CIRCLE_POINTS = 64


def is_labelme(content: Any) -> bool:
    """Return whether the content of a JSON file is labelme's."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def read(folder: Folder) -> Description:
    """Read a data set in labelme's format. Its classes are those in ``classes.txt``, or those that occur.

    Raises:
        UserError: a file cannot be read or is not as the format requires.
    """
    problems: Problems = defaultdict(list)
    splits: dict[str, list[Picture]] = {}
    absent = []
    seen: dict[str, str] = {}
    for name in folder.ending_in(".json"):
        content = folder.json(name)
        if not is_labelme(content):
            continue
        own = posixpath.dirname(name)
        image_path = str(content["imagePath"])
        found = folder.find(image_path, [own, "", own], str(folder / name)) if image_path else None
        found = found or folder.picture_of(name)  # labelme keeps the path that the picture had when it was annotated
        if found is None:
            absent.append(name)
            continue
        if found in seen:
            raise UserError(
                f"{folder / name} and {seen[found]} are for the same picture, {found}: remove one of the two"
            )
        seen[found] = name
        picture = Picture(found, *folder.size_of(found))
        check_size(picture, content.get("imageWidth"), content.get("imageHeight"), str(folder / name))
        for instance in _instances(content["shapes"], picture, str(folder / name), problems):
            add_instance(picture, instance, problems)
        splits.setdefault(split_of(own) or split_of(posixpath.dirname(found)) or "train", []).append(picture)
    if absent:
        raise missing_pictures(absent, str(folder.path))
    return described(folder, splits, problems)


def _instances(shapes: list[Any], picture: Picture, path: str, problems: Problems) -> list[Instance]:
    groups: dict[tuple[str, Any], list[tuple[dict[str, Any], str]]] = {}
    for index, shape in enumerate(shapes):
        where = f"{path}: shapes[{index}]"
        if not isinstance(shape, dict) or not {"label", "points"} <= shape.keys():
            raise UserError(f'{where} has no "label" or no "points": correct it')
        kind = shape.get("shape_type") or "polygon"  # as in labelme's first versions
        if kind not in ("rectangle", "polygon", "circle", "mask"):
            problems[f"shapes without an area, left out ({kind})"].append(picture.name)
            continue
        group = shape.get("group_id")
        key = (str(shape["label"]), index if group is None else ("group", group))
        groups.setdefault(key, []).append((shape, where))
    return [_instance(name, members, picture) for (name, _), members in groups.items()]


def _instance(name: str, shapes: list[tuple[dict[str, Any], str]], picture: Picture) -> Instance:
    kinds = {shape.get("shape_type") for shape, _ in shapes}
    if "mask" in kinds:
        return _from_masks(name, shapes, picture)
    polygons = [_polygon(shape, where) for shape, where in shapes]
    if kinds == {"rectangle"}:
        return Instance(name, box_around(polygons))
    return Instance(name, box_around(polygons), polygons, area_of(polygons) or None)


def _points(shape: dict[str, Any], where: str, least: int) -> list[tuple[float, float]]:
    points = shape["points"]
    if (
        not isinstance(points, list)
        or len(points) < least
        or any(not isinstance(point, list) or len(point) != 2 for point in points)
    ):
        raise UserError(f"{where} has not the {least} points that a {shape.get('shape_type')} needs: correct it")
    return [tuple(numbers(point, where)) for point in points]


def _polygon(shape: dict[str, Any], where: str) -> list[float]:
    """Return a shape's outline as x, y, x, y …"""
    kind = shape.get("shape_type")
    if kind == "circle":
        (x, y), edge = _points(shape, where, 2)[:2]
        radius = math.dist((x, y), edge)
        turns = [2 * math.pi * index / _CIRCLE_POINTS for index in range(_CIRCLE_POINTS)]
        return [value for turn in turns for value in (x + radius * math.cos(turn), y + radius * math.sin(turn))]
    if kind == "rectangle":
        (x1, y1), (x2, y2) = _points(shape, where, 2)[:2]
        return [x1, y1, x2, y1, x2, y2, x1, y2]
    return [value for point in _points(shape, where, 3) for value in point]


def _from_masks(name: str, shapes: list[tuple[dict[str, Any], str]], picture: Picture) -> Instance:
    """Return an object that labelme's assistant has segmented: pictures of masks at the first of their points."""
    import numpy as np
    from PIL import Image

    coco_mask = coco_masks()
    whole = np.zeros((picture.height, picture.width), np.uint8, order="F")
    for shape, where in shapes:
        left, top = (round(value) for value in _points(shape, where, 1)[0])
        try:
            with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise ValueError("too large")
                part = np.array(image) > 0
        except (KeyError, TypeError, ValueError, OSError, binascii.Error, Image.DecompressionBombError) as error:
            raise UserError(f"{where} has no mask that can be decoded: draw it anew") from error
        target = whole[max(top, 0) : top + part.shape[0], max(left, 0) : left + part.shape[1]]
        target |= part[max(-top, 0) :, max(-left, 0) :][: target.shape[0], : target.shape[1]]
    code = coco_mask.encode(whole)
    box, area = coco_mask.toBbox(code).tolist(), float(coco_mask.area(code))
    return Instance(name, tuple(box), {"size": code["size"], "counts": code["counts"].decode()}, area or None)
