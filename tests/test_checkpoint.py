"""Weights come in from every format that is around, from no file that would run code, and only where they fit."""

import argparse
import datetime
import pickle
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import reference
import torch
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS

from mmcare import CARE, UserError
from mmcare.checkpoint import guard_checkpoint_loading, read_checkpoint, select_weights

CARE_STATE = reference.backbone_weights("CARE", "s0")
CASVIT_STATE = reference.backbone_weights("CASViT", "xs")


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def load(family, arch, file, **init):
    model = MODELS.build(
        dict(type=f"mmcare.{family}", arch=arch, init_cfg=dict(type="Pretrained", checkpoint=str(file), **init))
    )
    model.init_weights()
    return model.eval()


def averaged(state):
    return {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


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
@pytest.mark.parametrize(("family", "arch", "state"), [("CARE", "s0", CARE_STATE), ("CASViT", "xs", CASVIT_STATE)])
def test_every_format_gives_the_authors_outputs(family, arch, state, wrapping, tmp_path):
    file = tmp_path / "weights.pth.tar"
    torch.save(WRAPPED[wrapping](state), file)
    with torch.no_grad():
        outputs = load(family, arch, file)(reference.image())
    for output, wanted in zip(outputs, reference.expected(family, arch), strict=True):
        assert (output - wanted).norm() / wanted.norm() < 1e-5


def test_own_checkpoint_round_trip(tmp_path):
    model = CARE("s0")
    torch.save({"state_dict": prefixed(model.state_dict(), "backbone."), "meta": {}}, tmp_path / "own.pth")
    loaded = load("CARE", "s0", tmp_path / "own.pth")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)


@pytest.mark.parametrize(
    ("file", "default"),
    [
        (lambda raw, ema: {"model": raw, "model_ema": ema}, "raw"),
        (lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema}, "raw"),
        # MMEngine's EMAHook puts the averaged weights in the main entry
        (lambda raw, ema: {"state_dict": ema, "ema_state_dict": prefixed(raw, "module.")}, "ema"),
    ],
)
def test_raw_and_averaged_weights_can_be_chosen(file, default, tmp_path, log):
    torch.save(file(CARE_STATE, averaged(CARE_STATE)), tmp_path / "both.pth")
    bias = {"raw": CARE_STATE["stem.0.bias"], "ema": CARE_STATE["stem.0.bias"] + 1}
    for asked in (None, "raw", "ema"):
        model = load("CARE", "s0", tmp_path / "both.pth", **({} if asked is None else {"weights": asked}))
        taken = asked or default
        torch.testing.assert_close(model.stem.conv.bias.data, bias[taken])
        said = "\n".join(log)
        log.clear()
        assert ("averaged (EMA) weights under" if taken == "ema" else "raw weights under") in said
        assert 'weights="ema"' in said


def test_asking_for_weights_that_are_not_there(tmp_path):
    torch.save(CARE_STATE, tmp_path / "raw.pth")
    with pytest.raises(UserError, match=r"raw\.pth.*no averaged"):
        load("CARE", "s0", tmp_path / "raw.pth", weights="ema")
    with pytest.raises(UserError, match="weights='best'"):
        load("CARE", "s0", tmp_path / "raw.pth", weights="best")


def test_what_was_not_found_and_not_used_is_logged(tmp_path, log):
    state = reference.weights("CASViT", "xs", "classifier")
    torch.save({"model": state}, tmp_path / "imagenet.pth")
    model = load("CASViT", "xs", tmp_path / "imagenet.pth")
    assert (model.out_norms["0"].weight == 1).all()
    said = "\n".join(log)
    assert "left at their start: out_norms.0.weight" in said
    assert "not used: norm.weight" in said
    assert "stem" not in said


@pytest.mark.parametrize(
    ("arch", "state", "said"),
    [
        ("s2", CARE_STATE, "does not fit CARE s2.*other shapes.*another arch"),
        ("s0", CASVIT_STATE, "does not fit CARE s0.*not one of its weights"),
        ("s0", {"neck.conv.weight": torch.zeros(1)}, "not one of its weights"),
    ],
)
def test_weights_that_do_not_fit_are_refused(arch, state, said, tmp_path):
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError, match=said) as error:
        load("CARE", arch, tmp_path / "other.pth")
    assert "other.pth" in str(error.value)
    assert "\n" not in str(error.value)


def hostile(path, marker, kind):
    """A checkpoint that creates ``marker`` when it is unpickled."""
    content = {"state_dict": CARE_STATE, "meta": Touch(marker)}
    if kind == "zip":
        torch.save(content, path)
    elif kind == "legacy":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.stack
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_hostile_checkpoint_is_refused_and_does_nothing(kind, tmp_path, monkeypatch):
    # even where somebody has told torch to trust all files
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    file, marker = tmp_path / "hostile.pth", tmp_path / "marker"
    hostile(file, marker, kind)
    with pytest.raises(UserError, match=r"hostile\.pth") as error:
        load("CARE", "s0", file)
    assert not marker.exists()
    assert "\n" not in str(error.value)
    pickle.loads(pickle.dumps(Touch(marker))).close()  # the trap works
    assert marker.exists()


@pytest.mark.stack
def test_guarded_process_refuses_hostile_files_whoever_loads_them(tmp_path):
    file, marker = tmp_path / "hostile.pth", tmp_path / "marker"
    hostile(file, marker, "zip")
    code = f"""
import torch
from mmcare.checkpoint import guard_checkpoint_loading
guard_checkpoint_loading()
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
for attempt in (
    lambda: CheckpointLoader.load_checkpoint({str(file)!r}),
    lambda: load_checkpoint(torch.nn.Linear(1, 1), {str(file)!r}),
    lambda: torch.load({str(file)!r}, weights_only=False),
):
    try:
        attempt()
    except Exception as error:
        print("refused", type(error).__name__)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.count("refused") == 3, result.stderr
    assert not marker.exists()


@pytest.mark.stack
def test_what_trainers_leave_beside_the_weights_is_read(tmp_path):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    content = {
        "state_dict": CARE_STATE,
        "message_hub": {"log_scalars": {"loss": history}, "runtime_info": {"best": np.float64(0.5)}},
        "args": argparse.Namespace(lr=np.float32(0.1), sizes=[1, 2]),
        "meta": {"CLASSES": ("cat",), "epoch": np.int64(3), "when": "now", "palette": np.zeros((2, 3), np.uint8)},
        "done": np.bool_(True),
    }
    torch.save(content, tmp_path / "trainer.pth")
    read = read_checkpoint(tmp_path / "trainer.pth")
    assert read["meta"]["epoch"] == 3
    assert read["args"].sizes == [1, 2]
    assert read["message_hub"]["log_scalars"]["loss"].current() == 2.0
    assert read["meta"]["palette"].shape == (2, 3)
    assert bool(read["done"]) is True


@pytest.mark.stack
def test_training_histories_open_no_way_to_other_attributes(tmp_path):
    """A HistoryBuffer names its methods through ``getattr``, which must find these and no others."""

    class Reach:
        def __reduce__(self):
            return (getattr, (HistoryBuffer, "__init__"))

    torch.save({"state_dict": CARE_STATE, "meta": Reach()}, tmp_path / "reach.pth")
    with pytest.raises(UserError, match="getattr"):
        read_checkpoint(tmp_path / "reach.pth")


def test_numpy_1_and_2_names_are_both_read(tmp_path):
    old, new = tmp_path / "old.pth", tmp_path / "new.pth"
    torch.save({"state_dict": CARE_STATE, "best": np.float64(0.5)}, new)
    torch.save({"state_dict": CARE_STATE, "best": np.float64(0.5)}, old, _use_new_zipfile_serialization=False)
    swapped = old.read_bytes()
    assert b"numpy._core.multiarray" in swapped or b"numpy.core.multiarray" in swapped
    old.write_bytes(swapped.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    for file in (old, new):
        assert read_checkpoint(file)["best"] == 0.5


def test_other_classes_are_refused_by_name(tmp_path):
    torch.save({"state_dict": CARE_STATE, "when": datetime.timedelta(1)}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match="datetime.timedelta"):
        read_checkpoint(tmp_path / "odd.pth")


def whole_file(path):
    torch.save(CARE_STATE, path)
    return path.read_bytes()


DAMAGED = {
    "missing": (None, "there is no checkpoint"),
    "empty": (lambda path: b"", "is empty"),
    "cut in half": (lambda path: whole_file(path)[: len(whole_file(path)) // 2], "damaged or cut short"),
    "cut at its end": (lambda path: whole_file(path)[:-100], "damaged or cut short"),
    "cut at its start": (lambda path: whole_file(path)[:20], "damaged|not a checkpoint"),
    "text": (lambda path: b"model = dict()\n" * 100, "is a text file"),
    "web page": (lambda path: b"\n<!DOCTYPE html><html>not found</html>", "is a web page"),
    "lfs": (lambda path: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "noise": (lambda path: np.random.RandomState(0).bytes(4000), "not a checkpoint|damaged"),
    "pickled list": (lambda path: pickle.dumps([1, 2]), "not a checkpoint|damaged"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_files_that_are_no_checkpoints_get_one_sentence(damage, tmp_path):
    content, said = DAMAGED[damage]
    file = tmp_path / "weights.pth"
    if content is not None:
        file.write_bytes(content(file))
    with pytest.raises(UserError, match=said) as error:
        read_checkpoint(file)
    assert "weights.pth" in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.__suppress_context__ or error.value.__cause__ is None


def test_a_folder_a_dangling_link_and_no_weights(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        read_checkpoint(tmp_path)
    (tmp_path / "link.pth").symlink_to(tmp_path / "gone.pth")
    with pytest.raises(UserError, match="is a link to .*gone.pth"):
        read_checkpoint(tmp_path / "link.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(UserError, match="no named weights"):
        select_weights(read_checkpoint(tmp_path / "empty.pth"))


def test_code_in_the_metadata_of_old_checkpoints_is_dropped(tmp_path):
    """MMEngine's resume executes the text under meta.config."""
    torch.save({"state_dict": CARE_STATE, "meta": {"config": "open('x', 'w')", "epoch": 1}}, tmp_path / "old.pth")
    from mmengine.runner.checkpoint import CheckpointLoader

    before = dict(CheckpointLoader._schemes)
    try:
        guard_checkpoint_loading()
        assert CheckpointLoader.load_checkpoint(str(tmp_path / "old.pth"))["meta"] == {"epoch": 1}
    finally:
        CheckpointLoader._schemes = before
