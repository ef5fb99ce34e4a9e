"""Label maps for segmentation: those of the data set, and those drawn from its polygons."""

from __future__ import annotations

import posixpath
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UserError
from .description import Description, Picture, coco_masks, missing_pictures
from .folder import PICTURES, Folder, index_of_images, split_of

if TYPE_CHECKING:
    import numpy as np

IGNORED = 255
"""The label of pixels that do not count, as in MMSegmentation."""

_FOLDERS = ("masks", "mask", "annotations", "annotation", "labels", "label", "label_maps", "ann_dir", "gt")
_ENDINGS = (".png", "_mask.png", ".bmp", ".tif", ".tiff")


def label_maps(folder: Folder) -> list[str]:
    """Return the pictures that are label maps: those in folders beside the pictures' that are named for it."""
    return [name for name in folder.ending_in(*_ENDINGS) if _is_label_map(name)]


def read(folder: Folder) -> Description:
    """Read pictures with label maps, and ``classes.txt``.

    Raises:
        UserError: the files do not go together.
    """
    classes = folder.classes()
    if classes is None:
        raise UserError(
            f"{folder.path} has label maps but no classes.txt: add it, with the names of the classes, one a line"
        )
    splits: dict[str, list[Picture]] = {}
    maps = set(label_maps(folder))
    used = set()
    for name in folder.pictures:
        if name in maps or index_of_images(name.split("/")[:-1]) is None:
            continue
        label_map = next((path for path in _candidates(name) if path in maps), None)
        if label_map is None:
            continue
        used.add(label_map)
        picture = Picture(name, *folder.size_of(name), label_map=label_map)
        splits.setdefault(split_of(posixpath.dirname(name)) or "train", []).append(picture)
    if unused := sorted(maps - used):
        raise missing_pictures(unused, str(folder.path))
    return Description(classes, splits, named_classes=True)


def places(picture: Picture) -> tuple[str, str, str, str, str]:
    """Return where MMSegmentation finds a picture and its label map.

    Returns:
        The folder and the ending of the pictures, the folder and the ending of the label maps, and the name between.
    """
    parts = picture.name.split("/")
    index = index_of_images(parts[:-1])
    middle, suffix = posixpath.splitext("/".join(parts[index + 1 :]))
    folder = "/".join(picture.label_map.split("/")[: index + 1])
    return "/".join(parts[: index + 1]), suffix, folder, picture.label_map[len(f"{folder}/{middle}") :], middle


def examine(folder: Folder, picture: Picture) -> dict[int, int]:
    """Return how many pixels of a picture's label map have each label.

    Raises:
        UserError: the label map cannot be read or does not fit its picture.
    """
    import numpy as np
    from PIL import Image

    path = folder / picture.label_map
    folder.size_of(picture.label_map)  # refuses what is not a picture, and what is too large
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                labels = np.array(image)
    except Exception as error:  # Pillow's decoders raise many kinds
        raise UserError(f"the label map {path} cannot be decoded, as the file is damaged: replace it") from error
    if labels.ndim != 2:
        raise UserError(
            f"the label map {path} has {labels.shape[2]} channels, as a picture in colours: it must have one, with the "
            "number of the class in each pixel"
        )
    if labels.shape != (picture.height, picture.width):
        raise UserError(
            f"the label map {path} has {labels.shape[1]}×{labels.shape[0]} pixels, but its picture {picture.name} "
            f"{picture.width}×{picture.height} after any EXIF rotation: correct one of the two"
        )
    values, counts = np.unique(labels, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def draw(picture: Picture, classes: Sequence[str], background: bool) -> np.ndarray:
    """Return the label map (H, W), 8 bits, of a picture's polygons: larger objects first, so that none is hidden.

    Args:
        picture: the picture, whose objects have polygons or masks.
        classes: the names of the classes in the order of their labels.
        background: whether pixels without an object have the label 0; otherwise they do not count.
    """
    import numpy as np

    mask = coco_masks()
    labels = np.full((picture.height, picture.width), 0 if background else IGNORED, np.uint8)
    for instance in sorted(picture.instances, key=lambda one: -(one.area or one.box[2] * one.box[3])):
        codes = mask.frPyObjects(instance.segmentation, picture.height, picture.width)
        code = mask.merge(codes) if isinstance(codes, list) else codes
        labels[mask.decode(code) > 0] = classes.index(instance.name)
    return labels


def write(path: Path, labels: np.ndarray) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path, format="PNG")


def _is_label_map(name: str) -> bool:
    parts = name.split("/")[:-1]
    return any(part.lower() in _FOLDERS for part in parts) and index_of_images(parts) is None


def _candidates(name: str) -> list[str]:
    """Return the names that a picture's label map may have."""
    parts = name.split("/")
    index = index_of_images(parts[:-1])
    suffix = next(ending for ending in PICTURES if name.lower().endswith(ending))
    middle = "/".join(parts[index + 1 :])[: -len(suffix)]
    start = "/".join(parts[:index])
    return [f"{start}/{kind}/{middle}{ending}".lstrip("/") for kind in _FOLDERS for ending in _ENDINGS]
