"""The published checkpoints of CAS-ViT's and CARE's authors load unchanged, and misfits are reported."""

import logging
import re
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import CONFIGS, IN_PROCESS, backbone_weights, load_tool
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmcare import CASViT, UserError
from mmcare.data.sample import CLASSES, SEMANTIC_CLASSES, prepare
from mmcare.runs import build_runner
from mmcare.runs.hooks import CheckpointFitHook

HEADS = {
    "retinanet": ("detection", 80),
    "mask_rcnn": ("detection", 80),
    "semantic_fpn": ("segmentation", 150),
}
ARCHS = ("xs", "s", "m", "t")
COUNTER = "num_batches_tracked"
# RetinaNet starts at stride 8, so its configs do not build the norm of the stride-4 map, which the files have.
UNUSED_NORM = "backbone.out_norms.0."
NORM = ("weight", "bias", "running_mean", "running_var", COUNTER)


# -- files as they are published ---------------------------------------------------------------------------------------


def conv(name, width, inputs, size=3, bias=True):
    return {f"{name}.weight": (width, inputs, size, size), **({f"{name}.bias": (width,)} if bias else {})}


def linear(name, width, inputs):
    return {f"{name}.weight": (width, inputs), f"{name}.bias": (width,)}


def fpn(arch, first, outputs):
    """Return the neck's parameters as in MMDetection 2.24 and MMSegmentation 0.24, for the levels from ``first`` on."""
    widths = CASViT.arch_settings[arch]["channels"][first:]
    shapes = {}
    for i, width in enumerate(widths):
        shapes |= conv(f"neck.lateral_convs.{i}.conv", 256, width, 1)
    for i in range(outputs):
        shapes |= conv(f"neck.fpn_convs.{i}.conv", 256, widths[-1] if i == len(widths) else 256)
    return shapes


def retinanet(arch, classes):
    shapes = fpn(arch, 1, 5)
    for i in range(4):
        shapes |= conv(f"bbox_head.cls_convs.{i}.conv", 256, 256) | conv(f"bbox_head.reg_convs.{i}.conv", 256, 256)
    return shapes | conv("bbox_head.retina_cls", 9 * classes, 256) | conv("bbox_head.retina_reg", 9 * 4, 256)


def mask_rcnn(arch, classes):
    shapes = fpn(arch, 0, 4) | conv("rpn_head.rpn_conv", 256, 256)
    shapes |= conv("rpn_head.rpn_cls", 3, 256, 1) | conv("rpn_head.rpn_reg", 12, 256, 1)
    box, mask = "roi_head.bbox_head", "roi_head.mask_head"
    shapes |= linear(f"{box}.fc_cls", classes + 1, 1024) | linear(f"{box}.fc_reg", 4 * classes, 1024)
    shapes |= linear(f"{box}.shared_fcs.0", 1024, 256 * 7 * 7) | linear(f"{box}.shared_fcs.1", 1024, 1024)
    for i in range(4):
        shapes |= conv(f"{mask}.convs.{i}.conv", 256, 256)
    return shapes | conv(f"{mask}.upsample", 256, 256, 2) | conv(f"{mask}.conv_logits", classes, 256, 1)


def semantic_fpn(arch, classes):
    shapes = fpn(arch, 0, 4) | conv("decode_head.conv_seg", classes, 128, 1)
    for place in ("0.0", "1.0", "2.0", "2.2", "3.0", "3.2", "3.4"):  # with an upsampling layer between each two
        name = f"decode_head.scale_heads.{place}"
        shapes |= conv(f"{name}.conv", 128, 256 if place.endswith(".0") else 128, bias=False)
        shapes |= {f"{name}.bn.{part}": (128,) for part in ("weight", "bias", "running_mean", "running_var")}
        shapes |= {f"{name}.bn.{COUNTER}": ()}
    return shapes


def weights(head, arch, classes):
    state = {f"backbone.{name}": value for name, value in backbone_weights("CASViT", arch).items()}
    generator = torch.Generator().manual_seed(0)
    for name, shape in globals()[head](arch, classes).items():
        state[name] = torch.randn(shape, generator=generator) / 50 if shape else torch.zeros((), dtype=torch.int64)
    return OrderedDict(state)


def published(head, arch, classes, **more):
    """Return a checkpoint as mmcv 1.x's ``save_checkpoint`` wrote it for MMDetection 2.24 and MMSegmentation 0.24."""
    state = weights(head, arch, classes)
    state._metadata = OrderedDict({"": dict(version=1)})
    package = {"detection": "mmdet_version", "segmentation": "mmseg_version"}[HEADS[head][0]]
    names = tuple(f"class {i}" for i in range(classes))
    meta = {
        "env_info": "sys.platform: linux\nPython: 3.8\nMMCV: 1.5.0",
        "config": "model = dict(type='Detector')\nraise SystemExit('executed')",
        package: "2.24.1+1b0ab82",
        "mmcv_version": "1.5.0",
        "time": "Mon Aug  5 10:00:00 2024",
        "seed": 0,
        "exp_name": "casvit.py",
        "epoch": 12,
        "iter": 87_960,
        "hook_msgs": {"best_score": np.float64(0.365), "best_ckpt": "work_dirs/best.pth", "last_ckpt": "epoch_12.pth"},
        "CLASSES": names,
        "PALETTE": [[0, 0, 0]] * classes if head == "semantic_fpn" else None,
    }
    moments = {"step": 87_960, "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}
    optimizer = {"state": {0: moments}, "param_groups": [{"lr": 2e-6, "betas": (0.9, 0.999), "params": [0]}]}
    return {"meta": meta, "state_dict": OrderedDict(state | more), "optimizer": optimizer}


def ema_copies(state):
    """Return the copies of mmcv 1.x's EMAHook, which are buffers of the model."""
    return {"ema_" + name.replace(".", "_"): value for name, value in state.items()}


def config(head, arch):
    return Config.fromfile(CONFIGS / f"{HEADS[head][0]}/{head}_casvit_{arch}.py")


def build(cfg):
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model)


def fit(model, checkpoint):
    """Run the hook as before MMEngine loads the weights; return the weights that it leaves."""
    loaded = {**checkpoint, "filename": "weights.pth"}
    CheckpointFitHook().after_load_checkpoint(SimpleNamespace(model=model), loaded)
    return loaded["state_dict"]


# -- fitting files -----------------------------------------------------------------------------------------------------


@pytest.mark.stack
@pytest.mark.usefixtures("own_process")
@pytest.mark.parametrize("head", HEADS)
def test_a_runner_takes_every_tensor_of_a_published_detector_or_segmentor(head, tmp_path, capfd):
    file = tmp_path / "published.pth"
    checkpoint = published(head, "xs", HEADS[head][1])
    torch.save(checkpoint, file)
    cfg = config(head, "xs")
    cfg.update(work_dir=str(tmp_path), launcher="none", load_from=str(file))
    runner = build_runner(cfg, require_all=True)
    runner.load_or_resume()
    loaded = dict(runner.model.state_dict())
    for name, value in checkpoint["state_dict"].items():
        scope, _, rest = name.partition(".")
        ours = f"{scope}.{CASViT.translate_name(rest)}" if scope == "backbone" else name
        if head != "retinanet" or not ours.startswith(UNUSED_NORM):
            assert torch.equal(loaded.pop(ours), value), name
    assert loaded == {}
    said = "".join(capfd.readouterr())
    left_over = [f"{UNUSED_NORM}{part}" for part in NORM] if head == "retinanet" else []
    assert re.findall(r"INFO - in \S+ but not used: (.*)", said) == [", ".join(left_over)] * bool(left_over)
    assert said.count("but not used") == bool(left_over)
    assert "unexpected key" not in said
    assert "missing key" not in said


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("arch", ARCHS)
def test_the_configs_models_have_the_published_parameters(head, arch):
    with torch.device("meta"):
        own = {name: tuple(value.shape) for name, value in build(config(head, arch)).state_dict().items()}
    shapes = globals()[head](arch, HEADS[head][1])
    names = backbone_weights("CASViT", arch)
    shapes |= {f"backbone.{CASViT.translate_name(name)}": tuple(value.shape) for name, value in names.items()}
    if head == "retinanet":
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(UNUSED_NORM)}
    assert own == shapes


def test_only_what_nobody_expects_is_warned_of(levels):
    model = build(config("retinanet", "xs"))
    checkpoint = published("retinanet", "xs", 80)
    state = checkpoint["state_dict"]
    unused = "in weights.pth but not used: "
    levels.clear()  # remove the messages of building the model
    assert set(fit(model, checkpoint)) == set(model.state_dict())
    assert levels.pop(logging.INFO) == [unused + ", ".join(UNUSED_NORM + part for part in NORM)]
    state.update(ema_copies(weights("retinanet", "xs", 80)))
    assert set(fit(model, checkpoint)) == set(model.state_dict())
    (said,) = levels.pop(logging.INFO)
    assert "ema_backbone_patch_embed_0_weight" in said
    assert logging.WARNING not in levels
    state["bbox_head.atss_centerness.weight"] = torch.zeros(1)
    fit(model, checkpoint)
    assert levels[logging.WARNING] == [f"{unused}bbox_head.atss_centerness.weight"]
    for name in [name for name in state if name.endswith(COUNTER)]:
        del state[name]  # as in files from before torch 0.4.1
    fit(model, checkpoint)
    del state["neck.fpn_convs.0.conv.bias"]
    with pytest.raises(UserError, match=r"weights\.pth .* lacks 1 of .*: neck\.fpn_convs\.0\.conv\.bias"):
        fit(model, checkpoint)


# -- from the command line ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ground")
    prepare(folder / "data/sample")
    return folder


# The parts of the published models, which --sample replaces with ones that learn faster.
AS_PUBLISHED = {
    "retinanet": ["model.neck.norm_cfg=None", "model.bbox_head.norm_cfg=None"],
    "mask_rcnn": [
        "model.neck.norm_cfg=None",
        "model.roi_head.bbox_head.fc_out_channels=1024",
        "model.roi_head.mask_head.conv_out_channels=256",
    ],
    "semantic_fpn": ["model.neck.norm_cfg=None"],
}


def options(head):
    few = ["test_dataloader.dataset.indices=2", *IN_PROCESS]
    cfg = CONFIGS / f"{HEADS[head][0]}/{head}_casvit_xs.py"
    return [cfg, "weights.pth", "--sample", "--cfg-options", *AS_PUBLISHED[head], *few]


@pytest.mark.stack
@pytest.mark.parametrize(
    ("head", "classes", "metric"),
    [
        ("retinanet", len(CLASSES), "coco/bbox_mAP: "),
        ("mask_rcnn", len(CLASSES), "coco/segm_mAP: "),
        ("semantic_fpn", len(SEMANTIC_CLASSES), "mIoU: "),
    ],
)
@pytest.mark.usefixtures("own_process")
def test_the_tool_tests_a_published_detector_or_segmentor(head, classes, metric, ground, in_process, monkeypatch):
    copies = ema_copies(weights(head, "xs", classes))
    torch.save(published(head, "xs", classes, **copies), ground / "weights.pth")
    monkeypatch.chdir(ground)
    status, printed = in_process(load_tool("test").main, "test.py", *options(head))
    said = printed.out + printed.err
    assert status == 0, said[-3000:]
    assert metric in said
    (left_over,) = re.findall("but not used: (.*)", said)
    expected = ["ema_", UNUSED_NORM] if head == "retinanet" else ["ema_"]
    assert all(name.startswith(tuple(expected)) for name in left_over.partition(" and ")[0].split(", "))
    assert "missing key" not in said


def other_arch():
    return published("retinanet", "s", len(CLASSES))


def care():
    state = weights("retinanet", "xs", len(CLASSES))
    state = {name: value for name, value in state.items() if not name.startswith("backbone.")}
    return {"state_dict": state | {f"backbone.{k}": v for k, v in backbone_weights("CARE", "s1").items()}}


def half(checkpoint):
    torch.save(checkpoint, "whole.pth")
    content = Path("whole.pth").read_bytes()
    return content[: len(content) // 2]


MISFITS = {
    "another arch": ("retinanet", other_arch, "differ in shape.*its backbone is CASViT s$"),
    "another family": ("retinanet", care, "lacks.*its backbone is CARE s1$"),
    "other classes, RetinaNet": (
        "retinanet",
        lambda: published("retinanet", "xs", 80),
        f"has 80 classes, .* has {len(CLASSES)};",
    ),
    "other classes, Mask R-CNN": (
        "mask_rcnn",
        lambda: published("mask_rcnn", "xs", 80),
        f"has 80 classes, .* has {len(CLASSES)};",
    ),
    "other classes, FPN": (
        "semantic_fpn",
        lambda: published("semantic_fpn", "xs", 150),
        f"has 150 classes, .* has {len(SEMANTIC_CLASSES)};",
    ),
    "another detector": ("mask_rcnn", lambda: published("retinanet", "xs", len(CLASSES)), "differ in shape|lacks"),
    "half": (
        "retinanet",
        lambda: half(published("retinanet", "xs", len(CLASSES))),
        "damaged, truncated or not a checkpoint",
    ),
}


@pytest.fixture
def refused(ground, monkeypatch, own_process, refusal):
    """Run a tool with this content of weights.pth; return its error message."""
    monkeypatch.chdir(ground)

    def refused(name, content, *args):
        if isinstance(content, bytes):
            Path("weights.pth").write_bytes(content)
        else:
            torch.save(content, "weights.pth")
        sentence = refusal(load_tool(name).main, f"{name}.py", *args)
        assert "weights.pth" in sentence
        return sentence

    return refused


@pytest.mark.stack
@pytest.mark.parametrize(("head", "content", "told"), MISFITS.values(), ids=MISFITS)
def test_a_checkpoint_that_does_not_fit_is_told_in_one_line(head, content, told, refused):
    assert re.search(told, refused("test", content(), *options(head)))


# Ways to start a training from a file: all of its weights, or only the backbone's.
STARTS = {
    "load_from": ["load_from=weights.pth"],
    "init_cfg": [
        "model.backbone.init_cfg._delete_=True",  # --sample sets it to None
        "model.backbone.init_cfg.type=Pretrained",
        "model.backbone.init_cfg.checkpoint=weights.pth",
    ],
}
MISSTARTS = [
    *((start, fault) for start in STARTS for fault in ("another arch", "half")),
    ("load_from", "another family"),
    ("init_cfg", "another family"),
]


@pytest.mark.parametrize(("start", "fault"), MISSTARTS, ids=map(": ".join, MISSTARTS))
def test_a_training_from_a_checkpoint_that_does_not_fit_is_refused_in_one_line(start, fault, ground, refused):
    head, content, told = MISFITS[fault]
    cfg, _, *rest = options(head)
    told = told.replace("lacks.*", "")  # training allows missing weights; the error is that nothing fits
    assert re.search(told, refused("train", content(), cfg, *rest, *STARTS[start]))
    assert list((ground / "work_dirs").rglob("*.pth")) == []
