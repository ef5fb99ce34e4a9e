"""YOLO's text files: a line for each box or polygon, in fractions of the picture's size, and a ``data.yaml``."""

from __future__ import annotations

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
    missing_pictures,
    numbers,
)
from .folder import Folder, checked_classes, index_of_images, split_of, stem

_DECIMALS = 2
"""Decimals of a pixel that are kept. COCO's own annotations have two. YOLO's files have six decimals of the picture's
size, so that what was written from whole pixels, or hundredths, is that again in pictures of up to 6,600 pixels."""
_TOLERANCE = 1e-4
"""By how much a number may be above 1 or below 0, from rounding."""


def find_settings(folder: Folder) -> str | None:
    """Return the name of ``data.yaml``, which may have another name; None if there is none."""
    names = [name for name in folder.ending_in(".yaml", ".yml") if "/" not in name]
    named = [name for name in names if stem(name) in ("data", "dataset")] or names
    return named[0] if named else None


def label_files(folder: Folder) -> list[str]:
    """Return the text files in folders called ``labels``."""
    return [name for name in folder.ending_in(".txt") if "labels" in name.split("/")[:-1] and stem(name) != "classes"]


def read(folder: Folder) -> Description:
    """Read a data set in YOLO's format.

    Raises:
        UserError: a file is not as the format requires, or a box is not in its picture.
    """
    problems: Problems = defaultdict(list)
    name = find_settings(folder)
    if name is None:
        settings: dict[str, Any] = {}
        classes = folder.classes()
        if classes is None:
            raise UserError(f"{folder.path} has YOLO's labels but no data.yaml: add it, with the classes as names")
    else:
        settings = _settings(folder, name)
        classes = _classes(settings.get("names"), folder / name)
    splits = {}
    for split, names in _splits(folder, settings, folder / name if name else folder.path, problems).items():
        splits[split] = [_picture(folder, picture, classes, problems) for picture in names]
    stems = {_label_file(picture) for picture in folder.pictures}
    orphans = [label for label in label_files(folder) if label not in stems]
    if orphans:
        raise missing_pictures(orphans, str(folder.path))
    return Description(classes, splits, named_classes=True, problems=problems)


def _settings(folder: Folder, name: str) -> dict[str, Any]:
    import yaml

    try:
        settings = yaml.safe_load(folder.text(name))
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{folder / name} is not YAML ({reason}): correct it") from error
    if not isinstance(settings, dict) or "names" not in settings:
        raise UserError(f"{folder / name} has no names: add the names of the classes")
    return settings


def _classes(names: Any, path: object) -> tuple[str, ...]:
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise UserError(f"{path} numbers the classes {[*names][:5]}…: number them from 0 on, without gaps")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list):
        raise UserError(f"{path} has names: {names!r}, where a list of the classes is expected: correct it")
    return checked_classes([str(name) for name in names], path)


def _splits(folder: Folder, settings: dict[str, Any], path: object, problems: Problems) -> dict[str, list[str]]:
    """Return the pictures of each split: those that data.yaml names, or those in the folders of the splits."""
    if "train" not in settings:
        splits: dict[str, list[str]] = {}
        for picture in folder.pictures:
            splits.setdefault(split_of(posixpath.dirname(picture)) or "train", []).append(picture)
        return splits
    splits = {}
    for split, key in (("train", "train"), ("val", "val"), ("val", "valid"), ("test", "test")):
        entries = settings.get(key) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            found = _listed(folder, str(settings.get("path") or ""), str(entry))
            if found is None and split == "train":
                raise UserError(
                    f"{path} says {key}: {entry}, which is not a folder or list of pictures in {folder.path}"
                )
            if found is None:
                problems["splits that data.yaml names and that do not exist"].append(f"{key}: {entry}")
            else:
                splits.setdefault(split, []).extend(found)
    return splits


def _listed(folder: Folder, root: str, entry: str) -> list[str] | None:
    """Return the pictures in a folder or in a list of files; None if there is none.

    The paths in data.yaml are often those of another machine, or start one folder higher, as in Roboflow's
    ``../train/images``: they are shortened from the left until they fit, and never lead out of the data folder.
    """
    parts = [part for part in f"{root}/{entry}".replace("\\", "/").split("/") if part not in ("", ".", "..")]
    for start in range(len(parts) + (entry in (".", "./"))):
        path = "/".join(parts[start:])
        if path.endswith(".txt") and path in folder.files:
            return _pictures_in_list(folder, path)
        if found := folder.below(path):
            return found
    return None


def _pictures_in_list(folder: Folder, name: str) -> list[str]:
    lines = [line.strip() for line in folder.text(name).splitlines()]
    found = {line: folder.find(line, ["", posixpath.dirname(name)], str(folder / name)) for line in lines if line}
    if absent := [line for line, picture in found.items() if picture is None]:
        raise missing_pictures(absent, str(folder / name))
    return [*found.values()]


def _label_file(picture: str) -> str:
    """Return the name of a picture's text file: in ``labels`` instead of ``images``, or beside it."""
    parts = picture.split("/")
    index = index_of_images(parts[:-1])
    if index is not None:
        parts[index] = "labels"
    return posixpath.splitext("/".join(parts))[0] + ".txt"


def _picture(folder: Folder, name: str, classes: tuple[str, ...], problems: Problems) -> Picture:
    picture = Picture(name, *folder.size_of(name))
    label_file = _label_file(name)
    if label_file not in folder.files:
        label_file = posixpath.splitext(name)[0] + ".txt"
    if label_file not in folder.files:
        return picture  # YOLO's way to say that there is no object
    for number, line in enumerate(folder.text(label_file).splitlines(), start=1):
        if line.strip():
            instance = _instance(line, picture, classes, f"line {number} of {folder / label_file}")
            add_instance(picture, instance, problems)
    return picture


def _instance(line: str, picture: Picture, classes: tuple[str, ...], where: str) -> Instance:
    label, *values = numbers(line.split(), where)
    if label != int(label) or not 0 <= label < len(classes):
        raise UserError(f"{where} has the class {label:g}, but data.yaml names {len(classes)} classes, from 0 on")
    is_polygon = len(values) >= 6 and not len(values) % 2
    if len(values) != 4 and not is_polygon:
        raise UserError(
            f"{where} has {len(values)} numbers after the class: a box has 4 (centre x, centre y, width, height), a "
            "polygon 6 or more, x and y in turn"
        )
    outside = [value for value in values if not -_TOLERANCE <= value <= 1 + _TOLERANCE]
    if outside:
        raise UserError(
            f"{where} has {outside[0]:g}, which is not from 0 to 1: YOLO's numbers are fractions of the size"
        )
    name = classes[int(label)]
    if is_polygon:
        size = (picture.width, picture.height)
        polygon = [_pixels(value, size[index % 2]) for index, value in enumerate(values)]
        return Instance(name, box_around([polygon]), [polygon], area_of([polygon]) or None)
    x, y, width, height = values
    left, right = (_pixels(x + side * width / 2, picture.width) for side in (-1, 1))
    top, bottom = (_pixels(y + side * height / 2, picture.height) for side in (-1, 1))
    return Instance(name, (left, top, round(right - left, _DECIMALS), round(bottom - top, _DECIMALS)))


def _pixels(fraction: float, size: int) -> float:
    return round(fraction * size, _DECIMALS) + 0.0  # adding turns -0.0 into 0.0
