"""Weights are loaded correctly through a config's init_cfg, through a function, and through MMEngine's loading."""

import argparse
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from pickle import UnpicklingError

import pytest
import torch
from helpers import (
    ARCHS,
    DETECTOR,
    IN_PROCESS,
    SEGMENTOR,
    Touch,
    backbone_weights,
    expected,
    image,
    load_tool,
    relative_error,
    weights,
)
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import PretrainedInit
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint as mmengines_load_checkpoint
from safetensors.torch import save_file

import mmcare
from mmcare import CARE, CASViT, UserError
from mmcare.checkpoints import read_checkpoint
from mmcare.data.sample import CLASSES, SEMANTIC_CLASSES

STATES = {family: backbone_weights(family, arch) for family, arch in (("CARE", "s0"), ("CASViT", "xs"))}


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def assert_authors_outputs(model, family, arch):
    with torch.no_grad():
        outputs = model.eval()(image())
    for output, wanted in zip(outputs, expected(family, arch), strict=True):
        assert relative_error(output, wanted) < 1e-5


# -- a config's init_cfg -----------------------------------------------------------------------------------------------

WRAPPED = {
    "bare": lambda state: state,
    "ordered": OrderedDict,
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {
        "state_dict": state,
        "optimizer": {"state": {0: {"step": 1}}},
        "args": argparse.Namespace(lr=0.1),
    },
    "state_dict_ema": lambda state: {"state_dict_ema": state},
    "model_ema": lambda state: {"model_ema": state},
    "data parallel": lambda state: {"state_dict": prefixed(state, "module.")},
    "detector": lambda state: {
        "state_dict": {**prefixed(state, "backbone."), "bbox_head.retina_cls.weight": torch.zeros(2)}
    },
    "parallel detector": lambda state: {"state_dict": prefixed(state, "module.backbone.")},
    "classifier": lambda state: {**state, "head.fc.weight": torch.zeros(3), "dist_head.fc.weight": torch.zeros(3)},
}


@pytest.mark.stack
@pytest.mark.parametrize("wrapping", WRAPPED)
@pytest.mark.parametrize(("family", "arch"), [("CARE", "s0"), ("CASViT", "xs")])
def test_every_format_gives_the_authors_outputs(family, arch, wrapping, tmp_path, pretrained):
    file = tmp_path / "weights.pth.tar"
    torch.save(WRAPPED[wrapping](STATES[family]), file)
    assert_authors_outputs(pretrained(family, arch, file), family, arch)


def test_safetensors_and_files_of_our_own(tmp_path, pretrained):
    model = CARE("s0")
    torch.save({"state_dict": prefixed(model.state_dict(), "backbone."), "meta": {}}, tmp_path / "own.pth")
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    for file in ("own.pth", "own.safetensors"):
        loaded = pretrained("CARE", "s0", tmp_path / file).state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def ask(file, **more):
    return dict(type="Pretrained", checkpoint=str(file), **more)


INIT_CFGS = {
    "dict": ask,
    "list": lambda file: [ask(file)],
    "list with others": lambda file: [ask(file), dict(type="Constant", layer="Conv2d", val=3.0)],
    "class": lambda file: dict(ask(file), type=PretrainedInit),
    "class in a list": lambda file: [dict(ask(file), type=PretrainedInit)],
    "class's name": lambda file: dict(ask(file), type="PretrainedInit"),
    "scope": lambda file: dict(ask(file), type="mmengine.Pretrained"),
    "ours": lambda file: dict(ask(file), type="mmcare.PretrainedBackbone", map_location="cpu"),
}


@pytest.mark.stack
@pytest.mark.parametrize("way", INIT_CFGS)
def test_every_way_to_ask_for_a_files_weights_gives_them(way, tmp_path):
    file = tmp_path / "cas-vit-xs.pth"
    torch.save({"model": STATES["CASViT"]}, file)
    MMLogger.get_instance(str(tmp_path), log_file=str(tmp_path / "log"))  # the present one from now on
    model = MODELS.build(dict(type="mmcare.CASViT", arch="xs", init_cfg=INIT_CFGS[way](file)))
    model.init_weights()
    assert_authors_outputs(model, "CASViT", "xs")
    # MMEngine's report names the source of each parameter's value. It goes to the log's file where there is one.
    _, _, entry = (tmp_path / "log").read_text().partition("\nstages.0.blocks.0.mlp.fc1.weight ")
    assert f"PretrainedBackbone: load from {file}" in " ".join(entry.split("\n \n")[0].split())
    other = MODELS.build(dict(type="mmcare.CASViT", arch="s", init_cfg=INIT_CFGS[way](file)))
    with pytest.raises(UserError, match=r"cas-vit-xs\.pth does not fit CASViT s.*its backbone is CASViT xs"):
        other.init_weights()


@pytest.mark.parametrize("prefix", ["img_backbone", "img_backbone."])
def test_the_part_of_a_file_that_a_prefix_names(prefix, tmp_path, pretrained):
    torch.save({**prefixed(STATES["CARE"], "img_backbone."), "pts_backbone.weight": torch.zeros(1)}, tmp_path / "a.pth")
    assert_authors_outputs(pretrained("CARE", "s0", tmp_path / "a.pth", prefix=prefix), "CARE", "s0")
    with pytest.raises(UserError, match="none of its weights"):
        pretrained("CARE", "s0", tmp_path / "a.pth")


# -- mmcare.load_checkpoint --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "arch"), ARCHS)
def test_a_backbone_takes_its_authors_file(family, arch, tmp_path):
    torch.save({"model": backbone_weights(family, arch)}, tmp_path / "weights.pth")
    model = getattr(mmcare, family)(arch)
    assert mmcare.load_checkpoint(model, tmp_path / "weights.pth")["meta"] == {}
    assert_authors_outputs(model, family, arch)


def test_all_weights_must_be_there_unless_it_is_said_otherwise(tmp_path, log):
    torch.save({"model": weights("CASViT", "xs", "classifier")}, tmp_path / "imagenet.pth")
    model = CASViT("xs")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=r"imagenet\.pth does not fit CASViT xs: it lacks .*: out_norms\.0\.weight"):
        mmcare.load_checkpoint(model, tmp_path / "imagenet.pth")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    mmcare.load_checkpoint(model, tmp_path / "imagenet.pth", strict=False)
    assert torch.equal(model.stem.conv1.weight, STATES["CASViT"]["patch_embed.0.weight"])
    assert any("left at their initial values: out_norms.0.weight" in message for message in log)


# -- training checkpoints in MMDetection's and MMSegmentation's functions ----------------------------------------------

SETTINGS = [
    *IN_PROCESS,
    *(f"val_{part}=None" for part in ("dataloader", "cfg", "evaluator")),
    "train_dataloader.dataset.indices=4",
    "train_dataloader.batch_size=2",
]


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return tmp_path_factory.mktemp("ground")


@pytest.fixture(scope="module")
def detector(ground, train):
    """Return config and checkpoint of a detector after two training steps; the config lets every box through."""
    (ground / "detector.py").write_text(DETECTOR)
    folder = train(ground, "detector.py", "--sample", "--cfg-options", *SETTINGS, "train_cfg.max_epochs=1")
    cfg = Config.fromfile(folder / "detector.py")
    cfg.model.test_cfg.update(score_thr=0.0, max_per_img=5)
    return cfg, str(folder / "epoch_1.pth")


@pytest.fixture(scope="module")
def segmentor(ground, train):
    (ground / "segmentor.py").write_text(SEGMENTOR)
    folder = train(ground, "segmentor.py", "--sample", "--cfg-options", *SETTINGS, "train_cfg.max_iters=2")
    cfg = Config.fromfile(folder / "segmentor.py")
    return cfg, str(folder / "iter_2.pth")


@pytest.fixture(scope="module")
def picture(ground, detector):
    return str(next(ground.rglob("val2017/*.jpg")))


def assert_holds(model, file):
    state = read_checkpoint(file)["state_dict"]
    own = model.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[name], value) for name, value in state.items())


@pytest.mark.stack
@pytest.mark.usefixtures("safe_loading")
def test_mmdetections_functions_take_what_was_trained_here(ground, detector, picture, monkeypatch):
    from mmdet.apis import DetInferencer, inference_detector, init_detector

    monkeypatch.chdir(ground)
    cfg, file = detector
    model = init_detector(cfg, file, device="cpu")
    assert_holds(model, file)
    assert tuple(model.dataset_meta["classes"]) == CLASSES
    found = inference_detector(model, picture).pred_instances
    assert len(found) == 5

    inferencer = DetInferencer(cfg, file, device="cpu", show_progress=False)
    assert_holds(inferencer.model, file)
    assert inferencer.visualizer.dataset_meta["classes"] == model.dataset_meta["classes"]
    (prediction,) = inferencer(picture)["predictions"]
    assert prediction["labels"] == found.labels.tolist()
    torch.testing.assert_close(torch.tensor(prediction["scores"]), found.scores)
    torch.testing.assert_close(torch.tensor(prediction["bboxes"]), found.bboxes)

    model.init_weights()
    init_default_scope("mmdet")
    meta = mmcare.load_checkpoint(model, file)["meta"]
    assert meta["dataset_meta"]["classes"] == CLASSES
    assert_holds(model, file)


@pytest.mark.stack
@pytest.mark.usefixtures("safe_loading")
def test_mmsegmentations_functions_take_what_was_trained_here(ground, segmentor, picture, monkeypatch):
    from mmseg.apis import MMSegInferencer, inference_model, init_model

    monkeypatch.chdir(ground)
    cfg, file = segmentor
    model = init_model(cfg, file, device="cpu")
    assert_holds(model, file)
    assert tuple(model.dataset_meta["classes"]) == SEMANTIC_CLASSES
    found = inference_model(model, picture).pred_sem_seg.data[0]
    assert found.shape[0] > 1

    inferencer = MMSegInferencer(cfg, file, device="cpu")
    assert_holds(inferencer.model, file)
    prediction = inferencer(picture, show=False)["predictions"]
    assert torch.equal(torch.from_numpy(prediction), found)

    # The authors' files have no meta, on which init_model relies.
    bare = str(ground / "bare.pth")
    torch.save(model.state_dict(), bare)
    assert_holds(init_model(cfg, bare, device="cpu"), file)

    model.init_weights()
    meta = mmcare.load_checkpoint(model, file)["meta"]
    assert meta["dataset_meta"]["classes"] == SEMANTIC_CLASSES
    assert_holds(model, file)


# -- untrusted files in MMEngine's loading -----------------------------------------------------------------------------


@pytest.mark.stack
@pytest.mark.usefixtures("safe_loading")
def test_a_hostile_file_is_refused_by_mmengine_and_all_who_use_it(detector, segmentor, tmp_path):
    from mmdet.apis import DetInferencer, init_detector
    from mmseg.apis import MMSegInferencer, init_model

    file, marker = str(tmp_path / "hostile.pth"), tmp_path / "marker"
    torch.save({"state_dict": STATES["CARE"], "meta": Touch(marker)}, file)
    for attempt in (
        lambda: mmengines_load_checkpoint(torch.nn.Linear(1, 1), file),
        lambda: init_detector(detector[0], file, device="cpu"),
        lambda: DetInferencer(detector[0], file, device="cpu"),
        lambda: init_model(segmentor[0], file, device="cpu"),
        lambda: MMSegInferencer(segmentor[0], file, device="cpu"),
    ):
        with pytest.raises(UserError, match=r"hostile\.pth asks to load io\.open"):
            attempt()
    assert not marker.exists()


INIT_OF_BACKBONE = [
    "model.backbone.init_cfg._delete_=True",  # --sample sets it to None
    "model.backbone.init_cfg.type=Pretrained",
    "model.backbone.init_cfg.checkpoint=hostile.pth",
]
# Modules other than mmcare's backbones are loaded by MMEngine.
INIT_OF_NECK = ["model.neck.init_cfg.type=Pretrained", "model.neck.init_cfg.checkpoint=hostile.pth"]
WAYS = {
    "test": ("test", "hostile.pth", "--sample", "--cfg-options", *SETTINGS),
    "train, resumed": ("train", "--sample", "--resume", "hostile.pth", "--cfg-options", *SETTINGS),
    "train, load_from": ("train", "--sample", "--cfg-options", *SETTINGS, "load_from=hostile.pth"),
    "train, init_cfg": ("train", "--sample", "--cfg-options", *SETTINGS, *INIT_OF_BACKBONE),
    "train, init_cfg of the neck": ("train", "--sample", "--cfg-options", *SETTINGS, *INIT_OF_NECK),
}


@pytest.mark.stack
@pytest.mark.usefixtures("own_process", "detector")
@pytest.mark.parametrize("way", WAYS)
def test_a_hostile_file_is_refused_by_the_tools(way, ground, refusal, monkeypatch):
    monkeypatch.chdir(ground)
    torch.save({"state_dict": {"weight": torch.zeros(1)}, "meta": Touch("marker")}, "hostile.pth")
    name, *args = WAYS[way]
    assert "hostile.pth asks to load" in refusal(
        load_tool(name).main, f"{name}.py", "detector.py", *args, "--work-dir", f"work_dirs/{way}"
    )
    assert not Path("marker").exists()


@pytest.mark.stack
@pytest.mark.usefixtures("safe_loading")
def test_other_loads_in_a_safe_process_run_no_code_either(tmp_path, monkeypatch):
    file, marker = str(tmp_path / "hostile.pth"), tmp_path / "marker"
    torch.save({"state_dict": STATES["CARE"], "meta": Touch(marker)}, file)
    with pytest.raises(UnpicklingError):
        torch.load(file, weights_only=False)
    started = f"import torch; torch.load({file!r}, weights_only=False)"
    assert subprocess.run([sys.executable, "-c", started], capture_output=True).returncode == 1
    assert not marker.exists()
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    torch.load(file, weights_only=False)["meta"].close()  # the trap works
    assert marker.exists()


@pytest.mark.stack
@pytest.mark.usefixtures("safe_loading")
def test_a_configs_text_in_a_file_is_not_run(tmp_path):
    """MMEngine's resume would run the text under meta.config, its inferencers the text under either cfg."""
    from mmdet.apis import DetInferencer

    file, marker = str(tmp_path / "program.pth"), tmp_path / "marker"
    text = f"model = dict(type='CASViT')\nopen({str(marker)!r}, 'w')"
    hub = {"log_scalars": {}, "runtime_info": {"cfg": text, "best": 1}, "resumed_keys": {}}
    meta = {"cfg": text, "config": text, "epoch": 1}
    torch.save({"state_dict": STATES["CARE"], "meta": meta, "message_hub": hub}, file)
    read = mmengines_load_checkpoint(CARE("s0"), file)
    assert read["meta"] == {"epoch": 1}
    assert read["message_hub"]["runtime_info"] == {"best": 1}
    with pytest.raises(ValueError, match="config"):
        DetInferencer(weights=file, device="cpu")
    assert not marker.exists()
    Config.fromstring(text, ".py")  # the trap works
    assert marker.exists()
