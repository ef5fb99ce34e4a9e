"""Pascal VOC's XML files, one for each picture."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from typing import TYPE_CHECKING

from ...errors import UserError
from .description import Description, Instance, Picture, Problems, add_instance, check_size, missing_pictures, numbers
from .folder import Folder, split_of, stem

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def read(folder: Folder) -> Description:
    """Read a data set in Pascal VOC's format. Its classes are those in ``classes.txt``, or those that occur.

    Raises:
        UserError: a file cannot be read or is not as the format requires.
    """
    problems: Problems = defaultdict(list)
    splits = {}
    absent = []
    for split, names in _splits(folder).items():
        splits[split] = pictures = []
        for name in names:
            picture = folder.picture_of(name)
            if picture is None:
                absent.append(name)
            else:
                pictures.append(_picture(folder, name, Picture(picture, *folder.size_of(picture)), problems))
    if absent:
        raise missing_pictures(absent, str(folder.path))
    return described(folder, splits, problems)


def described(folder: Folder, splits: dict[str, list[Picture]], problems: Problems) -> Description:
    """Return the description of a data set in a format that has no list of classes.

    Raises:
        UserError: a class occurs that ``classes.txt`` does not name.
    """
    description = Description(folder.classes() or (), splits, bool(folder.classes()), problems)
    occurring = sorted({instance.name for instance in description.instances()})
    if not description.named_classes:
        description.classes = tuple(occurring)
    elif unknown := [name for name in occurring if name not in description.classes]:
        raise UserError(
            f"{folder.path} has objects of the class {unknown[0]}, which its classes.txt does not name: add it"
        )
    return description


def _splits(folder: Folder) -> dict[str, list[str]]:
    """Return the annotation files of each split, by the lists in ``ImageSets/Main`` or by the folders."""
    files = {stem(name): name for name in folder.ending_in(".xml")}
    lists = {split: f"ImageSets/Main/{split}.txt" for split in ("train", "val", "test")}
    if lists["train"] not in folder.files:
        lists["train"] = "ImageSets/Main/trainval.txt"
    if lists["train"] not in folder.files:
        splits: dict[str, list[str]] = {}
        for name in folder.ending_in(".xml"):
            splits.setdefault(split_of(posixpath.dirname(name)) or "train", []).append(name)
        return splits
    splits = {}
    for split, path in lists.items():
        listed = (
            [line.split()[0] for line in folder.text(path).splitlines() if line.strip()] if path in folder.files else []
        )
        if lacking := [name for name in listed if name not in files]:
            raise UserError(
                f"{folder / path} lists {lacking[0]}, and there is no {lacking[0]}.xml: add it, or take it out"
            )
        if listed:
            splits[split] = [files[name] for name in listed]
    return splits


def _picture(folder: Folder, name: str, picture: Picture, problems: Problems) -> Picture:
    path = str(folder / name)
    root = _parse(folder, name)
    size = [root.findtext(f"size/{side}") for side in ("width", "height")]
    if all(size):
        check_size(picture, *map(int, numbers(size, f"{path} (size)")), path)
    for index, element in enumerate(root.findall("object"), start=1):
        add_instance(picture, _instance(element, f"object {index} of {path}"), problems)
    return picture


def _parse(folder: Folder, name: str) -> Element:
    try:
        from defusedxml import DefusedXmlException
        from defusedxml.ElementTree import ParseError, fromstring
    except ImportError as error:
        raise UserError("reading Pascal VOC's XML needs defusedxml: pip install mmcare[data]") from error
    try:
        # Bytes, as the XML declaration may name an encoding.
        root = fromstring((folder / name).read_bytes())
    except (ParseError, LookupError, ValueError, OSError) as error:
        forbidden = isinstance(error, DefusedXmlException)
        reason = "it defines entities, which are not expanded" if forbidden else error
        raise UserError(f"{folder / name} cannot be read as XML ({reason}): replace it, or remove it") from error
    if root.tag != "annotation":
        raise UserError(f"{folder / name} has <{root.tag}> where Pascal VOC has <annotation>: remove the file")
    return root


def _instance(element: Element, where: str) -> Instance:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise UserError(f"{where} has no name: add its class")
    edges = [element.findtext(f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
    if None in edges:
        raise UserError(f"{where} has no bndbox with xmin, ymin, xmax and ymax: add them")
    left, top, right, bottom = numbers(edges, where)
    # The first and the last pixel, counted from 1: so the left edge of the first one is at xmin - 1, and the right edge
    # of the last one at xmax. MMDetection's own XMLDataset takes 1 from all four, and loses a column and a row.
    box = (left - 1, top - 1, right - left + 1, bottom - top + 1)
    return Instance(name, box, crowd=(element.findtext("difficult") or "0").strip() == "1")
