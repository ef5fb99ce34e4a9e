"""A contact sheet of the sample data with its annotations."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .palettes import PALETTE, SEMANTIC_PALETTE

_ROWS, _COLUMNS = 4, 6
_CELL = 190
_ZOOM = 2


def draw_contact_sheet(folder: Path) -> np.ndarray:
    """Draw the first validation images of a data set: each plain, with its objects, and as a label map.

    Args:
        folder: the folder of the data set, from :func:`mmcare.data.sample.prepare`.

    Returns:
        The picture, (H, W, 3), BGR, 8 bits. Black pixels of a label map are unlabelled.
    """
    coco = json.loads((folder / "coco/annotations/instances_val2017.json").read_text())
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in coco["annotations"]:
        by_image[annotation["image_id"]].append(annotation)

    names = {category["id"]: category["name"] for category in coco["categories"]}
    cells = [_cell(folder, image, by_image[image["id"]], names) for image in coco["images"][: _ROWS * _COLUMNS]]
    cells += [np.zeros_like(cells[0])] * (_ROWS * _COLUMNS - len(cells))
    return np.vstack([np.hstack(cells[i : i + _COLUMNS]) for i in range(0, _ROWS * _COLUMNS, _COLUMNS)])


def _cell(folder: Path, image: dict[str, Any], annotations: list[dict[str, Any]], names: dict[int, str]) -> np.ndarray:
    number = int(Path(image["file_name"]).stem)
    plain = cv2.imread(str(folder / "coco/val2017" / image["file_name"]))
    labels = cv2.imread(
        str(folder / f"ade/ADEChallengeData2016/annotations/validation/ADE_val_{number:08d}.png"), cv2.IMREAD_UNCHANGED
    )
    palette = np.array([(0, 0, 0), *SEMANTIC_PALETTE], np.uint8)[:, ::-1]
    larger = cv2.resize(plain, None, fx=_ZOOM, fy=_ZOOM, interpolation=cv2.INTER_NEAREST)
    views = [
        larger,
        _annotated(larger, annotations, names),
        palette[labels].repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1),
    ]
    return np.vstack([_padded(view, _CELL * _ZOOM) for view in views])


def _annotated(picture: np.ndarray, annotations: list[dict[str, Any]], names: dict[int, str]) -> np.ndarray:
    picture = picture.copy()
    for annotation in annotations:
        name = names[annotation["category_id"]]
        colour = PALETTE[annotation["category_id"] - 1][::-1]
        for polygon in annotation["segmentation"]:
            cv2.polylines(picture, [np.array(polygon).reshape(-1, 2) * _ZOOM], True, colour, 1)
        x, y, width, height = (round(length * _ZOOM) for length in annotation["bbox"])
        cv2.rectangle(picture, (x, y), (x + width - 1, y + height - 1), (255, 255, 255), 1)
        cv2.putText(picture, name, (x + 2, y + 11), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 3)
        cv2.putText(picture, name, (x + 2, y + 11), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1)
    return picture


def _padded(picture: np.ndarray, side: int) -> np.ndarray:
    height, width = picture.shape[:2]
    return cv2.copyMakeBorder(picture, 0, side - height, 0, side - width, cv2.BORDER_CONSTANT, value=(255, 255, 255))
