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
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from mmengine.dataset import Compose
from mmengine.registry import DATASETS
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
"""The lists of an annotation file in COCO's format, with what MMDetection reads of each entry."""


def name_bad_data(runner: AnyRunner) -> AnyRunner:
    """Make a Runner name the file when its data cannot be used, and return it; for before training or testing.

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
    def build_dataloader(dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            loader = build(dataloader, *args, **kwargs)
        except Exception as error:
            fault = _fault_of_datasets(dataloader)
            if fault is None:
                raise
            raise UserError(fault) from error
        labels = _labels(runner.model)
        for dataset in _datasets(loader.dataset):
            if fault := _fault_of_content(dataset):
                raise UserError(fault)
            if isinstance(getattr(dataset, "pipeline", None), Compose):
                guard_pipeline(dataset.pipeline, labels)
        return loader

    runner.build_dataloader = build_dataloader
    return runner


def _datasets(dataset: Any) -> Iterator[Any]:
    """Yield the datasets that read files, inside ConcatDataset, RepeatDataset and other wrappers."""
    inner = [*getattr(dataset, "datasets", []), *([dataset.dataset] if hasattr(dataset, "dataset") else [])]
    for wrapped in inner:
        yield from _datasets(wrapped)
    if not inner:
        yield dataset


def _labels(model: nn.Module) -> tuple[int, int] | None:
    """Return the number of classes that a segmentor knows and the label that it ignores, None for other models."""
    head = next((module.decode_head for module in model.modules() if hasattr(module, "decode_head")), None)
    head = head[-1] if isinstance(head, nn.ModuleList) else head  # a cascade
    if not hasattr(head, "num_classes"):
        return None
    return max(head.num_classes, 2), getattr(head, "ignore_index", 255)  # one class against the rest: labels 0 and 1


# -- a dataset that was built ------------------------------------------------------------------------------------------


def _fault_of_content(dataset: Any) -> str | None:
    """Return what is wrong with a dataset that loaded its annotations, None where nothing is."""
    if not len(dataset):
        return _emptiness(dataset)
    # MMDetection counts the labels by the categories that it finds: without one, the others' labels move up.
    if _is_coco(dataset) and len(dataset.cat_ids) < len(dataset.metainfo["classes"]):
        return _unknown_classes(dataset.ann_file, dataset.metainfo["classes"])
    return None


def _emptiness(dataset: Any) -> str:
    """Return why nothing is left of a dataset."""
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


def _unknown_classes(path: str, classes: Sequence[str]) -> str:
    with open(path, encoding="utf-8") as file:
        names = [category["name"] for category in json.load(file)["categories"]]
    absent = [name for name in classes if name not in names]
    return (
        f"{path} has no category {_some(absent)}, which the config's dataset has as a class: set metainfo=dict("
        f"classes=…) of the dataset, and the model's num_classes, to the file's categories ({_some(names)})"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + ("…" if len(names) > 5 else "")


# -- a dataset that could not be built ---------------------------------------------------------------------------------


def _fault_of_datasets(dataloader: Any) -> str | None:
    """Return what is wrong with the files of the first dataset of a dataloader's config that does not load."""
    if not isinstance(dataloader, dict):
        return None
    return next(filter(None, map(_fault_of_dataset, innermost_datasets(dataloader.get("dataset")))), None)


def _fault_of_dataset(cfg: dict[str, Any]) -> str | None:
    """Return what is wrong with the files of a dataset, None where nothing is, or where it is not the files."""
    try:
        # Unserialized: MMEngine joins the samples into one array, which it cannot where there are none.
        dataset = DATASETS.build(dict(cfg, lazy_init=True, serialize_data=False))
    except Exception:  # the config's fault, or a dataset's that is not MMEngine's
        return None
    if _is_coco(dataset) and (fault := _fault_of_coco(dataset.ann_file)):
        return fault
    try:
        dataset.full_init()
    except Exception:  # what failed before fails again, for a reason that is not known here
        return None
    return None if len(dataset) else _emptiness(dataset)


def _is_coco(dataset: Any) -> bool:
    """Tell whether MMDetection's CocoDataset reads a local file, and not a descendant for a variant of the format."""
    mmdet = sys.modules.get("mmdet.datasets")  # a dataset of MMDetection's has imported it
    readers = ("load_data_list", "parse_data_info")
    own = mmdet and all(getattr(type(dataset), name, None) is getattr(mmdet.CocoDataset, name) for name in readers)
    return bool(own) and os.path.isfile(dataset.ann_file)


def _fault_of_coco(path: str) -> str | None:
    """Return the first thing in an annotation file that MMDetection cannot read, None where there is nothing."""
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
