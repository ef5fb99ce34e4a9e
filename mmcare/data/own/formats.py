"""Telling which format a data folder has."""

from __future__ import annotations

import posixpath
from collections.abc import Callable

from ...errors import UserError
from . import coco, label_maps, labelme, voc, yolo
from .description import Description
from .folder import Folder, count

_READERS: dict[str, tuple[str, Callable[[Folder], Description]]] = {
    "coco": ("COCO's JSON", coco.read),
    "yolo": ("YOLO's text files", yolo.read),
    "voc": ("Pascal VOC's XML", voc.read),
    "labelme": ("labelme's JSON", labelme.read),
    "label-maps": ("label maps", label_maps.read),
}
FORMATS = tuple(_READERS)
"""The values of ``--format``."""


def read(folder: Folder, name: str | None, task: str) -> tuple[str, Description]:
    """Read a data set.

    Args:
        folder: the data folder.
        name: one of :data:`FORMATS`; None to tell it by the files.
        task: ``"detection"`` or ``"segmentation"``.

    Returns:
        The name of the format for people, and the data set.

    Raises:
        UserError: there are annotations in no format or in several, or they cannot be used.
    """
    found = _recognize(folder)
    maps = found.pop("label-maps", None) if task == "detection" else None
    if maps and (name == "label-maps" or (name is None and not found)):
        raise UserError(
            f"{folder.path} has label maps ({maps}), which are for segmentation, and this config detects: train a "
            "segmentor such as segmentation/semantic_fpn_care_s1, or add boxes or polygons"
        )
    if name is None and len(found) > 1:
        (first, one), (second, other) = [*found.items()][:2]
        raise UserError(
            f"{folder.path} has annotations in two formats, {_READERS[first][0]} ({one}) and {_READERS[second][0]} "
            f"({other}): choose one with --format {first} or --format {second}"
        )
    if name is None and not found:
        known = ", ".join(text for key, (text, _) in _READERS.items() if task == "segmentation" or key != "label-maps")
        raise UserError(
            f"{folder.path} has {count(len(folder.pictures), 'picture')} and no annotations that can be read "
            f"({known}): docs/own-data.md shows how the files have to lie"
        )
    name = name or next(iter(found))
    if name not in found:
        raise UserError(f"{folder.path} has no {_READERS[name][0]}, which --format {name} asks for")
    description = _READERS[name][1](folder)
    if not any(description.splits.values()):
        raise UserError(f"{folder.path} has {_READERS[name][0]} but no picture that they belong to: add the pictures")
    used = {file for found in description.splits.values() for one in found for file in (one.name, one.label_map)}
    if unused := [picture for picture in folder.pictures if picture not in used]:
        description.problems["pictures without annotations, not used"] = unused
    return _READERS[name][0], description


def _recognize(folder: Folder) -> dict[str, str]:
    """Return the formats of the annotations in a folder, each with the name of a file."""
    found: dict[str, str] = {}
    unknown = []
    for name in folder.ending_in(".json"):
        content = folder.json(name)
        if coco.is_coco(content):
            found.setdefault("coco", name)
        elif labelme.is_labelme(content):
            found.setdefault("labelme", name)
        else:
            unknown.append(name)
    if names := [*filter(None, [yolo.find_settings(folder)]), *yolo.label_files(folder)]:
        found["yolo"] = names[0]
    if names := folder.ending_in(".xml"):
        found["voc"] = names[0]
    if names := label_maps.label_maps(folder):
        found["label-maps"] = names[0]
    for name in unknown:
        expected = "annotations" in name.split("/")[:-1] or name.endswith("coco.json") or folder.picture_of(name)
        other_lists = "coco" in found and posixpath.basename(name).startswith(("captions", "panoptic"))
        if (expected or not found) and not other_lists:
            raise UserError(
                f"{folder / name} is neither COCO's JSON (with images, annotations and categories) nor labelme's (with "
                "shapes and imagePath): correct it, or remove it"
            )
    return found
