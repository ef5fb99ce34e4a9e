"""Data that a run cannot use, told in one sentence that names the file.

MMEngine, mmcv and the two libraries above them end in a stack trace from inside a decoder, a resize or a loss, and
often in a worker process, where nothing says which of 100,000 files it was. What they accept they go on accepting:
boxes without area or outside the image, crowd regions, images without annotations, and gray, palette, 16-bit and
transparent images.

Everything here hangs on the Runner and its datasets, not on the config and not on classes, so that it holds for
whatever transforms a config names, and in worker processes however they are started.
"""

from __future__ import annotations

import functools
import json
import os
import traceback
from collections.abc import Iterator
from typing import Any, TypeVar

import cv2
import numpy as np
from mmcv.transforms import LoadAnnotations, LoadImageFromFile
from mmengine.dataset import Compose
from mmengine.runner import Runner
from torch.nn import ModuleList

from ..errors import UserError

AnyRunner = TypeVar("AnyRunner", bound=Runner)

_DECODING = (OSError, SyntaxError, cv2.error)
"""What Pillow and OpenCV raise for a file that they cannot decode."""

_REMEDY = "replace it, or take it out of the data set"

_COCO = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area"),
    "categories": ("id", "name"),
}
"""The lists of an annotation file in COCO's format, with what MMDetection reads of each entry."""


def name_bad_data(runner: AnyRunner) -> AnyRunner:
    """Makes a Runner name the file when its data cannot be used; call it before training or testing.

    Once its dataloaders are built, a :class:`UserError` is raised by

    - the building, for an annotation file that cannot be read, and for a data set of which nothing is left;
    - loading, also in a worker process, for an image or a label map that is missing or does not decode, a label map
      that is not of its image's size or holds a class that the model does not have, and an instance whose mask is
      missing or of another size than the image;
    - the rest of the pipeline, for an image that OpenCV cannot process, such as one too narrow to be resized.

    Any other error keeps its stack trace.
    """
    build = runner.build_dataloader

    @functools.wraps(build)
    def build_dataloader(*args: Any, **kwargs: Any) -> Any:
        try:
            loader = build(*args, **kwargs)
        except Exception as error:
            fault = _fault_of_building(error)
            if fault is None:
                raise
            raise UserError(fault) from error
        labels = _labels(runner.model)
        for dataset in _datasets(loader.dataset):
            _check_built(dataset)
            if isinstance(getattr(dataset, "pipeline", None), Compose):
                _guard_loading(dataset.pipeline, labels)
                dataset.pipeline = _Pipeline(dataset.pipeline.transforms)
        return loader

    runner.build_dataloader = build_dataloader
    return runner


# -- building a dataset ------------------------------------------------------------------------------------------------


def _datasets(dataset: Any) -> Iterator[Any]:
    """The datasets that read files, inside ConcatDataset, RepeatDataset and other wrappers."""
    inner = [*getattr(dataset, "datasets", []), *([dataset.dataset] if hasattr(dataset, "dataset") else [])]
    for wrapped in inner:
        yield from _datasets(wrapped)
    if not inner:
        yield dataset


def _check_built(dataset: Any) -> None:
    if not len(dataset):
        raise UserError(_emptiness(dataset))
    # MMDetection counts the labels by the categories that it finds: without one, the others' labels move up.
    if _is_coco(dataset) and len(dataset.cat_ids) < len(dataset.metainfo["classes"]):
        raise UserError(_unknown_classes(dataset.ann_file, dataset.metainfo["classes"]))


def _fault_of_building(error: Exception) -> str | None:
    """What is wrong with the files of the dataset that failed to load, None where nothing is."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    loading = [frame.f_locals["self"] for frame in frames if frame.f_code.co_name == "full_init"]
    if not loading:
        return None
    dataset = loading[-1]
    if _is_coco(dataset) and (fault := _fault_of_coco(dataset.ann_file)):
        return fault
    # MMEngine joins the samples into one array, which fails where there are none.
    return _emptiness(dataset) if "_serialize_data" in {frame.f_code.co_name for frame in frames} else None


def _is_coco(dataset: Any) -> bool:
    """Whether MMDetection's CocoDataset reads a local file, and not a descendant for a variant of the format."""
    readers = (getattr(type(dataset), name, None) for name in ("load_data_list", "parse_data_info"))
    own = all(getattr(reader, "__module__", None) == "mmdet.datasets.coco" for reader in readers)
    return own and os.path.isfile(dataset.ann_file)


def _fault_of_coco(path: str) -> str | None:
    """The first thing in an annotation file that MMDetection cannot read, None where there is nothing."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except ValueError as error:
        return f"the annotation file {path} is not JSON: {error}"
    if not isinstance(content, dict):
        return f"the annotation file {path} holds a {type(content).__name__} instead of COCO's object of three lists"
    for name, keys in _COCO.items():
        entries = content.get(name, [] if name == "annotations" else None)  # COCO's own test sets have none
        if not isinstance(entries, list):
            return f'the annotation file {path} has no list "{name}", which COCO\'s format asks for'
        for index, entry in enumerate(entries):
            lacking = [key for key in keys if key not in entry] if isinstance(entry, dict) else keys
            if lacking:
                of = f" (id {entry['id']})" if isinstance(entry, dict) and "id" in entry else ""
                return f'{path}: {name}[{index}]{of} has no "{lacking[0]}", which COCO\'s format asks for'
            box = entry.get("bbox", [0, 0, 0, 0])
            if not (isinstance(box, list) and len(box) == 4 and all(isinstance(side, (int, float)) for side in box)):
                return f"{path}: {name}[{index}] (id {entry['id']}) has the bbox {box} instead of [x, y, width, height]"
    seen = set()
    for entry in content.get("annotations", []):
        if entry["id"] in seen:
            return f"{path}: two annotations have the id {entry['id']}: give each its own"
        seen.add(entry["id"])
    return None


def _emptiness(dataset: Any) -> str:
    """Why nothing is left of a dataset."""
    if not _is_coco(dataset):
        folder = next(iter(getattr(dataset, "data_prefix", {}).values()), "")
        suffix = getattr(dataset, "img_suffix", None)
        named = f" whose name ends in {suffix}" if suffix else ""
        listed = f", nor does {dataset.ann_file} list one" if getattr(dataset, "ann_file", "") else ""
        return f"there is no image{named} in {folder}{listed}: check the dataset's settings in the config"
    with open(dataset.ann_file, encoding="utf-8") as file:
        content = json.load(file)
    classes = dataset.metainfo.get("classes") or ()
    if not {category["name"] for category in content["categories"]} & set(classes):
        return _unknown_classes(dataset.ann_file, classes)
    return (
        f"nothing is left of the {len(content['images'])} images in {dataset.ann_file}: filter_cfg, which is "
        f"{dataset.filter_cfg} in the config, leaves out those without annotations of the dataset's classes and those "
        "too small"
    )


def _unknown_classes(path: str, classes: Any) -> str:
    with open(path, encoding="utf-8") as file:
        names = [category["name"] for category in json.load(file)["categories"]]
    absent = [name for name in classes if name not in names]
    return (
        f"{path} has no category {_some(absent)}, which the config's dataset has as a class: set metainfo=dict("
        f"classes=…) of the dataset, and the model's num_classes, to the file's categories ({_some(names)})"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + ("…" if len(names) > 5 else "")


# -- loading a sample --------------------------------------------------------------------------------------------------


class _Pipeline(Compose):
    """A dataset's pipeline that names the image which OpenCV refuses, and takes images of one column."""

    def __call__(self, data: dict[str, Any]) -> dict[str, Any] | None:
        try:
            for transform in self.transforms:
                data = transform(data)
                if data is None:
                    return None
                image = data.get("img")
                # One column that was flipped counts as contiguous, but has a negative stride, which torch refuses.
                if isinstance(image, np.ndarray) and image.flags.c_contiguous and min(image.strides) < 0:
                    data["img"] = image.copy()
            return data
        except cv2.error as error:
            size = f", of {_size(data['ori_shape'])} pixels," if "ori_shape" in data else ""
            raise UserError(
                f"the image {data.get('img_path')}{size} does not go through the pipeline ({_first_line(error)}): "
                "take it out of the data set, or change the pipeline"
            ) from error


def _guard_loading(owner: Any, labels: tuple[int, int] | None) -> None:
    """Puts guards around the transforms that load files, also those inside TestTimeAug, RandomChoice and the like."""
    for name in ("transforms", "subroutines"):
        steps = getattr(owner, name, [])
        for index, step in enumerate(steps if isinstance(steps, list) else []):
            if isinstance(step, LoadImageFromFile):
                steps[index] = _ImageLoading(step)
            elif isinstance(step, LoadAnnotations):
                steps[index] = _AnnotationLoading(step, labels)
            else:
                _guard_loading(step, labels)
        if not isinstance(steps, list):
            _guard_loading(steps, labels)


class _ImageLoading:
    def __init__(self, transform: LoadImageFromFile) -> None:
        self.transform = transform

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        path = results.get("img_path")
        try:
            return self.transform(results)
        except (*_DECODING, AssertionError) as error:  # mmcv asserts that there is an image
            raise UserError(_unreadable("image", path, error)) from error

    def __repr__(self) -> str:
        return repr(self.transform)


class _AnnotationLoading:
    """LoadAnnotations, with its label map held to the image's size and the model's classes.

    Args:
        transform: the LoadAnnotations of mmcv, mmdet or mmseg.
        labels: the number of classes and the label to ignore; None where labels may have any value.
    """

    def __init__(self, transform: LoadAnnotations, labels: tuple[int, int] | None) -> None:
        self.transform, self.labels = transform, labels

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        try:
            loaded = self.transform(results)
        except Exception as error:
            fault = self._fault(results, error)
            if fault is None:
                raise
            raise UserError(fault) from error
        if self.transform.with_seg and "ori_shape" in loaded:
            self._check_label_map(loaded)
        return loaded

    def __repr__(self) -> str:
        return repr(self.transform)

    def _fault(self, results: dict[str, Any], error: Exception) -> str | None:
        if "_load_seg_map" in {frame.name for frame in traceback.extract_tb(error.__traceback__)}:
            path = results["seg_map_path"]
            if tuple(results.get("ori_shape", ())) == (1, 1) and isinstance(error, TypeError):
                return f"the label map {path} is a single pixel, which MMSegmentation cannot read: {_REMEDY}"
            # Where OpenCV decodes, mmcv takes its None for an array.
            decoding = isinstance(error, (*_DECODING, AttributeError))
            return _unreadable("label map", path, error) if decoding else None
        if getattr(self.transform, "with_mask", False):
            shape = results["ori_shape"]
            for instance in results.get("instances", []):
                owner = f"an annotation of the image {results['img_path']}, with the bbox (x1, y1, x2, y2) "
                owner += f"{instance['bbox']}, has"
                mask = instance.get("mask")
                if not mask:
                    return f"{owner} no segmentation: add it, or take the annotation out, or train without masks"
                if isinstance(mask, dict) and tuple(mask.get("size", shape)) != tuple(shape):
                    size = _size(mask["size"])
                    return f"{owner} a mask of {size} pixels where the image has {_size(shape)}: mend the annotation"
        return None

    def _check_label_map(self, results: dict[str, Any]) -> None:
        path, shape, label_map = results["seg_map_path"], results["ori_shape"], results["gt_seg_map"]
        if 1 in shape and label_map.size == shape[0] * shape[1]:
            results["gt_seg_map"] = label_map = label_map.reshape(shape)  # mmcv drops sides of one pixel
        if label_map.ndim != 2:
            raise UserError(
                f"the label map {path} has {label_map.shape[-1]} channels: it must have one, with the number of each "
                "pixel's class"
            )
        if label_map.shape != tuple(shape):
            raise UserError(
                f"the label map {path} has {_size(label_map.shape)} pixels, but its image {results['img_path']} has "
                f"{_size(shape)}, turned as its EXIF data may ask for: mend one of the two, or take both out"
            )
        if self.labels is None:
            return
        classes, ignored = self.labels
        outside = (label_map >= classes) & (label_map != ignored)
        if outside.any():
            raise UserError(
                f"the label map {path} has the label {label_map[outside].max()}, but the model knows 0 to "
                f"{classes - 1}, and {ignored} for pixels to ignore: mend the label map, or the classes or "
                "reduce_zero_label in the config"
            )


def _labels(model: Any) -> tuple[int, int] | None:
    """The number of classes that a segmentor knows and the label that it ignores, None for other models."""
    head = next((module.decode_head for module in model.modules() if hasattr(module, "decode_head")), None)
    head = head[-1] if isinstance(head, ModuleList) else head  # a cascade
    if not hasattr(head, "num_classes"):
        return None
    return max(head.num_classes, 2), getattr(head, "ignore_index", 255)  # one class against the rest: labels 0 and 1


def _unreadable(what: str, path: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"the {what} {path} is missing: put it there, or take it out of the data set"
    if isinstance(error, OSError) and (error.strerror or not os.path.isfile(path)):
        return f"the {what} {path} cannot be read: {error.strerror or _first_line(error)}"
    if os.path.isfile(path) and not os.path.getsize(path):
        return f"the {what} {path} is an empty file: {_REMEDY}"
    return f"the {what} {path} cannot be decoded, as it is damaged or no picture at all: {_REMEDY}"


def _size(shape: Any) -> str:
    return f"{shape[1]}×{shape[0]}"


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
