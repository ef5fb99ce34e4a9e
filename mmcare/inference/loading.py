"""From a config and a checkpoint, or from a release alone, to a model that is ready to predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, DefaultScope
from torch import nn

from ..checkpoints import class_names, fit_weights, read_checkpoint, select_weights
from ..data import innermost_datasets, type_name
from ..errors import UserError
from ..fast import reparameterize
from ..models import PyramidBackbone
from ..runs import dense_task_of, explain_config_faults, is_config, load_config
from .stored_config import stored_config


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode with what belongs to it.

    Attributes:
        model: the detector or segmentor, on the device.
        task: "detection" or "segmentation".
        classes: its class names in the order of the labels.
        palette: a colour (R, G, B) for each class; None if the checkpoint has none.
        transforms: the transforms of the config's test pipeline, without those that load annotations.
    """

    model: nn.Module
    task: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...] | None
    transforms: tuple[Any, ...]


def load(config_or_release: Any, checkpoint: str | Path | None, device: torch.device, fast: bool) -> Loaded:
    """Build the model of a config with the weights of a checkpoint; arguments as for ``mmcare.Predictor``.

    Raises:
        UserError: a file cannot be read, the two do not belong together, or the classes are unknown.
    """
    cfg = _given_config(config_or_release, checkpoint)
    source = str(checkpoint if cfg else config_or_release)
    content = read_checkpoint(source)
    meta = content.get("meta")
    cfg = cfg or stored_config(meta, source)
    task = dense_task_of(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = _build(cfg, content, source)
        metainfo = _metainfo(cfg, meta)
        transforms = build_test_transforms(cfg, source)
    classes = class_names(metainfo)
    if classes is None:
        raise UserError(
            f"{source} does not name its classes: give a config whose test_dataloader.dataset has "
            "metainfo=dict(classes=(…))"
        )
    number = max(count for part in model.modules() if isinstance(count := getattr(part, "num_classes", 0), int))
    if number != len(classes):
        raise UserError(
            f"{source} names {len(classes)} classes, but the model has {number}: give the config that it was trained "
            "with"
        )
    is_ours = any(isinstance(part, PyramidBackbone) for part in model.modules())
    model = reparameterize(model) if fast and is_ours else revert_sync_batchnorm(model)
    model.to(device).eval()
    return Loaded(model, task, classes, _palette(metainfo, len(classes)), transforms)


def _given_config(config_or_release: Any, checkpoint: str | Path | None) -> Config | None:
    """Return the user's config; None if there is only a checkpoint, which carries it."""
    given = isinstance(config_or_release, Config) or is_config(str(config_or_release))
    if given and checkpoint is None:
        raise UserError(
            "a config alone has no weights: give a checkpoint too, on the command line as --model CHECKPOINT --config "
            "CONFIG, or only a release"
        )
    if not given and checkpoint is not None:
        raise UserError(
            f"{config_or_release} is not a config: give a file that ends in .py or a name that mmcare --help lists"
        )
    if not given:
        return None
    if isinstance(config_or_release, Config):
        dense_task_of(config_or_release)
        return config_or_release
    return load_config(str(config_or_release), parts=("model",))


def _build(cfg: Config, content: Mapping[str, Any], source: str) -> nn.Module:
    settings = dict(cfg.model)
    if cfg.get("data_preprocessor"):
        settings.setdefault("data_preprocessor", cfg.data_preprocessor)
    with explain_config_faults(cfg, splits=()):
        model = MODELS.build(settings)
    try:
        state, _ = select_weights(content)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    state = fit_weights(model, state, source, f"the {type(model).__name__} of this config", require_all=True)
    model.load_state_dict(state, strict=False)  # a batch norm's counter may be missing
    return model


def _metainfo(cfg: Config, meta: Any) -> Any:
    """Return what is known of the classes: from the checkpoint, or from the config's dataset or the class of that."""
    if class_names(meta):
        return meta.get("dataset_meta", meta)
    dataset = _test_dataset(cfg)
    if dataset.get("metainfo"):
        return dataset["metainfo"]
    kind = dataset.get("type")
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(cfg.default_scope) as datasets:
            kind = datasets.get(kind)
    return getattr(kind, "METAINFO", None)


def _palette(metainfo: Mapping[str, Any], classes: int) -> tuple[tuple[int, int, int], ...] | None:
    """Return the colours of the classes; None if there are none that can be used."""
    palette = next((metainfo[key] for key in ("palette", "PALETTE") if key in metainfo), None)
    try:
        colours = tuple(tuple(int(value) % 256 for value in colour) for colour in palette)
    except (TypeError, ValueError):
        return None
    return colours if len(colours) == classes and all(len(colour) == 3 for colour in colours) else None


def _test_dataset(cfg: Config) -> Any:
    return next(innermost_datasets((cfg.get("test_dataloader") or {}).get("dataset")), {})


def build_test_transforms(cfg: Config, source: str) -> tuple[Any, ...]:
    """Build the pipeline that test.py uses, without annotations.

    Args:
        cfg: the config, whose default scope is the current one.
        source: name of the config in messages if it is of no file.

    Raises:
        UserError: there is no pipeline that reads pictures, or it has a fault.
    """
    steps = _test_dataset(cfg).get("pipeline") or cfg.get("test_pipeline") or []
    steps = [step for step in steps if not (type_name(step) or "").endswith("Annotations")]
    if not steps or type_name(steps[0]) != "LoadImageFromFile":
        raise UserError(
            f"the test pipeline of {cfg.filename or source} does not start with LoadImageFromFile: give a config whose "
            "pipeline reads pictures"
        )
    with explain_config_faults(cfg, splits=("test",)):
        return tuple(TRANSFORMS.build(step) for step in steps)
