"""tools/publish_model.py: a release has only the weights and their description, and is written completely or not."""

import hashlib
import json
import re
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import LargestFile, backbone_weights, expected, image, load_tool, relative_error
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS
from safetensors import safe_open

import mmcare
from mmcare.checkpoints import read_checkpoint

FORMATS = ("pth", "safetensors")
CLASSES = ("circle", "square")

tool = load_tool("publish_model")


def backbone_state():
    model = MODELS.build(dict(type="mmcare.CASViT", arch="xs"))
    model.load_state_dict(backbone_weights("CASViT", "xs"))
    return model.state_dict()


def shifted(state):
    return {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}


@pytest.fixture(scope="module")
def weights():
    return {f"backbone.{name}": value for name, value in backbone_state().items()}


@pytest.fixture
def trained(weights, tmp_path, monkeypatch):
    """Write a checkpoint as MMEngine's Runner does with an EMAHook: the averaged weights are in the main entry."""
    monkeypatch.chdir(tmp_path)
    raw = {"steps": torch.tensor(9), **{f"module.{name}": value for name, value in shifted(weights).items()}}
    content = {
        "meta": {
            "cfg": "model = dict(type='RetinaNet')\n",
            "dataset_meta": {"classes": CLASSES, "palette": [(0, 0, 0), (9, 9, 9)], "ids": np.arange(2)},
            "epoch": 14,
            "iter": np.int64(420),
            "seed": 1234,
            "mmengine_version": "0.10.7",
            "time": "20261121_100000",
            "hook_msgs": {"last_ckpt": "/home/somebody/work_dirs/epoch_14.pth"},
            "experiment_name": "somebody",
        },
        "state_dict": weights,
        "ema_state_dict": raw,
        "message_hub": {"log_scalars": {"train/loss": HistoryBuffer([1.0, 0.5], [1, 1])}, "runtime_info": {}},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(9)}}, "param_groups": []},
        "param_schedulers": [{"last_step": 3}],
    }
    torch.save(content, "epoch_14.pth")
    return tmp_path


@pytest.fixture
def publish(in_process):
    """Run the tool; return the path of the file that it reports."""

    def publish(*args):
        status, printed = in_process(tool.main, "publish_model.py", *args)
        assert status == 0, printed.err
        return Path(re.search(r"^(\S+) \([\d.]+ MiB\)$", printed.out, re.MULTILINE)[1])

    return publish


def files():
    return sorted(path.name for path in Path().iterdir())


@pytest.mark.stack
@pytest.mark.parametrize("kind", FORMATS)
def test_a_release_gives_the_outputs_of_the_checkpoint(trained, publish, kind):
    file = publish("epoch_14.pth", f"release.{kind}")
    outputs = []
    for path in ("epoch_14.pth", str(file)):
        model = MODELS.build(dict(type="mmcare.CASViT", arch="xs", init_cfg=dict(type="Pretrained", checkpoint=path)))
        model.init_weights()
        with torch.no_grad():
            outputs.append(model.eval()(image()))
    for before, after, published in zip(*outputs, expected("CASViT", "xs"), strict=True):
        assert torch.equal(before, after)
        assert relative_error(after, published) < 1e-5


@pytest.mark.stack
@pytest.mark.parametrize("kind", FORMATS)
def test_a_release_holds_weights_and_what_describes_them(trained, publish, weights, kind):
    file = publish("epoch_14.pth", f"release.{kind}")
    assert file.name == f"release-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.{kind}"
    held = read_checkpoint(file)
    assert held["meta"] == {
        "cfg": "model = dict(type='RetinaNet')\n",
        "dataset_meta": {"classes": list(CLASSES), "palette": [[0, 0, 0], [9, 9, 9]], "ids": [0, 1]},
        "epoch": 14,
        "iter": 420,
        "mmengine_version": "0.10.7",
        "mmcare_version": mmcare.__version__,
        "time": "20261121_100000",
    }
    assert set(held) == {"state_dict", "meta"}
    assert list(held["state_dict"]) == list(weights) or kind == "safetensors"  # safetensors sorts by size
    assert set(held["state_dict"]) == set(weights)
    assert all(torch.equal(held["state_dict"][name], weights[name]) for name in weights)
    if kind == "pth":  # readable with torch alone
        assert torch.load(file, weights_only=True)["meta"] == held["meta"]
    else:
        with safe_open(file, framework="pt") as opened:
            assert json.loads(opened.metadata()["dataset_meta"])["classes"] == list(CLASSES)
    assert publish("epoch_14.pth", f"release.{kind}") == file
    assert files() == sorted(["epoch_14.pth", file.name])


def test_which_weights(trained, publish, weights):
    name = "backbone.stem.conv1.bias"
    for asked, added in (([], 0), (["--weights", "ema"], 0), (["--weights", "raw"], 1)):
        state = read_checkpoint(publish("epoch_14.pth", "out", *asked))["state_dict"]
        assert set(state) == set(weights)
        torch.testing.assert_close(state[name], weights[name] + added)


def test_old_and_bare_checkpoints(trained, publish, weights):
    meta = {"config": "raise SystemExit", "mmdet_version": "2.24.1", "CLASSES": CLASSES, "env_info": "host"}
    copies = {"ema_" + name.replace(".", "_"): value for name, value in weights.items()}
    torch.save({"meta": meta, "state_dict": {**weights, **copies}}, "old.pth")
    held = read_checkpoint(publish("old.pth", "out.pth"))
    assert set(held["state_dict"]) == set(weights)
    assert held["meta"] == {
        "cfg": "raise SystemExit",
        "mmdet_version": "2.24.1",
        "CLASSES": list(CLASSES),
        "mmcare_version": mmcare.__version__,
    }
    big = torch.zeros(1_000_000)
    torch.save({"a.weight": big[:3], "b.weight": torch.ones(2, 3).T, "c.weight": big[:3]}, "bare.pth")
    for kind in FORMATS:
        file = publish("bare.pth", "out", "--format", kind)
        assert file.stat().st_size < 10_000
        assert read_checkpoint(file)["state_dict"]["b.weight"].shape == (3, 2)


def test_what_a_checkpoint_says_of_itself_is_kept_in_a_form_that_any_reader_opens(tmp_path, publish, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = {"a.weight": torch.zeros(3)}
    metas = {
        "both": ({"config": "old", "cfg": "new"}, {"cfg": "new"}),
        "its own": ({"mmcare_version": "0.0.1", 7: "seven"}, {"mmcare_version": "0.0.1"}),
        "odd": (
            {"CLASSES": {"b", "a"}, "PALETTE": np.float32([0.5]), "time": Namespace(day=1), "epoch": torch.tensor(3)},
            {"CLASSES": ["a", "b"], "PALETTE": [0.5], "time": "Namespace(day=1)", "epoch": 3},
        ),
        "a list": (["no", "dict"], {}),
    }
    for meta, kept in metas.values():
        torch.save({"meta": meta, "state_dict": state}, "in.pth")
        for kind in FORMATS:
            held = read_checkpoint(publish("in.pth", "out", "--format", kind))
            assert held["meta"] == {"mmcare_version": mmcare.__version__, **kept}
            assert torch.equal(held["state_dict"]["a.weight"], state["a.weight"])


def test_the_tool_says_which_weights_it_took(trained, in_process):
    for asked, told in ((["--weights", "raw"], "took the raw weights"), ([], "took the averaged (EMA) weights")):
        _, printed = in_process(tool.main, "publish_model.py", "epoch_14.pth", "out", *asked)
        assert printed.out.startswith(told)


def test_names_of_releases():
    assert tool.name_and_format("./../b.PTH", None) == ("./../b", "pth")
    assert tool.name_and_format("casvit_v1.0", None) == ("casvit_v1.0", "pth")
    assert tool.name_and_format("x", "safetensors") == ("x", "safetensors")
    assert tool.name_and_format("x.safetensors", None) == ("x", "safetensors")


MISTAKES = {
    "no file": (["gone.pth", "out"], "gone.pth"),
    "no weights of the kind": (["raw.pth", "out", "--weights", "ema"], r"raw\.pth.*no averaged"),
    "no weights": (["none.pth", "out"], r"none\.pth.*no named weights"),
    "other format": (["raw.pth", "out.pth", "--format", "safetensors"], r"end it with \.safetensors"),
    "no folder": (["raw.pth", "gone/out.pth"], "no folder gone"),
    "a folder": (["raw.pth", "folder"], "folder is a folder"),
    "no name": (["raw.pth", "folder/"], "is a folder"),
    "unknown option": (["raw.pth", "out", "--weights", "best"], "--weights"),
}


@pytest.mark.parametrize(("args", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_in_one_line_and_nothing_is_written(args, told, tmp_path, monkeypatch, refusal):
    monkeypatch.chdir(tmp_path)
    torch.save({"a.weight": torch.zeros(3)}, "raw.pth")
    torch.save({"epoch": 1}, "none.pth")
    Path("folder").mkdir()
    before = files()
    assert re.search(told, refusal(tool.main, "publish_model.py", *args))
    assert files() == before
    assert list(Path("folder").iterdir()) == []


def test_another_file_is_not_overwritten(trained, publish, refusal):
    file = publish("epoch_14.pth", "out")
    file.write_bytes(b"mine")
    assert f"{file} exists with other content" in refusal(tool.main, "publish_model.py", "epoch_14.pth", "out")
    assert file.read_bytes() == b"mine"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(trained, kind, refusal):
    with LargestFile(100_000):
        told = refusal(tool.main, "publish_model.py", "epoch_14.pth", "out", "--format", kind)
    assert re.fullmatch(r"out-\w{8}\.\w+ \(1\d\.\d MiB\) cannot be written: File too large", told)
    assert files() == ["epoch_14.pth"]


def test_an_interrupted_release_leaves_nothing(trained, publish, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        publish("epoch_14.pth", "out")
    assert files() == ["epoch_14.pth"]
