"""tools/visualize.py: which pictures it writes, that it replaces none by itself, and its refusals."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import DETECTOR, ROOT, SMALL_ARCHS, load_tool, run_tool, succeed
from mmengine.config import Config
from mmengine.registry import MODELS

import mmcare

tool = load_tool("visualize")

CASVIT = f"""
_base_ = ["detector.py"]
model = dict(backbone=dict(_delete_=True, type="mmcare.CASViT", arch=dict({SMALL_ARCHS["CASViT"]})))
"""
SHEETS = {
    "detector": ["attention_c4.png", "attention_c5.png", "maps.png"],
    "casvit": ["context_c2.png", "context_c3.png", "context_c4.png", "context_c5.png", "maps.png"],
}
SMALL = ["--cfg-options", "test_dataloader.dataset.pipeline.1.scale=(96,64)"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Return a folder with two configs, checkpoints of their backbones, and a picture of 60×40 pixels."""
    folder = tmp_path_factory.mktemp("visualize")
    for name, text in (("detector", DETECTOR), ("casvit", CASVIT)):
        (folder / f"{name}.py").write_text(text)
        backbone = MODELS.build(Config.fromfile(folder / f"{name}.py").model.backbone)
        state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
        torch.save({"state_dict": state}, folder / f"{name}.pth")
    cv2.imwrite(str(folder / "photo.jpg"), np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    return folder


@pytest.fixture
def visualize(prepared, tmp_path, monkeypatch, in_process):
    """Run the tool on the picture in an empty folder; return its exit status and its output."""
    monkeypatch.chdir(tmp_path)

    def visualize(name, *args, image="photo.jpg"):
        inputs = [prepared / image, "--model", prepared / f"{name}.pth", "--config", prepared / f"{name}.py"]
        return in_process(tool.main, "visualize.py", *inputs, *SMALL, *args)

    return visualize


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.stack
@pytest.mark.parametrize("name", SHEETS)
def test_all_pictures_of_a_network(visualize, tmp_path, name):
    status, printed = visualize(name, "--point", "10.5", "39")
    assert status == 0
    folder = tmp_path / "work_dirs/visualize/photo"
    assert names(folder) == SHEETS[name]
    assert sorted(printed.out.splitlines()[-len(SHEETS[name]) :]) == [
        f"picture: work_dirs/visualize/photo/{sheet}" for sheet in SHEETS[name]
    ]
    for path in folder.iterdir():
        assert cv2.imread(str(path)).std() > 20


def test_the_stages_that_are_asked_for(visualize, tmp_path):
    assert visualize("detector", "--stage", 3, "--out", "third")[0] == 0
    assert names(tmp_path / "third") == ["attention_c4.png", "maps.png"]
    assert visualize("detector", "--stage", 1, 2, "--out", "strips")[0] == 0
    assert names(tmp_path / "strips") == ["maps.png"]
    assert cv2.imread("strips/maps.png").shape[0] > 1.5 * cv2.imread("third/maps.png").shape[0]


def test_a_point_changes_the_attention_and_not_the_context(visualize):
    for name, sheet, same in (("detector", "attention_c4.png", False), ("casvit", "context_c4.png", True)):
        for out, point in (("left", (3, 3)), ("right", (58, 38))):
            assert visualize(name, "--stage", 3, "--point", *point, "--out", f"{name}/{out}")[0] == 0
        left, right = (cv2.imread(f"{name}/{out}/{sheet}") for out in ("left", "right"))
        assert np.array_equal(left, right) == same


def test_nothing_is_replaced_unless_asked(visualize, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "attention_c5.png").write_text("mine")
    (out / "other.png").write_text("mine")
    status, printed = visualize("detector", "--stage", 4, "--out", "out")
    assert status == 2
    told = "error: out/attention_c5.png exists: add --overwrite to replace it, or give another folder with --out\n"
    assert printed.err == told
    assert names(out) == ["attention_c5.png", "other.png"]
    assert (out / "attention_c5.png").read_text() == "mine"
    assert visualize("detector", "--stage", 4, "--out", "out", "--overwrite")[0] == 0
    assert names(out) == ["attention_c5.png", "maps.png", "other.png"]
    assert cv2.imread("out/attention_c5.png") is not None
    assert (out / "other.png").read_text() == "mine"


@pytest.mark.stack
def test_a_release_carries_its_config(prepared, tmp_path, monkeypatch, in_process, refusal):
    monkeypatch.chdir(tmp_path)
    meta = {"cfg": Config.fromfile(prepared / "detector.py").pretty_text}
    torch.save({**torch.load(prepared / "detector.pth"), "meta": meta}, "trained.pth")
    Path("release.safetensors").write_bytes(load_tool("publish_model").release("trained.pth", None, "safetensors"))
    options = [prepared / "photo.jpg", "--stage", 4, "--point", 50, 30]
    for out, args in (
        ("release", ["--model", "release.safetensors"]),
        ("config", ["--model", prepared / "detector.pth", "--config", prepared / "detector.py"]),
    ):
        assert in_process(tool.main, "visualize.py", *options, *args, "--out", out)[0] == 0
    for name in names(Path("config")):
        assert Path("release", name).read_bytes() == Path("config", name).read_bytes()
    told = refusal(tool.main, "visualize.py", *options, "--model", prepared / "detector.pth")
    assert told == f"{prepared}/detector.pth carries no config: give the config that it was trained with, too"


@pytest.mark.stack
def test_a_backbone_without_a_config_in_its_own_process(prepared):
    torch.save(mmcare.create_backbone("casvit_xs").state_dict(), prepared / "cas-vit-xs.pth")
    options = ["--backbone", "casvit_xs", "--stage", 4, "--out", "alone"]
    printed = succeed(run_tool("visualize", "photo.jpg", "--model", "cas-vit-xs.pth", *options, cwd=prepared))
    assert printed.splitlines()[-2:] == ["picture: alone/maps.png", "picture: alone/context_c5.png"]
    assert names(prepared / "alone") == ["context_c5.png", "maps.png"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--point", "60", "5"], "the point (60, 5) is outside {0}/photo.jpg, which is 60 pixels wide and 40 high"),
        (["--point", "-1", "5"], "the point (-1, 5) is outside "),
        (["--point", "nan", "5"], "the point (nan, 5) is outside "),
        (["--point", "5"], "argument --point: expected 2 arguments"),
        (["--stage", "5"], "argument --stage: invalid choice: 5 (choose from 1, 2, 3, 4)"),
        (["--backbone", "care_s1"], "argument --backbone: not allowed with argument --config"),
        (["--out", "/dev/null/x"], "/dev/null/x/maps.png ("),
        (["--config", "nix.py"], "there is no config nix.py"),
        (["--model", "nix.pth"], "there is no checkpoint nix.pth"),
        (["--model", "{0}/casvit.pth"], "{0}/casvit.pth does not fit CARE custom"),
        (["--model", "{0}/photo.jpg"], "{0}/photo.jpg"),
        (
            ["--cfg-options", "model.backbone.out_indices=(2,3)", "--stage", "1"],
            "there is nothing to draw in stage 1: this CARE custom returns the maps of stage 3, 4 only",
        ),
    ],
)
def test_a_mistake_is_told(visualize, prepared, tmp_path, args, message):
    status, printed = visualize("detector", *(arg.format(prepared) for arg in args))
    assert status == 2
    last = printed.err.splitlines()[-1]
    assert last.startswith("error: " + message.format(prepared))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "there is no checkpoint a.pth"),
        (["--backbone", "care_s1", "--cfg-options", "a=1"], "--cfg-options needs a --config"),
        (["--cfg-options", "a=1"], "--cfg-options needs a --config"),
        (["--backbone", "resnet50"], "mmcare has no backbone 'resnet50': choose one of care_s0"),
    ],
)
def test_a_mistake_without_a_config_is_told(refusal, args, message):
    assert refusal(tool.main, "visualize.py", "photo.jpg", "--model", "a.pth", *args).startswith(message)


def test_the_python_lines_of_the_documentation(prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    meta = {"cfg": Config.fromfile(prepared / "detector.py").pretty_text}
    torch.save({**torch.load(prepared / "detector.pth"), "meta": meta}, "epoch_12.pth")
    cv2.imwrite("street.jpg", np.zeros((480, 640, 3), np.uint8))
    (lines,) = re.findall(
        r"```python\n(from mmcare.inference.+?)```", (ROOT / "tools/README.md").read_text(), re.DOTALL
    )
    names = {}
    exec(lines, names)
    assert names["attention"][2][0].shape == (1, 50, 68)
