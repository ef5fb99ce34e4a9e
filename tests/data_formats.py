"""The same small data set, written in the formats that people have theirs in, as the tools of these formats do."""

import json
import shutil
from pathlib import Path

import cv2

from mmcare.data.sample import CLASSES, Recipe, prepare

RECIPE = Recipe(train_images=6, val_images=3)


def generated(root):
    """Return the sample data's pictures by split: each with its path, size, and objects as (class, bbox, polygons)."""
    coco = prepare(root, RECIPE) / "coco"
    splits = {}
    for split in ("train", "val"):
        content = json.loads((coco / f"annotations/instances_{split}2017.json").read_text())
        splits[split] = [
            {
                # Each name only once, as in most formats the folders of the splits do not tell pictures apart.
                "name": f"{split[0]}{image['id']}",
                "path": coco / f"{split}2017" / image["file_name"],
                "size": (image["width"], image["height"]),
                # Of an object in several parts only the largest, as YOLO and labelme have one polygon for an object.
                "objects": [
                    (CLASSES[one["category_id"] - 1], *_largest(one["segmentation"]))
                    for one in content["annotations"]
                    if one["image_id"] == image["id"]
                ],
            }
            for image in content["images"]
        ]
    return splits


def _largest(polygons):
    polygon = max(polygons, key=lambda one: cv2.contourArea(_points(one)))
    xs, ys = polygon[::2], polygon[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)], polygon


def _points(polygon):
    import numpy as np

    return np.array(polygon, np.float32).reshape(-1, 2)


def write(kind, folder, splits, classes=CLASSES):
    """Write a data set in a format: coco, roboflow, yolo, yolo-polygons, voc or labelme."""
    writer = {"coco": _coco, "roboflow": _roboflow, "yolo": _yolo, "yolo-polygons": _yolo, "voc": _voc}
    writer.get(kind, _labelme)(folder, splits, classes, **({"polygons": True} if kind == "yolo-polygons" else {}))
    return folder


def put(picture, folder):
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(picture["path"], folder / f"{picture['name']}.jpg")


def coco_content(pictures, classes, first_id=1):
    images, annotations = [], []
    for number, picture in enumerate(pictures):
        width, height = picture["size"]
        images.append({"id": number, "file_name": f"{picture['name']}.jpg", "width": width, "height": height})
        for name, box, polygon in picture["objects"]:
            mark = {"id": len(annotations), "image_id": number, "category_id": classes.index(name) + first_id}
            annotations.append({**mark, "bbox": box, "area": box[2] * box[3], "iscrowd": 0, "segmentation": [polygon]})
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, first_id)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _coco(folder, splits, classes):
    (folder / "annotations").mkdir(parents=True)
    for split, pictures in splits.items():
        for picture in pictures:
            put(picture, folder / f"{split}2017")
        content = coco_content(pictures, classes)
        (folder / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))


def _roboflow(folder, splits, classes):
    for split, pictures in splits.items():
        place = folder / {"val": "valid"}.get(split, split)
        for picture in pictures:
            put(picture, place)
        content = coco_content(pictures, classes)
        content["categories"] = [{**one, "supercategory": "things-x1"} for one in content["categories"]]
        content["categories"].insert(0, {"id": 0, "name": "things-x1", "supercategory": "none"})
        (place / "_annotations.coco.json").write_text(json.dumps(content))


def _yolo(folder, splits, classes, polygons=False):
    for split, pictures in splits.items():
        (folder / "labels" / split).mkdir(parents=True)
        for picture in pictures:
            put(picture, folder / "images" / split)
            width, height = picture["size"]
            lines = []
            for name, (x, y, w, h), polygon in picture["objects"]:
                box = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
                values = [value / (width, height)[i % 2] for i, value in enumerate(polygon)] if polygons else box
                lines.append(" ".join([str(classes.index(name)), *(f"{value:.6f}" for value in values)]))
            (folder / "labels" / split / f"{picture['name']}.txt").write_text("\n".join(lines) + "\n")
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(classes))
    (folder / "data.yaml").write_text(f"path: ../datasets/mine\ntrain: images/train\nval: images/val\nnames:\n{names}")


def _voc(folder, splits, classes):
    for part in ("Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for split, pictures in splits.items():
        listed = "".join(f"{picture['name']}\n" for picture in pictures)
        (folder / f"ImageSets/Main/{split}.txt").write_text(listed)
        for picture in pictures:
            put(picture, folder / "JPEGImages")
            objects = "".join(voc_object(name, *box) for name, box, _ in picture["objects"])
            width, height = picture["size"]
            size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
            content = f"<annotation><filename>{picture['name']}.jpg</filename>{size}{objects}</annotation>"
            (folder / f"Annotations/{picture['name']}.xml").write_text(content)
    (folder / "classes.txt").write_text("\n".join(classes))


def voc_object(name, x, y, width, height, difficult=0):
    edges = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
    box = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges.items())
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"


def _labelme(folder, splits, classes):
    for split, pictures in splits.items():
        for picture in pictures:
            put(picture, folder / split)
            shapes = [
                labelme_shape(name, [polygon[i : i + 2] for i in range(0, len(polygon), 2)])
                for name, _, polygon in picture["objects"]
            ]
            write_labelme(folder / split / f"{picture['name']}.json", picture, shapes)
    (folder / "classes.txt").write_text("\n".join(classes))


def labelme_shape(label, points, shape_type="polygon", group_id=None, **more):
    return {"label": label, "points": points, "shape_type": shape_type, "group_id": group_id, "flags": {}, **more}


def write_labelme(path, picture, shapes):
    width, height = picture["size"]
    named = {"imagePath": f"{picture['name']}.jpg", "imageWidth": width, "imageHeight": height, "imageData": None}
    path.write_text(json.dumps({"version": "5.5.0", "flags": {}, "shapes": shapes, **named}))


def write_label_maps(folder, root: Path):
    """Write pictures and label maps as ADE20K's, where 0 is unlabelled, and the classes' names."""
    made = prepare(root, RECIPE) / "ade/ADEChallengeData2016"
    for kind, target in (("images", "images"), ("annotations", "masks")):
        shutil.copytree(made / kind, folder / target)
    return folder
