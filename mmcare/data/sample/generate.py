"""The sample data on disk: one set of pictures in the formats of COCO 2017 and ADE20K, made from a :class:`Recipe`.

::

    data/sample/<fingerprint>/
        coco/annotations/instances_{train,val}2017.json
        coco/{train,val}2017/000000000001.jpg
        ade/ADEChallengeData2016/images/{training,validation}/ADE_{train,val}_00000001.jpg
        ade/ADEChallengeData2016/annotations/{training,validation}/ADE_{train,val}_00000001.png
        classification/{train,val}/<class>/000000000001_1.jpg

The fingerprint is a hash of the recipe and of the drawing code, so outdated data is never used after a change. The
folder is renamed to its final name when it is complete, so any folder with that name can be used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ...errors import UserError
from .scene import SPLITS, Recipe, Scene, Split, draw_scene

_DEFAULT_RECIPE = Recipe()
_MARKER = ".mmcare-sample.json"
_SOURCES = ("generate.py", "scene.py")
_ADE_FOLDERS: dict[Split, str] = {"train": "training", "val": "validation"}
_TEMPORARY = re.compile(r"\.making-(?P<host>.*)-(?P<pid>\d{1,9})-[0-9a-f]{32}")
# Far longer than making the data takes: older temporary folders are leftovers.
_TEMPORARY_LIFETIME_SECONDS = 3600


def prepare(root: str | Path = "data/sample", recipe: Recipe = _DEFAULT_RECIPE) -> Path:
    """Return the folder below ``root`` with the data set of ``recipe``; make it first if it does not exist.

    Making it takes seconds and prints one line to stderr. It also removes the data sets of other recipes below
    ``root``, and leftovers of killed processes. Several processes may call this at the same time.

    Raises:
        UserError: ``root`` is not writable, or something else has the name of the folder.
    """
    root = Path(root)
    final = root / fingerprint(recipe)
    try:
        _clear_leftovers(root)
        if not _is_complete(final):
            _make(root, final, recipe)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"the sample data cannot be written to {root} ({reason}): give a writable folder") from error
    return final


def fingerprint(recipe: Recipe) -> str:
    """Return the name of the folder for ``recipe``: it changes with the recipe and the code that makes the data."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(recipe), sort_keys=True).encode())
    for name in _SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:12]


def _make(root: Path, final: Path, recipe: Recipe) -> None:
    start = time.perf_counter()
    temporary = _temporary_path(root)
    try:
        temporary.mkdir(parents=True)
        _write_dataset(temporary, recipe)
        _publish(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _remove_stale(root, final)
    images = sum(recipe.images(split) for split in SPLITS)
    seconds = time.perf_counter() - start
    print(f"Made the sample data, {images} images, in {seconds:.1f} s: {final}", file=sys.stderr)


def _publish(temporary: Path, final: Path) -> None:
    """Rename the finished folder to its final name, unless another process was faster."""
    # In this order: a folder that another process puts there in between is complete and stays.
    if (final / _MARKER).is_file() and not _is_complete(final):  # made by mmcare, but files have been deleted from it
        _remove(final)
    try:
        os.rename(temporary, final)
    except OSError as error:
        if _is_complete(final):
            return
        if final.exists():
            raise UserError(f"{final} is not a sample data set that mmcare made: move it away") from error
        raise


def _is_complete(folder: Path) -> bool:
    try:
        marker = json.loads((folder / _MARKER).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False
    return marker["files"] == _count_files(folder)


def _count_files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def _temporary_path(root: Path) -> Path:
    return root / f".making-{platform.node()}-{os.getpid()}-{uuid.uuid4().hex}"


def _clear_leftovers(root: Path) -> None:
    """Remove unfinished data sets of killed processes below ``root``."""
    for folder in _subfolders(root):
        name = _TEMPORARY.fullmatch(folder.name)
        if name and _is_abandoned(folder, name["host"], int(name["pid"])):
            shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path, host: str, pid: int) -> bool:
    # For a process on another machine, or in another container, that shares the folder, only its age is known.
    if host == platform.node() and not _is_running(pid):
        return True
    try:
        return time.time() - folder.stat().st_mtime > _TEMPORARY_LIFETIME_SECONDS
    except FileNotFoundError:
        return False


def _is_running(pid: int) -> bool:
    if os.name == "nt":  # on Windows os.kill would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove_stale(root: Path, final: Path) -> None:
    """Remove the data sets of other recipes, which have a marker file."""
    for folder in _subfolders(root):
        if folder != final and not _TEMPORARY.fullmatch(folder.name) and (folder / _MARKER).is_file():
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a finished data set; rename it first, so that no incomplete folder has its name."""
    doomed = _temporary_path(folder.parent)
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        os.rename(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _subfolders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]


def _write_dataset(folder: Path, recipe: Recipe) -> None:
    ids = {"image": 1, "annotation": 1}  # unique over both splits, as in COCO
    for split in SPLITS:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(recipe.images(split)):
            scene = draw_scene(recipe, split, index)
            file_name = _write_pictures(folder, split, index, scene, recipe)
            height, width = scene.labels.shape
            images.append({"id": ids["image"], "file_name": file_name, "height": height, "width": width})
            for item in scene.objects:
                annotation = {"id": ids["annotation"], "image_id": ids["image"], "category_id": item.kind + 1}
                annotations.append(annotation | describe_mask(item.mask))
                ids["annotation"] += 1
            ids["image"] += 1
        _write_json(folder / f"coco/annotations/instances_{split}2017.json", _coco(images, annotations, recipe))
    _write_json(folder / _MARKER, {"files": _count_files(folder) + 1, "recipe": dataclasses.asdict(recipe)})


def _write_pictures(folder: Path, split: Split, index: int, scene: Scene, recipe: Recipe) -> str:
    """Write a scene's image, its label map and the crops of its objects; return the image's file name in COCO."""
    file_name = f"{index + 1:012d}.jpg"
    ade = folder / "ade/ADEChallengeData2016"
    ade_name = f"{_ADE_FOLDERS[split]}/ADE_{split}_{index + 1:08d}"
    jpeg = _jpeg(scene.image)
    _write(folder / f"coco/{split}2017" / file_name, jpeg)
    _write(ade / f"images/{ade_name}.jpg", jpeg)
    _write(ade / f"annotations/{ade_name}.png", cv2.imencode(".png", scene.labels)[1].tobytes())
    for number, item in enumerate(scene.objects, start=1):
        crop = folder / f"classification/{split}/{recipe.classes[item.kind]}/{index + 1:012d}_{number}.jpg"
        _write(crop, _jpeg(_crop(scene.image, item.mask)))
    return file_name


def _jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def _crop(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return a square of the image, a quarter larger than the box of a visible mask, with the box in the middle.

    Where the square leaves the image, it is moved inside, and where it is too large, it is as large as the image.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    side = round(1.25 * max(rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]))
    slices = []
    for inside, size in ((rows, image.shape[0]), (columns, image.shape[1])):
        length = min(side, size)
        start = min(max((inside[0] + inside[-1] + 1 - length) // 2, 0), size - length)
        slices.append(slice(start, start + length))
    return image[tuple(slices)]


def _coco(images: list[dict[str, Any]], annotations: list[dict[str, Any]], recipe: Recipe) -> dict[str, Any]:
    categories = [{"id": i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(recipe.classes)]
    return {
        "info": {"description": "Generated sample data of mmcare"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _write(path, json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def describe_mask(mask: np.ndarray) -> dict[str, Any]:
    """Return COCO's fields for a visible mask (H, W) without holes: polygons, tight box and area, in pixels."""
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return {
        "segmentation": _polygons(mask),
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "area": int(mask.sum()),
        "iscrowd": 0,
    }


def _polygons(mask: np.ndarray) -> list[list[int]]:
    """Return the outline of each part of ``mask`` along the pixel edges, as x, y, x, y …"""
    # OpenCV's contours run through pixel centres. With every pixel doubled, the two pixels of a pair correspond to its
    # two edges, and (i + 1) // 2 is the position of the edge.
    doubled = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [_corners((contour[:, 0] + 1) // 2).reshape(-1).tolist() for contour in contours]


def _corners(path: np.ndarray) -> np.ndarray:
    """Return the points (N, 2) of a closed path at which it turns."""
    path = path[(path != np.roll(path, 1, axis=0)).any(axis=1)]
    before = path - np.roll(path, 1, axis=0)
    after = np.roll(path, -1, axis=0) - path
    return path[(before != after).any(axis=1)]
