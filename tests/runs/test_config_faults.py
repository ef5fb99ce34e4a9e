"""A config error is reported in one sentence; a bug keeps its stack trace."""

import pytest
from helpers import CONFIGS
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmcare import UserError
from mmcare.data.sample import overlay_sample
from mmcare.runs import explain_config_faults

OURS = sorted([*CONFIGS.glob("*/*_care_s1.py"), *CONFIGS.glob("*/*_casvit_m.py")])
SPLITS = ("train", "val", "test")


@pytest.fixture
def cfg():
    cfg = Config.fromfile(CONFIGS / "detection/mask_rcnn_care_s1.py")
    init_default_scope(cfg.default_scope)
    return cfg


def bug():
    return {}["a key"]


def assert_fault(cfg, fault, splits=SPLITS):
    with pytest.raises(UserError) as told, explain_config_faults(cfg, splits):
        bug()
    assert str(told.value).startswith(f"the config's {fault}")
    assert isinstance(told.value.__cause__, KeyError)


def assert_no_fault(cfg, splits=SPLITS):
    with pytest.raises(KeyError), explain_config_faults(cfg, splits):
        bug()


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_our_configs_have_no_fault(path, tmp_path):
    cfg = Config.fromfile(path)
    assert_no_fault(cfg)
    overlay_sample(cfg, tmp_path)
    assert_no_fault(cfg)


def test_what_whoever_builds_a_part_adds_or_takes_away_is_no_fault(cfg):
    wrapped = dict(
        type="RepeatDataset", times=2, dataset=dict(type="ConcatDataset", datasets=[cfg.train_dataloader.dataset])
    )
    cfg.merge_from_dict(
        {
            "train_dataloader.dataset": dict(wrapped, _delete_=True),
            # DETR's head removes this weight before it builds its loss.
            "model.rpn_head.loss_cls.bg_cls_weight": 0.1,
            "train_dataloader.sampler": dict(type="InfiniteSampler", shuffle=True, _delete_=True),
            "custom_hooks": [dict(type="EMAHook", momentum=0.1, priority="LOW"), dict(type="mmcare.FiniteLossHook")],
            "param_scheduler": [dict(type="LinearLR", start_factor=0.1, begin=0, end=1, convert_to_iter_based=True)],
            "optim_wrapper.paramwise_cfg": dict(norm_decay_mult=0.0),
            "optim_wrapper.constructor": "DefaultOptimWrapperConstructor",
            "val_evaluator": dict(metrics=[dict(type="CocoMetric")], _delete_=True),
            "test_evaluator": [dict(type="CocoMetric"), dict(type="mmdet.DumpDetResults", out_file_path="a.pkl")],
            "visualizer.vis_backends": [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
            "log_processor": dict(window_size=10, _delete_=True),
        }
    )
    assert_no_fault(cfg)


FAULTS = {
    "unknown model": ("model.type", "MaskRCN", "model has type='MaskRCN', which is not registered"),
    "unknown backbone": ("model.backbone.type", "mmcare.CAREE", "model.backbone has type='mmcare.CAREE', which is not"),
    "unknown package": ("model.backbone.type", "mmnowhere.Net", "model.backbone has type='mmnowhere.Net'"),
    "unknown argument": (
        "model.backbone.colour",
        1,
        "model.backbone does not fit mmcare.CARE, which has no argument colour",
    ),
    "unknown loss": ("model.rpn_head.loss_cls.type", "Loss", "model.rpn_head.loss_cls has type='Loss'"),
    "unknown coder": ("model.rpn_head.bbox_coder.type", "Coder", "model.rpn_head.bbox_coder has type='Coder'"),
    "missing argument": ("model", dict(type="RetinaNet", _delete_=True), "model does not fit RetinaNet, which needs "),
    "no type": ("model.type", None, "model has no type"),
    "dataset": ("train_dataloader.dataset.type", "Coco", "train_dataloader.dataset has type='Coco'"),
    "transform": (
        "train_dataloader.dataset.pipeline.2.size",
        3,
        "train_dataloader.dataset.pipeline.2 does not fit Resize, which has no argument size",
    ),
    "sampler": ("val_dataloader.sampler.type", "Sampler", "val_dataloader.sampler has type='Sampler'"),
    "metric": ("test_evaluator.metrik", "bbox", "test_evaluator does not fit CocoMetric, which has no argument metrik"),
    "hook": ("custom_hooks", [dict(type="NoHook")], "custom_hooks.0 has type='NoHook'"),
    "default hook": ("default_hooks.logger.every", 5, "default_hooks.logger does not fit LoggerHook, which has no"),
    "optimizer": ("optim_wrapper.optimizer.rate", 0.1, "optim_wrapper.optimizer does not fit AdamW, which has no"),
    "wrapper": ("optim_wrapper.type", "Wrapper", "optim_wrapper has type='Wrapper'"),
    "scheduler": ("param_scheduler.0.type", "LR", "param_scheduler.0 has type='LR'"),
    "loop": ("train_cfg.epochs", 3, "train_cfg does not fit EpochBasedTrainLoop, which has no argument epochs"),
    "visualizer": ("visualizer.type", "Vis", "visualizer has type='Vis'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_config_that_does_not_fit_what_it_names_is_told(cfg, fault):
    key, value, told = FAULTS[fault]
    cfg.merge_from_dict({key: value})
    if value is None:
        del cfg.model["type"]
    assert_fault(cfg, told)


def test_parts_that_a_run_does_not_use_are_not_its_fault(cfg):
    cfg.train_dataloader.dataset.type = "Coco"
    cfg.optim_wrapper.type = "Wrapper"
    assert_no_fault(cfg, splits=("test",))
    assert_fault(cfg, "train_dataloader.dataset", splits=("train", "val"))


def test_a_class_in_place_of_its_name(cfg):
    from mmcare import CARE

    cfg.model.backbone.type = CARE
    assert_no_fault(cfg)
    cfg.model.backbone.colour = 1
    assert_fault(cfg, "model.backbone does not fit CARE, which has no argument colour")


@pytest.mark.parametrize("settings", [dict(type="mmcare.CAREE"), dict(type="mmcare.CARE", colour=1)])
def test_what_mmengine_raises_for_a_fault_is_explained(cfg, settings):
    cfg.model.backbone = settings
    with pytest.raises(UserError, match=r"the config's model.backbone "), explain_config_faults(cfg, SPLITS):
        MODELS.build(cfg.model)


def test_other_errors_pass(cfg):
    cfg.model.type = "MaskRCN"
    with pytest.raises(ZeroDivisionError), explain_config_faults(cfg, SPLITS):
        _ = 1 / 0
