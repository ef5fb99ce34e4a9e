"""Switching a config to one's own data: the same model, augmentation and schedule, with other data and classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ..configs import dicts_in, type_name
from .colors import distinct_colors
from .preparing import PreparedData

if TYPE_CHECKING:
    from mmengine.config import Config

_COCO_METRIC = "CocoMetric"


def overlay_own_data(cfg: Config, data: PreparedData) -> None:
    """Replace, in place, the datasets and classes of a config and what its evaluators compare with.

    Pipelines, ``filter_cfg`` and wrappers such as RepeatDataset stay; of joined datasets, those of the first one.
    Without a test split, the validation split is tested.

    Args:
        cfg: a detection (``default_scope`` mmdet) or segmentation (mmseg) config.
        data: a data set for the config's task.

    Raises:
        UserError: the model needs masks, which the data set has not, or is of a kind that is not supported.
    """
    overlay = _overlay_detection if cfg.default_scope == "mmdet" else _overlay_segmentation
    metainfo = dict(classes=tuple(data.classes), palette=distinct_colors(len(data.classes)))
    overlay(cfg, data, dict(data_root=data.folder, metainfo=metainfo))
    _set_classes(cfg.model, len(data.classes))


def _overlay_detection(cfg: Config, data: PreparedData, shared: dict[str, Any]) -> None:
    loads = [step for step in dicts_in([*cfg.values()]) if type_name(step) == "LoadAnnotations"]
    if any(step.get("with_seg") for step in loads):
        raise UserError(
            f"{cfg.filename} loads label maps beside boxes, which --data does not support: choose another config"
        )
    needs_masks = any(step.get("with_mask") for step in loads) or any(
        "mask_head" in part for part in dicts_in(cfg.model)
    )
    if needs_masks and data.without_mask:
        raise UserError(
            f"the model of {cfg.filename} learns masks, and {data.without_mask} has only a box: annotate polygons, or "
            "train on boxes with one of the RetinaNet configs, such as detection/retinanet_care_s1"
        )
    for split, part in _parts(data):
        if loader := cfg.get(f"{split}_dataloader"):
            loader.dataset = _replaced(
                loader.dataset, [dict(type="CocoDataset", **shared, **part[0], test_mode=split != "train")]
            )
        if split != "train" and cfg.get(f"{split}_evaluator"):
            metric = dict(
                type=_COCO_METRIC,
                metric=["bbox", "segm"] if needs_masks else "bbox",
                ann_file=part[0]["ann_file"],
                format_only=False,
            )
            cfg[f"{split}_evaluator"] = _with_metric(cfg[f"{split}_evaluator"], metric)


def _overlay_segmentation(cfg: Config, data: PreparedData, shared: dict[str, Any]) -> None:
    for split, parts in _parts(data):
        if loader := cfg.get(f"{split}_dataloader"):
            kind = dict(type="BaseSegDataset", **shared, reduce_zero_label=data.reduce_zero_label)
            loader.dataset = _replaced(loader.dataset, [kind | part for part in parts])
    for step in dicts_in([*cfg.values()]):  # also in the pipelines of test-time augmentation, and those in variables
        if type_name(step) == "LoadAnnotations":
            step.pop("reduce_zero_label", None)  # the dataset's is used


def _parts(data: PreparedData) -> list[tuple[str, list[dict[str, Any]]]]:
    return [
        ("train", data.splits["train"]),
        ("val", data.splits["val"]),
        ("test", data.splits.get("test", data.splits["val"])),
    ]


def _replaced(dataset: Any, datasets: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a dataset's config with other data in the same wrappers."""
    if dataset.get("datasets"):
        return _replaced(dataset.datasets[0], datasets)
    if dataset.get("dataset"):
        dataset.dataset = _replaced(dataset.dataset, datasets)
        return dataset
    kept = {key: dataset[key] for key in ("pipeline", "filter_cfg") if key in dataset}
    found = [{**one, **kept} for one in datasets]
    return found[0] if len(found) == 1 else dict(type="ConcatDataset", datasets=found)


def _with_metric(evaluator: Any, metric: dict[str, Any]) -> dict[str, Any]:
    """Return COCO's metric with the settings that the config has for it."""
    given = evaluator if isinstance(evaluator, list) else [evaluator]
    own = next((one for one in given if type_name(one) == _COCO_METRIC), {})
    return {**metric, **{key: value for key, value in own.items() if key not in ("type", "ann_file", "backend_args")}}


def _set_classes(model: Any, number: int) -> None:
    """Set the number of classes in all heads: not in a region proposal head, which tells objects from background."""
    for name, part in model.items():
        parts = part if isinstance(part, list | tuple) else [part]
        if name in ("rpn_head", "backbone"):
            continue
        for one in parts:
            if isinstance(one, dict):
                _set_classes(one, number)
    if model.get("num_stuff_classes"):
        raise UserError(
            "the model segments things and stuff together, which --data does not support: choose another config"
        )
    old = model.get("num_classes")
    for key in ("num_classes", "num_things_classes"):
        if key in model:
            model[key] = number
    if isinstance(old, int) and old != number:
        _fit_class_weights(model, old, number)


def _fit_class_weights(head: Any, old: int, number: int) -> None:
    """Fit the weights of the classes in a head's losses: one for all classes is kept, and the background's."""
    for loss in dicts_in(head):
        weights = loss.get("class_weight")
        if isinstance(weights, list | tuple) and len(weights) in (old, old + 1):
            if len(set(weights[:old])) > 1:
                loss["class_weight"] = None  # they are for the classes of other data
            else:
                loss["class_weight"] = [weights[0]] * number + [*weights[old:]]
