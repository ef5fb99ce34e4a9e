"""Recipes: training settings that replace a config's own, for a purpose and scaled to the data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import ceil
from typing import TYPE_CHECKING, Any

from ..data import is_pretrained, remove_pretrained, type_name
from ..errors import UserError
from .config_faults import explain_config_faults
from .configs import merge_options
from .launchers import LAUNCHERS
from .preflight import check_inputs

if TYPE_CHECKING:
    from mmengine.config import Config

RECIPES = {"finetune": "from the weights of load_from, on some hundred images"}
"""The recipes, and what each is for."""

VALIDATIONS = 12
"""Number of validations in a training; with epochs, as many as in MMDetection's 1x schedule."""
MIN_STEPS = 50
"""Least number of steps from one validation to the next."""
_INPUTS = ("train_dataloader", "val_dataloader", "val_evaluator", "load_from")


def apply_recipe(cfg: Config, name: str, options: Mapping[str, Any], launcher: str) -> dict[str, Any]:
    """Replace, in place, a config's training settings with those of a recipe.

    A recipe depends on the number of training images, so these must be there.

    Args:
        cfg: a detection or segmentation config.
        name: one of :data:`RECIPES`.
        options: new values by dotted key, from ``--cfg-options``. The recipe goes by those for the data, the
            evaluation, the length of the training and ``load_from``.
        launcher: the launcher of the processes, which share the training images.

    Returns:
        The options that have not been applied yet. Those for the data have been, as their keys do not fit repeated
        data.

    Raises:
        UserError: data is missing or cannot be read, or the recipe does not know the config's metric.
    """
    inputs = {key: value for key, value in options.items() if key.partition(".")[0] in _INPUTS}
    merge_options(cfg, inputs)
    if cfg.get("load_from"):
        remove_pretrained(cfg.model)  # load_from has the backbone, too
    check_inputs(cfg, splits=("train", "val"), weights=False)
    {"finetune": _finetune}[name](cfg, options, _images_per_process(cfg, launcher))
    return {key: value for key, value in options.items() if key not in inputs}


def check_start(cfg: Config, recipe: str) -> None:
    """Raise UserError if a training would start from random weights."""
    backbone = (cfg.model.get("backbone") or {}).get("init_cfg")
    inits = backbone if isinstance(backbone, list | tuple) else [backbone]
    if not cfg.get("load_from") and not any(map(is_pretrained, inits)):
        raise UserError(
            f"--recipe {recipe} needs trained weights to start from, and {cfg.filename} has none: add --cfg-options "
            "load_from=FILE with a trained detector or segmentor"
        )


def _images_per_process(cfg: Config, launcher: str) -> float:
    from .bad_data import count_images

    with explain_config_faults(cfg, splits=("train",)):
        images = count_images(cfg.train_dataloader.dataset, cfg.default_scope)
    processes = int(os.environ[LAUNCHERS[launcher].world_size]) if launcher in LAUNCHERS else 1
    return images / processes


def _finetune(cfg: Config, options: Mapping[str, Any], images: float) -> None:
    """Fine-tune all but the first layers, gently, for as long as the metric rises.

    Each value can be changed with ``--cfg-options``.
    """
    batch = cfg.train_dataloader.batch_size
    # Few images make short epochs. Repeated, they need fewer validations, and fewer restarts of the worker processes.
    times = max(1, ceil(MIN_STEPS * batch / images))
    interval = ceil(times * images / batch)
    if "max_iters" in cfg.train_cfg:  # its sampler repeats the images by itself
        cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=VALIDATIONS * interval, val_interval=interval)
    else:
        cfg.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=VALIDATIONS, val_interval=1)
        if times > 1:
            cfg.train_dataloader.dataset = dict(
                type="RepeatDataset", times=times, dataset=cfg.train_dataloader.dataset.to_dict()
            )
    merge_options(cfg, {key: value for key, value in options.items() if key.startswith("train_cfg.")})
    steps = cfg.train_cfg.get("max_iters") or cfg.train_cfg.max_epochs * interval
    _freeze(cfg.model)
    _optimize(cfg, steps)
    _choose_the_best(cfg)


def _freeze(model: Config) -> None:
    backbone = model.get("backbone") or {}
    if type_name(backbone) in ("CARE", "CAREAblation", "CASViT", "CASViTAblation"):
        # The stem and the first stage find edges and textures, which are alike in all pictures. The statistics of the
        # batch norms are from more pictures than a small batch has.
        backbone.update(frozen_stages=1, norm_eval=True)


def _optimize(cfg: Config, steps: int) -> None:
    cfg.optim_wrapper.update(
        # The learning rate of neck and head is that of the configs' schedules, which new class layers need. There is
        # more weight decay, as few images are soon learned by heart.
        optimizer=dict(type="AdamW", lr=2e-4, weight_decay=0.05),
        paramwise_cfg=dict(
            norm_decay_mult=0.0,
            bias_decay_mult=0.0,
            # The backbone knows most of what it needs. Norms and biases are not what learns images by heart.
            custom_keys={"backbone": dict(lr_mult=0.1)},
        ),
        clip_grad=dict(max_norm=35),  # as MMDetection's; a single wrong label gives a large gradient
    )
    cfg.optim_wrapper.pop("constructor", None)  # it belongs to the paramwise_cfg that was replaced
    steps = max(steps, 20)  # MMEngine's warm-up has at least two steps; a trial may be shorter
    warm_up = min(steps // 10, 500)
    cfg.param_scheduler = [
        # The first gradients are those of class layers that know nothing: small steps keep them from undoing the rest.
        dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=warm_up),
        # The end is a ratio, as the backbone has a learning rate of its own.
        dict(
            type="CosineAnnealingLR",
            by_epoch=False,
            begin=warm_up,
            end=steps,
            T_max=steps - warm_up,
            eta_min_ratio=0.01,
        ),
    ]
    cfg.auto_scale_lr = dict(enable=False, base_batch_size=8)


def _choose_the_best(cfg: Config) -> None:
    """Keep the averaged weights that validate best, and stop when the metric has ceased to rise."""
    metric, gain = _metric(cfg)
    checkpoint = dict(
        type="CheckpointHook",
        by_epoch="max_epochs" in cfg.train_cfg,
        interval=cfg.train_cfg.val_interval,  # an early stop ends the training after a validation
        save_best=metric,
        max_keep_ckpts=2,
    )
    hooks = cfg.get("default_hooks") or {}
    logger = {**(hooks.get("logger") or dict(type="LoggerHook")), "interval": 10}  # several times in an epoch
    cfg.default_hooks = {**hooks, "checkpoint": checkpoint, "logger": logger}
    own = [
        # The average over about the last tenth of the steps so far, however many: each counts 10 / (10 + step).
        # A few validation images tell noisy weights apart by luck, and averages vary less.
        dict(type="EMAHook", ema_type="MomentumAnnealingEMA", gamma=10, update_buffers=True),
        dict(type="EarlyStoppingHook", monitor=metric, min_delta=gain, patience=5),
    ]
    kinds = [hook["type"] for hook in own]
    cfg.custom_hooks = [*own, *(hook for hook in cfg.get("custom_hooks") or [] if type_name(hook) not in kinds)]


def _metric(cfg: Config) -> tuple[str, float]:
    """Return the name of the first metric of the validation, and the least gain that counts as one."""
    evaluator = cfg.val_evaluator
    first = evaluator[0] if isinstance(evaluator, list | tuple) else evaluator
    kind = type_name(first)
    metrics = first.get("metric", first.get("iou_metrics"))
    name = metrics[0] if isinstance(metrics, list | tuple) else metrics
    known = {
        "CocoMetric": (f"coco/{name or 'bbox'}_mAP", 0.002),
        "VOCMetric": ("pascal_voc/mAP", 0.002),
        "IoUMetric": (name or "mIoU", 0.2),  # in percent
    }
    if kind not in known:
        raise UserError(
            f"--recipe finetune watches the metric of {', '.join(known)}, and the val_evaluator of {cfg.filename} is "
            f"{kind}: set another one, or take the settings from mmcare/runs/recipes.py into the config"
        )
    return known[kind]
