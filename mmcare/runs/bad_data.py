"""Errors in the data of a run, reported in one sentence that names the file.

MMEngine, mmcv, MMDetection and MMSegmentation end with a stack trace from inside a decoder, a resize or a loss, often
in a worker process, and do not say which of 100,000 files caused it. Everything that they accept is still accepted:
boxes without area or outside the image, crowd regions, images without annotations, and gray, palette, 16-bit and
transparent images.

The checks are attached to the Runner and its datasets, not to the config or to classes. So they work with any
transforms, and in worker processes with any start method.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from mmengine.dataset import Compose
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner
from torch import nn

from ..data import innermost_datasets
from ..errors import UserError
from .loading import guard_pipeline

AnyRunner = TypeVar("AnyRunner", bound=Runner)

_COCO = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area"),
    "categories": ("id", "name"),
}
"""The lists of a COCO annotation file, with the keys of each entry that MMDetection reads."""


def name_bad_data(runner: AnyRunner) -> AnyRunner:
    """Make a Runner name the file if its data cannot be used, and return it; call this before training or testing.

    A :class:`UserError` is raised

    - when a dataloader is built, for an annotation file that cannot be read, for an empty data set, for one to train a
      detector on that has more classes than the model, and for missing class folders of a classifier's;
    - when data is loaded, also in a worker process, for an image or a label map that is missing or cannot be decoded, a
      label map with another size than its image or a class that the model does not have, and an instance whose mask is
      missing or has another size than the image;
    - in the rest of the pipeline, for an image that OpenCV cannot process, such as one that is too narrow to resize.

    Any other error keeps its stack trace.
    """
    build = runner.build_dataloader

    @functools.wraps(build)
    def build_dataloader(dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        with _explained(dataloader.get("dataset") if isinstance(dataloader, dict) else None):
            loader = build(dataloader, *args, **kwargs)
        _check_content(loader.dataset, runner.model)
        _guard_pipelines(loader.dataset, _labels(runner.model))
        return loader

    runner.build_dataloader = build_dataloader
    return runner


def build_guarded(dataset: dict[str, Any], scope: str) -> Any:
    """Build a dataset outside of a Runner, which names the file if its data cannot be used as one in a Runner does.

    Args:
        dataset: the config; it may have wrappers such as ConcatDataset.
        scope: the ``default_scope`` of the config.

    Raises:
        UserError: the annotations cannot be read, or there are no images.
    """
    built = _built(dataset, scope)
    _guard_pipelines(built, labels=None)
    return built


def count_images(dataset: dict[str, Any], scope: str) -> int:
    """Return the number of images of a dataset, given by its config, without those that it filters out.

    Args:
        dataset: the config; it may have wrappers such as ConcatDataset.
        scope: the ``default_scope`` of the config.

    Raises:
        UserError: the annotations cannot be read, or there are no images.
    """
    dataset = copy.deepcopy(dataset)
    for inner in innermost_datasets(dataset):
        inner["pipeline"] = []
    return len(_built(dataset, scope))


def _built(dataset: dict[str, Any], scope: str) -> Any:
    with DefaultScope.overwrite_default_scope(scope), _explained(dataset):
        built = DATASETS.build(dataset)
    _check_content(built)
    return built


def _check_content(dataset: Any, model: nn.Module | None = None) -> None:
    """Raise UserError if a dataset that has loaded its annotations has a fault, or does not suit the model."""
    for inner in _datasets(dataset):
        if fault := _fault_of_content(inner) or (model is not None and _surplus_classes(inner, model)):
            raise UserError(fault)


def _guard_pipelines(dataset: Any, labels: tuple[int, int] | None) -> None:
    for inner in _datasets(dataset):
        if isinstance(getattr(inner, "pipeline", None), Compose):
            guard_pipeline(inner.pipeline, labels)


@contextmanager
def _explained(dataset: Any) -> Iterator[None]:
    """Return a context in which a dataset is built from its config; an error because of its files is a UserError."""
    try:
        yield
    except Exception as error:
        fault = next(filter(None, map(_fault_of_dataset, innermost_datasets(dataset))), None)
        if fault is None:
            raise
        raise UserError(fault) from error


def _datasets(dataset: Any) -> Iterator[Any]:
    """Yield the datasets that read files, inside ConcatDataset, RepeatDataset and other wrappers."""
    inner = [*getattr(dataset, "datasets", []), *([dataset.dataset] if hasattr(dataset, "dataset") else [])]
    for wrapped in inner:
        yield from _datasets(wrapped)
    if not inner:
        yield dataset


def _labels(model: nn.Module) -> tuple[int, int] | None:
    """Return a segmentor's number of classes and its ignored label; None for other models."""
    head = next((module.decode_head for module in model.modules() if hasattr(module, "decode_head")), None)
    head = head[-1] if isinstance(head, nn.ModuleList) else head  # a cascade
    if not hasattr(head, "num_classes"):
        return None
    return max(head.num_classes, 2), getattr(head, "ignore_index", 255)  # a binary head: labels 0 and 1


# -- datasets that were built ------------------------------------------------------------------------------------------


def _fault_of_content(dataset: Any) -> str | None:
    """Return the fault of a dataset that has loaded its annotations, or None."""
    if not len(dataset):
        return _emptiness(dataset)
    # MMDetection numbers the labels by the categories in the file: without one, the labels of the others shift.
    if _is_coco(dataset) and len(dataset.cat_ids) < len(dataset.metainfo["classes"]):
        return _unknown_classes(dataset.ann_file, dataset.metainfo["classes"])
    return None


def _surplus_classes(dataset: Any, model: nn.Module) -> str | None:
    """Return the fault of a data set to train a detector on that has more classes than the model, or None."""
    mmdet = sys.modules.get("mmdet.models")
    if not mmdet or not _is_coco(dataset) or dataset.test_mode:
        return None
    parts = [*model.modules()]
    if any(isinstance(part, mmdet.RPN) for part in parts):  # it learns no classes
        return None
    numbers = [number for part in parts if isinstance(number := getattr(part, "num_classes", None), int)]
    classes = dataset.metainfo["classes"]
    if not numbers or max(numbers) >= len(classes):
        return None
    return (
        f"the data set to train on has {len(classes)} classes ({_some([*classes])}), but the model has {max(numbers)}: "
        f"set num_classes={len(classes)} in its heads, or correct the dataset's metainfo=dict(classes=…)"
    )


def _emptiness(dataset: Any) -> str:
    """Return why a dataset is empty."""
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
        f"all of the {len(content['images'])} images in {dataset.ann_file} are filtered out: the config's filter_cfg, "
        f"{dataset.filter_cfg}, removes images without annotations of the dataset's classes and images that are too "
        "small"
    )


def _unknown_classes(path: str, classes: Sequence[str]) -> str:
    with open(path, encoding="utf-8") as file:
        names = [category["name"] for category in json.load(file)["categories"]]
    absent = [name for name in classes if name not in names]
    return (
        f"{path} has no category {_some(absent)}, which is a class of the config's dataset: set the dataset's "
        f"metainfo=dict(classes=…) and the model's num_classes to the file's categories ({_some(names)})"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + ("…" if len(names) > 5 else "")


# -- datasets that could not be built ----------------------------------------------------------------------------------


def _fault_of_dataset(cfg: dict[str, Any]) -> str | None:
    """Return the fault in the files of a dataset; None if there is none, or if it is not in the files."""
    try:
        # Not serialized, as MMEngine fails to serialize an empty list of samples.
        dataset = DATASETS.build(dict(cfg, lazy_init=True, serialize_data=False))
    except Exception:  # a fault of the config, or a dataset with other arguments than MMEngine's
        return None
    if _is_coco(dataset) and (fault := _fault_of_coco(dataset.ann_file)):
        return fault
    if fault := _fault_of_class_folders(dataset):
        return fault
    try:
        dataset.full_init()
    except Exception:  # it fails again, for an unknown reason
        return None
    return None if len(dataset) else _emptiness(dataset)


def _fault_of_class_folders(dataset: Any) -> str | None:
    """Return the fault of a data set of MMPretrain with a folder for each class, or None.

    Labels are numbered by the folders: without one, the labels of the others shift.
    """
    mmpretrain = sys.modules.get("mmpretrain.datasets")
    if not mmpretrain or not isinstance(dataset, mmpretrain.CustomDataset) or dataset.ann_file:
        return None
    with os.scandir(dataset.img_prefix) as entries:
        folders = sum(entry.is_dir() for entry in entries)
    classes = len(dataset.metainfo.get("classes") or ())
    if not classes or folders == classes:
        return None
    return (
        f"{dataset.img_prefix} has {folders} class folders, but the data set has {classes} classes: complete the "
        "folders, or set the dataset's metainfo=dict(classes=…) and the model's num_classes to what is there"
    )


def _is_coco(dataset: Any) -> bool:
    """Return whether a dataset reads a local file as MMDetection's CocoDataset does; subclasses may not."""
    mmdet = sys.modules.get("mmdet.datasets")  # imported by any dataset of MMDetection
    readers = ("load_data_list", "parse_data_info")
    own = mmdet and all(getattr(type(dataset), name, None) is getattr(mmdet.CocoDataset, name) for name in readers)
    return bool(own) and os.path.isfile(dataset.ann_file)


def _fault_of_coco(path: str) -> str | None:
    """Return the first fault in an annotation file because of which MMDetection cannot read it, or None."""
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
            return f'the annotation file {path} has no list "{name}", which COCO\'s format requires'
        for index, entry in enumerate(entries):
            lacking = [key for key in keys if key not in entry] if isinstance(entry, dict) else keys
            if lacking:
                of = f" (id {entry['id']})" if isinstance(entry, dict) and "id" in entry else ""
                return f'{path}: {name}[{index}]{of} has no "{lacking[0]}", which COCO\'s format requires'
            box = entry.get("bbox", [0, 0, 0, 0])
            if not (isinstance(box, list) and len(box) == 4 and all(isinstance(side, (int, float)) for side in box)):
                return f"{path}: {name}[{index}] (id {entry['id']}) has the bbox {box} instead of [x, y, width, height]"
    seen = set()
    for entry in content.get("annotations", []):
        if entry["id"] in seen:
            return f"{path}: two annotations have the id {entry['id']}: give each a unique id"
        seen.add(entry["id"])
    return None
