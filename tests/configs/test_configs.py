"""Every config in configs/ builds, has matching parts, and has the authors' or the usual training settings."""

from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmcare.data.sample.overlay import overlay_sample

ROOT = Path(__file__).parent.parent.parent
MODELS_BY_TASK = {"detection": ("retinanet", "mask_rcnn"), "segmentation": ("semantic_fpn", "upernet")}
BACKBONES = {
    "care_s0": ("mmcare.CARE", "checkpoints/CARETrans_S0.pth.tar", [32, 64, 128, 1024], 0.0),
    "care_s1": ("mmcare.CARE", "checkpoints/CARETrans_S1.pth.tar", [32, 64, 128, 1024], 0.1),
    "care_s2": ("mmcare.CARE", "checkpoints/CARETrans_S2.pth.tar", [32, 64, 192, 1536], 0.1),
    "casvit_xs": ("mmcare.CASViT", "checkpoints/cas-vit-xs.pth", [48, 56, 112, 220], 0.0),
    "casvit_s": ("mmcare.CASViT", "checkpoints/cas-vit-s.pth", [48, 64, 128, 256], 0.1),
    "casvit_m": ("mmcare.CASViT", "checkpoints/cas-vit-m.pth", [64, 96, 192, 384], 0.1),
    "casvit_t": ("mmcare.CASViT", "checkpoints/cas-vit-t.pth", [96, 128, 256, 512], 0.1),
}
CONFIGS = {
    f"{model}_{backbone}": f"configs/{task}/{model}_{backbone}.py"
    for task, models in MODELS_BY_TASK.items()
    for model in models
    for backbone in BACKBONES
}
every = pytest.mark.parametrize("name", CONFIGS)


@cache
def _read(name):
    return Config.fromfile(ROOT / CONFIGS[name])


def read(name):
    return _read(name).copy()


def backbone_of(name):
    return BACKBONES[next(backbone for backbone in BACKBONES if name.endswith(f"_{backbone}"))]


def build(cfg):
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.eval()
    return model


def test_there_is_a_config_for_each_backbone_in_each_detector_and_segmentor():
    found = [
        path.relative_to(ROOT).as_posix() for task in MODELS_BY_TASK for path in (ROOT / "configs" / task).iterdir()
    ]
    assert sorted(path for path in found if "__pycache__" not in path) == sorted(CONFIGS.values())


# -- models ------------------------------------------------------------------------------------------------------------


@every
def test_the_backbone_and_the_channels_are_the_ones_in_the_name(name):
    kind, checkpoint, channels, drop_path_rate = backbone_of(name)
    model = read(name).model
    # RetinaNet does not use the stride-4 map, whose norm in CAS-ViT would get no gradient.
    three_maps = name.startswith("retinanet_casvit")
    assert model.backbone == dict(
        type=kind,
        arch=name.rpartition("_")[2],
        **(dict(out_indices=(1, 2, 3)) if three_maps else {}),
        drop_path_rate=drop_path_rate,
        init_cfg=dict(type="Pretrained", checkpoint=checkpoint),
    )
    if name.startswith("upernet"):
        assert (model.decode_head.in_channels, model.auxiliary_head.in_channels) == (channels, channels[2])
    else:
        assert model.neck.in_channels == channels[1 if three_maps else 0 :]


@pytest.mark.stack
@pytest.mark.parametrize("name", [name for name in CONFIGS if name.endswith(("care_s0", "casvit_xs"))])
def test_the_parts_give_maps_and_predictions_of_these_shapes(name):
    model = build(read(name))
    with torch.no_grad():
        maps = model.extract_feat(torch.zeros(1, 3, 64, 64))
        sides = [tuple(level.shape[1:]) for level in maps]
        if name.startswith("retinanet"):
            assert sides == [(256, side, side) for side in (8, 4, 2, 1, 1)]
            scores, boxes = model.bbox_head(maps)
            assert [score.shape[1:] for score in scores] == [(9 * 80, *side[1:]) for side in sides]
            assert [box.shape[1:] for box in boxes] == [(9 * 4, *side[1:]) for side in sides]
        elif name.startswith("mask_rcnn"):
            assert sides == [(256, side, side) for side in (16, 8, 4, 2, 1)]
            scores, _ = model.rpn_head(maps)
            assert [score.shape[1:] for score in scores] == [(3, *side[1:]) for side in sides]
            regions = torch.tensor([[0.0, 0, 0, 32, 32], [0, 8, 8, 64, 64]])
            assert model.roi_head._bbox_forward(maps, regions)["cls_score"].shape == (2, 81)
            assert model.roi_head._mask_forward(maps, regions)["mask_preds"].shape == (2, 80, 28, 28)
        else:
            widths = [256] * 4 if name.startswith("semantic_fpn") else backbone_of(name)[2]
            assert sides == [(width, side, side) for width, side in zip(widths, (16, 8, 4, 2), strict=True)]
            assert model.decode_head(maps).shape == (1, 150, 16, 16)
            if name.startswith("upernet"):
                assert model.auxiliary_head(maps).shape == (1, 150, 4, 4)


# -- training ----------------------------------------------------------------------------------------------------------


@every
def test_data_and_batch(name):
    cfg = read(name)
    loader, evaluator = cfg.train_dataloader, cfg.val_evaluator
    data = {"mmdet": ("CocoDataset", "data/coco/"), "mmseg": ("ADE20KDataset", "data/ade/ADEChallengeData2016")}
    metric = {"retinanet": "bbox", "mask_rcnn": ["bbox", "segm"], "semantic_fpn": ["mIoU"], "upernet": ["mIoU"]}
    assert (loader.dataset.type, loader.dataset.data_root) == data[cfg.default_scope]
    assert loader.batch_size == (2 if name.startswith("upernet") else 4)
    # 8 GPUs, for --auto-scale-lr
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=8 * loader.batch_size)
    model = next(model for model in metric if name.startswith(model))
    assert evaluator.get("metric", evaluator.get("iou_metrics")) == metric[model]
    processor = cfg.model.data_preprocessor
    assert (processor.mean, processor.std) == ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    assert processor.bgr_to_rgb
    masks = [step.get("with_mask", False) for step in loader.dataset.pipeline if step.type == "LoadAnnotations"]
    assert masks == [name.startswith("mask_rcnn")]


@every
def test_optimizer(name):
    wrapper = read(name).optim_wrapper
    rate, decay = (6e-5, 0.01) if name.startswith("upernet") else (2e-4, 1e-4)
    assert wrapper.optimizer == dict(type="AdamW", lr=rate, weight_decay=decay)
    assert wrapper.type == "OptimWrapper"
    assert "clip_grad" not in wrapper


@every
def test_schedule(name):
    cfg = read(name)
    checkpoints = cfg.default_hooks.checkpoint
    warm_up = [scheduler for scheduler in cfg.param_scheduler if scheduler.type == "LinearLR"]
    last = cfg.param_scheduler[-1]
    if cfg.default_scope == "mmdet":
        assert cfg.train_cfg == dict(type="EpochBasedTrainLoop", max_epochs=12, val_interval=1)
        assert (last.type, last.milestones, last.gamma, last.by_epoch) == ("MultiStepLR", [8, 11], 0.1, True)
        assert [scheduler.end for scheduler in warm_up] == [500]
        return
    upernet = name.startswith("upernet")
    iterations = 160_000 if upernet else 40_000
    assert cfg.train_cfg == dict(type="IterBasedTrainLoop", max_iters=iterations, val_interval=iterations // 10)
    assert checkpoints.interval == iterations // 10
    assert [scheduler.end for scheduler in warm_up] == ([1_500] if upernet else [])
    assert last == dict(
        type="PolyLR",
        power=1.0 if upernet else 0.9,
        eta_min=0.0,
        begin=1_500 if upernet else 0,
        end=iterations,
        by_epoch=False,
    )


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("upernet")])
def test_no_weight_decay_on_norms_and_layer_scale_in_upernet(name):
    cfg = read(name)
    model = build(cfg)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    spared = {id(p) for module in model.modules() if isinstance(module, norms) for p in module.parameters()}
    layer_scales = {id(p) for parameter, p in model.named_parameters() if "layer_scale" in parameter}
    blocks = sum(len(stage.blocks) for stage in model.backbone.stages)
    assert len(layer_scales) == (blocks - 1 if "care" in name else 0)  # CARE's last block has none
    for parameter, p in model.named_parameters():
        assert decay[id(p)] == (0 if id(p) in spared | layer_scales else 0.01), parameter


# -- sample data -------------------------------------------------------------------------------------------------------


@every
def test_the_sample_data_goes_over_it(name):
    cfg = read(name)
    overlay_sample(cfg, Path("somewhere"))
    assert cfg.model.backbone.init_cfg is None
    assert cfg.train_dataloader.dataset.data_root.startswith("somewhere/")
    heads = [cfg.model.get(head) for head in ("bbox_head", "decode_head", "auxiliary_head")]
    heads += list((cfg.model.get("roi_head") or {}).values())
    classes = {head.num_classes for head in heads if isinstance(head, dict) and "num_classes" in head}
    assert classes == {len(cfg.train_dataloader.dataset.metainfo.classes)}


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith(MODELS_BY_TASK["segmentation"])])
def test_the_sample_data_keeps_the_size_and_the_hue_that_tell_its_classes(name):
    cfg = read(name)
    overlay_sample(cfg, Path("somewhere"))
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert steps["RandomResize"].ratio_range == (0.9, 1.1)
    assert steps["PhotoMetricDistortion"].hue_delta <= 2  # of 180 in OpenCV; the hues of the classes are 45 apart


@pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith("upernet")])
def test_from_scratch_a_neck_has_group_norm(name):
    cfg = read(name)
    overlay_sample(cfg, Path("somewhere"))
    assert cfg.model.neck.norm_cfg == dict(type="GN", num_groups=32)
