"""Switching a config to the sample data: the same model, with other data, a short schedule, trained from scratch."""

from __future__ import annotations

from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ..configs import dicts_in, innermost_datasets, remove_pretrained, type_name
from .palettes import PALETTE, SEMANTIC_PALETTE
from .scene import CLASSES, SEMANTIC_CLASSES

if TYPE_CHECKING:
    from mmengine.config import Config

SCALE = (128, 96)
"""Limits of an image's long and short side after resizing, in pixels."""
CROP = (96, 96)
"""Height and width of the training crops in segmentation, in pixels."""
CLASSIFIED = 64
"""Height and width of an image in classification, in pixels."""


def overlay_sample(cfg: Config, root: Path) -> None:
    """Replace, in place, a config's data, classes, image scale, batch size, schedule and initial weights.

    Args:
        cfg: a detection (``default_scope`` mmdet), segmentation (mmseg) or classification (mmpretrain) config.
        root: folder of the sample data, from :func:`mmcare.data.sample.prepare`.

    Raises:
        UserError: the config is for another project.
    """
    overlays = {"mmdet": _overlay_detection, "mmseg": _overlay_segmentation, "mmpretrain": _overlay_classification}
    scope = cfg.get("default_scope")
    if scope not in overlays:
        raise UserError(
            f"--sample supports detection, segmentation and classification (default_scope {' or '.join(overlays)}), "
            f"but this one has default_scope {scope!r}"
        )
    _start_from_scratch(cfg.model)
    overlays[scope](cfg, root)
    for name in ("test_pipeline", "tta_pipeline"):  # used by inferencers and --tta
        if name in cfg and scope != "mmpretrain":
            cfg[name] = _rescaled(cfg[name])
    cfg.randomness = dict(seed=0)
    cfg.auto_scale_lr = dict(enable=False, base_batch_size=8)
    cfg.default_hooks.logger.interval = 10


def _overlay_detection(cfg: Config, root: Path) -> None:
    _set(cfg.model, "num_classes", len(CLASSES))
    _detect_small_objects(cfg.model)
    data = dict(type="CocoDataset", data_root=f"{root}/coco/", metainfo=dict(classes=CLASSES, palette=PALETTE))
    for split, loader in (("train", cfg.train_dataloader), ("val", cfg.val_dataloader), ("val", cfg.test_dataloader)):
        loader.dataset = dict(
            **data,
            ann_file=f"annotations/instances_{split}2017.json",
            data_prefix=dict(img=f"{split}2017/"),
            pipeline=_rescaled(next(innermost_datasets(loader.dataset)).pipeline),
            test_mode=split == "val",
        )
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = f"{root}/coco/annotations/instances_val2017.json"
    _small_loaders(cfg)
    epochs, steps_per_epoch = 6, 80
    cfg.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=2)
    _schedule(cfg, steps=epochs * steps_per_epoch, lr=4e-4 if cfg.model.type == "MaskRCNN" else 2e-4)
    cfg.default_hooks.checkpoint = dict(type="CheckpointHook", interval=2, save_best="auto", max_keep_ckpts=2)


def _detect_small_objects(model: Config) -> None:
    """Adapt a detector to images of 100 pixels and to training in minutes.

    Group norm in the neck and the head compensates for missing pretrained weights, as in "Rethinking ImageNet
    Pre-training" (https://arxiv.org/abs/1811.08883).
    """
    norm = _group_norm(model.neck.out_channels)
    model.neck.norm_cfg = norm
    if model.type == "RetinaNet":
        model.bbox_head.norm_cfg = norm
        model.bbox_head.anchor_generator.octave_base_scale = 3
        model.bbox_head.loss_bbox.loss_weight = 2.0
    elif model.type == "MaskRCNN":
        model.rpn_head.anchor_generator.scales = [4]
        model.roi_head.bbox_head.fc_out_channels = 256
        model.train_cfg.rpn_proposal.max_per_img = model.test_cfg.rpn.max_per_img = 200
        model.train_cfg.rcnn.sampler.num = 64
        model.roi_head.mask_head.conv_out_channels = 128


def _overlay_segmentation(cfg: Config, root: Path) -> None:
    _set(cfg.model, "num_classes", len(SEMANTIC_CLASSES))
    cfg.model.data_preprocessor.size = CROP
    _segment_small_images(cfg.model)
    # ADE20KDataset supports only ADE20K's classes.
    data = dict(
        type="BaseSegDataset",
        data_root=f"{root}/ade/ADEChallengeData2016",
        metainfo=dict(classes=SEMANTIC_CLASSES, palette=SEMANTIC_PALETTE),
        img_suffix=".jpg",
        seg_map_suffix=".png",
        reduce_zero_label=True,
    )
    loaders = (
        ("training", cfg.train_dataloader),
        ("validation", cfg.val_dataloader),
        ("validation", cfg.test_dataloader),
    )
    for split, loader in loaders:
        loader.dataset = dict(
            **data,
            data_prefix=dict(img_path=f"images/{split}", seg_map_path=f"annotations/{split}"),
            pipeline=_rescaled(next(innermost_datasets(loader.dataset)).pipeline),
        )
    _augment_little(cfg.train_dataloader.dataset.pipeline)
    _small_loaders(cfg)
    steps = 800
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=steps, val_interval=400)
    _schedule(cfg, steps, lr=5e-4)
    cfg.default_hooks.checkpoint = dict(
        type="CheckpointHook", by_epoch=False, interval=400, save_best="mIoU", max_keep_ckpts=2
    )


def _segment_small_images(model: Config) -> None:
    """Adapt a segmentor to learning a few classes in minutes."""
    for part in dicts_in(model):
        if part.get("type") == "FPN":
            part.norm_cfg = _group_norm(part.out_channels)
        elif part.get("type") == "UPerHead":
            part.channels = 128


def _overlay_classification(cfg: Config, root: Path) -> None:
    classes = sorted(CLASSES)  # in the order of their folders
    _set(cfg.model, "num_classes", len(classes))
    cfg.model.train_cfg = None  # mixed images need more epochs than these
    size = (CLASSIFIED, CLASSIFIED)
    load, pack = dict(type="LoadImageFromFile"), dict(type="PackInputs")
    train = [
        load,
        dict(type="RandomResizedCrop", scale=CLASSIFIED, crop_ratio_range=(0.6, 1.0)),
        dict(type="RandomFlip", prob=0.5, direction="horizontal"),
        pack,
    ]
    cfg.test_pipeline = [load, dict(type="Resize", scale=size), pack]
    loaders = (
        ("train", cfg.train_dataloader, train),
        ("val", cfg.val_dataloader, cfg.test_pipeline),
        ("val", cfg.test_dataloader, cfg.test_pipeline),
    )
    for split, loader, pipeline in loaders:
        loader.dataset = dict(
            type="CustomDataset",
            data_root=f"{root}/classification",
            data_prefix=split,
            metainfo=dict(classes=classes),
            pipeline=pipeline,
        )
        loader.update(batch_size=32, num_workers=1)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.topk = (1,)  # there are four classes
    epochs, steps_per_epoch = 6, 45
    cfg.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=2)
    _schedule(cfg, steps=epochs * steps_per_epoch, lr=1e-3)
    cfg.default_hooks.checkpoint = dict(type="CheckpointHook", interval=2, save_best="auto", max_keep_ckpts=2)
    # The average of the weights would lag behind in so few steps.
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if type_name(hook) != "EMAHook"]
    cfg.load_from = None


def _augment_little(pipeline: list[Any]) -> None:
    """Reduce augmentation, as colour hints at the classes and training is short."""
    for step in dicts_in(pipeline):
        if step.get("type") == "RandomResize":
            step.ratio_range = (0.9, 1.1)
        elif step.get("type") == "PhotoMetricDistortion":
            step.update(brightness_delta=8, contrast_range=(0.9, 1.1), saturation_range=(0.9, 1.1), hue_delta=2)


def _group_norm(channels: int) -> dict[str, Any]:
    """Return the norm for a neck or head: 32 groups, or fewer if a group would have less than 4 channels."""
    return dict(type="GN", num_groups=gcd(32, channels // 4))


def _schedule(cfg: Config, steps: int, lr: float) -> None:
    """Set the schedule: warm-up, the full learning rate for a third of the steps, then cosine annealing."""
    cfg.optim_wrapper = dict(
        type="OptimWrapper",
        optimizer=dict(type="AdamW", lr=lr, weight_decay=0.05),
        # The narrow layers of the backbones tolerate larger steps than the wide layers of neck and head.
        paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys={"backbone": dict(lr_mult=1e-3 / lr)}),
        clip_grad=dict(max_norm=35),
    )
    cfg.param_scheduler = [
        dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=30),
        dict(
            type="CosineAnnealingLR",
            by_epoch=False,
            begin=steps // 3,
            end=steps,
            T_max=steps - steps // 3,
            eta_min=1e-5,
        ),
    ]


def _start_from_scratch(model: Config) -> None:
    """Remove pretrained weights, freezing and drop path, and let batch norms learn their statistics."""
    remove_pretrained(model)
    backbone = model.backbone
    if str(backbone.type).startswith("mmcare."):
        backbone.update(norm_eval=False, frozen_stages=-1, drop_path_rate=0.0)
    if backbone.type in ("mmcare.CARE", "mmcare.CAREAblation"):
        backbone.layer_scale_init_value = 0.3  # from 1e-6, blocks need longer than this schedule to take effect


def _small_loaders(cfg: Config) -> None:
    cfg.train_dataloader.update(batch_size=8, num_workers=1)
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=1, num_workers=1)


def _rescaled(pipeline: list[Any]) -> list[Any]:
    """Replace the resize and crop sizes of a pipeline in place, and return it."""
    for step in dicts_in(pipeline):
        if "scale" in step:
            step.scale = SCALE
        if "crop_size" in step:
            step.crop_size = CROP
    return pipeline


def _set(node: Any, key: str, value: Any) -> None:
    for part in dicts_in(node):
        if key in part:
            part[key] = value
