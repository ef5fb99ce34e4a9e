"""COCO's JSON files, in the layouts of COCO, of Roboflow and of the annotation tools."""

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
    check_size,
    coco_masks,
    missing_pictures,
    numbers,
)
from .folder import Folder, checked_classes, some, split_of, stem


def is_coco(content: Any) -> bool:
    """Return whether the content of a JSON file is COCO's, with categories, as captions do not have them."""
    lists = isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "categories"))
    return lists and isinstance(content.get("annotations", []), list)


def read(folder: Folder) -> Description:
    """Read COCO's JSON files: one for each split, or one for all.

    Raises:
        UserError: a file is not as COCO's format requires, or the files do not go together.
    """
    problems: Problems = defaultdict(list)
    classes: dict[str, tuple[str, ...]] = {}
    splits = {}
    for split, name in _annotation_files(folder).items():
        content = folder.json(name)
        categories = _categories(content, folder / name)
        classes[name] = tuple(categories.values())
        splits[split] = _pictures(folder, split, name, content, categories, problems)
    first, *others = classes
    for other in others:
        for here, there in ((first, other), (other, first)):
            if lacking := sorted(set(classes[here]) - set(classes[there])):
                raise UserError(
                    f"the splits have different classes: {folder / here} has {some(lacking)}, which {folder / there} "
                    "lacks; give both files the same categories"
                )
    return Description(classes[first], splits, named_classes=True, problems=problems)


def _annotation_files(folder: Folder) -> dict[str, str]:
    """Return the annotation file of each split."""
    found = defaultdict(list)
    for name in folder.ending_in(".json"):
        content = folder.json(name)
        if is_coco(content) and "annotations" in content:  # COCO's lists of test images have none
            found[split_of(stem(name)) or split_of(posixpath.dirname(name)) or "train"].append(name)
    files = {}
    for split, names in found.items():
        # COCO has further files for each split, such as those of the key points.
        chosen = [name for name in names if posixpath.basename(name).startswith("instances")] or names
        if len(chosen) > 1:
            raise UserError(
                f"{folder.path} has several annotation files to {split} on ({some(chosen)}): keep one for each split, "
                "with train, val or test in its name"
            )
        files[split] = chosen[0]
    if not files:
        raise UserError(f"no JSON file in {folder.path} has COCO's list of annotations: add the annotations")
    return {split: files[split] for split in ("train", "val", "test") if split in files}


def _categories(content: dict[str, Any], path: object) -> dict[Any, str]:
    """Return the names of the classes by their ids, in the order of the ids."""
    try:
        categories = sorted(content["categories"], key=lambda category: category["id"])
        names = {category["id"]: category["name"] for category in categories}
    except (TypeError, KeyError) as error:
        raise UserError(f'{path} has a category without "id" or "name": it is not in COCO\'s format') from error
    checked_classes([category["name"] for category in categories], path)
    # Roboflow's files have a category 0 for all classes together, which no annotation has.
    first = categories[0]
    others = {category.get("supercategory") for category in categories[1:]}
    if first.get("supercategory") == "none" and others == {first["name"]}:
        used = any(annotation.get("category_id") == first["id"] for annotation in content["annotations"])
        if not used:
            del names[first["id"]]
    return names


def _pictures(
    folder: Folder, split: str, name: str, content: dict[str, Any], categories: dict[Any, str], problems: Problems
) -> list[Picture]:
    own = posixpath.dirname(name)
    alike = [path for path in folder.picture_folders if split_of(path) == split]
    folders = [own, *alike, "", *(path for path in folder.picture_folders if split_of(path) is None)]
    pictures: dict[Any, Picture] = {}
    absent = []
    for index, image in enumerate(content["images"]):
        where = f"{folder / name}: images[{index}]"
        file_name = _get(image, "file_name", where)
        if _get(image, "id", where) in pictures:
            raise UserError(f"{where} has the id {image['id']}, which another image has too: give each its own")
        found = folder.find(str(file_name), folders, where)
        if found is None:
            absent.append(str(file_name))
            continue
        picture = Picture(found, *folder.size_of(found))
        check_size(picture, image.get("width"), image.get("height"), where)
        pictures[image["id"]] = picture
    if absent:
        raise missing_pictures(absent, str(folder / name))
    for index, annotation in enumerate(content["annotations"]):
        where = f"{folder / name}: annotations[{index}]"
        picture = pictures.get(_get(annotation, "image_id", where))
        if picture is None:
            raise UserError(f"{where} is for the image {annotation['image_id']}, which the file does not list")
        if _get(annotation, "category_id", where) not in categories:
            raise UserError(f"{where} has the category {annotation['category_id']}, which the file does not list")
        if annotation.get("ignore"):
            problems["annotations that are marked to be ignored, left out"].append(picture.name)
            continue
        instance = _instance(annotation, picture, categories[annotation["category_id"]], where)
        add_instance(picture, instance, problems)
    return [*pictures.values()]


def _instance(annotation: dict[str, Any], picture: Picture, name: str, where: str) -> Instance:
    segmentation = _segmentation(annotation.get("segmentation"), picture, where)
    if annotation.get("bbox") or segmentation is None:
        box = numbers(_get(annotation, "bbox", where), f"{where} (bbox)")
        if len(box) != 4:
            raise UserError(f"{where} has the bbox {annotation['bbox']} instead of [x, y, width, height]: correct it")
    elif isinstance(segmentation, dict):
        mask = coco_masks()
        box = mask.toBbox(mask.frPyObjects(segmentation, picture.height, picture.width)).tolist()
    else:
        box = box_around(segmentation)
    area = annotation.get("area")
    if not isinstance(area, int | float) or area <= 0:  # MMDetection leaves out what has no area
        area = area_of(segmentation) if isinstance(segmentation, list) else None
    return Instance(name, tuple(box), segmentation, area or None, bool(annotation.get("iscrowd")))


def _segmentation(given: Any, picture: Picture, where: str) -> list[list[float]] | dict[str, Any] | None:
    if not given:
        return None
    if isinstance(given, dict):
        if not {"counts", "size"} <= given.keys() or tuple(given["size"]) != (picture.height, picture.width):
            raise UserError(
                f"{where} has a mask for another size than the {picture.width}×{picture.height} pixels of its picture: "
                "correct the annotation"
            )
        return given
    polygons = given if isinstance(given, list) and isinstance(given[0], list) else [given]
    polygons = [numbers(polygon, f"{where} (segmentation)") for polygon in polygons]
    if any(len(polygon) % 2 for polygon in polygons):
        raise UserError(f"{where} has a polygon with an odd number of coordinates: correct the annotation")
    return [polygon for polygon in polygons if len(polygon) >= 6] or None


def _get(entry: Any, key: str, where: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise UserError(f'{where} has no "{key}", which COCO\'s format requires: add it')
    if key != "bbox" and not isinstance(entry[key], int | str):
        raise UserError(
            f'{where} has the "{key}" {str(entry[key])[:50]}, where a number or a name is expected: correct it'
        )
    return entry[key]
