"""A training resumes from the newest undamaged checkpoint, which must hold all of the training state."""

import os
import re
import shutil

import pytest
import torch
from mmengine.config import Config

from mmcare import UserError
from mmcare.checkpoints import choose_checkpoint, read_checkpoint

STATE = {
    "meta": {"epoch": 1, "iter": 2, "seed": 5},
    "state_dict": {"weight": torch.arange(2000.0)},
    "message_hub": {},
    "optimizer": {},
    "param_schedulers": [],
}


def without(*names):
    return {name: value for name, value in STATE.items() if name not in names}


@pytest.fixture
def folder(tmp_path):
    """Return a work folder after three epochs."""
    folder = tmp_path / "run"
    folder.mkdir()
    for epoch in (1, 2, 3):
        torch.save(STATE, folder / f"epoch_{epoch}.pth")
    torch.save(without("optimizer"), folder / "best_coco_bbox_mAP_epoch_3.pth")
    point(folder, folder / "epoch_3.pth")
    return folder


def point(folder, path):
    """Write ``last_checkpoint``, with a time later than that of all files in the folder."""
    (folder / "last_checkpoint").write_text(str(path))
    later = max(path.stat().st_mtime_ns for path in folder.iterdir()) + 1000
    os.utime(folder / "last_checkpoint", ns=(later, later))


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def spoil(path):
    """Flip one bit in the weights, which torch does not notice."""
    content = bytearray(path.read_bytes())
    content[content.index(STATE["state_dict"]["weight"].numpy().tobytes()) + 99] ^= 1
    path.write_bytes(content)
    assert read_checkpoint(path)


def choose(folder, **settings):
    cfg = Config(dict(work_dir=str(folder), resume=True, load_from=None, **settings))
    path, note = choose_checkpoint(cfg)
    return os.path.basename(path), note, cfg


def test_the_newest_checkpoint_is_resumed_from_without_a_word(folder):
    (folder / ".epoch_4.pth.123.partial").write_bytes(b"half")
    name, note, cfg = choose(folder)
    assert (name, note) == ("epoch_3.pth", None)
    assert cfg.randomness.seed == 5
    assert choose(folder, randomness=dict(seed=1))[2].randomness.seed == 1


@pytest.mark.parametrize("damage", [cut, spoil, lambda path: os.truncate(path, 0)])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(folder, damage):
    damage(folder / "epoch_3.pth")
    name, note, _ = choose(folder)
    assert name == "epoch_2.pth"
    assert re.fullmatch(rf"{folder}/epoch_3.pth is damaged.*: resuming from .*, {folder}/epoch_2.pth", note)
    damage(folder / "epoch_2.pth")
    name, note, _ = choose(folder)
    assert name == "epoch_1.pth"
    assert "epoch_2.pth is damaged" in note


@pytest.mark.parametrize(
    ("content", "told"), [("", "is empty"), ("gone/epoch_9.pth", "names gone/epoch_9.pth"), (None, "")]
)
def test_last_checkpoint_is_not_needed(folder, content, told):
    if content is None:
        (folder / "last_checkpoint").unlink()
    else:
        (folder / "last_checkpoint").write_text(content)
    torch.save(STATE, folder / "epoch_10.pth")
    name, note, _ = choose(folder)
    assert name == "epoch_10.pth"
    assert told in (note or "")


def test_a_moved_folder_is_its_own(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    cfg = Config(dict(work_dir=str(tmp_path / "copy"), resume=True))
    assert choose_checkpoint(cfg) == (str(tmp_path / "copy/epoch_3.pth"), None)


def test_a_checkpoint_saved_after_last_checkpoint_was_written_is_the_newest(folder):
    point(folder, folder / "epoch_3.pth")
    torch.save(STATE, folder / "epoch_4.pth")
    later = (folder / "last_checkpoint").stat().st_mtime_ns + 1000
    os.utime(folder / "epoch_4.pth", ns=(later, later))
    assert choose(folder)[0] == "epoch_4.pth"


def test_a_training_that_was_given_up_is_not_resumed(folder):
    point(folder, folder / "epoch_2.pth")  # after --resume epoch_1.pth; epoch_3.pth is from before
    assert choose(folder)[0] == "epoch_2.pth"
    cut(folder / "epoch_2.pth")
    assert choose(folder)[0] == "epoch_1.pth"


def test_other_names_and_places_of_checkpoints(folder, tmp_path):
    (folder / "last_checkpoint").unlink()
    other = tmp_path / "elsewhere/run"
    other.mkdir(parents=True)
    torch.save(STATE, other / "step-7.pth")
    hook = dict(type="CheckpointHook", filename_tmpl="step-{}.pth", out_dir=str(tmp_path / "elsewhere"))
    assert choose(folder, default_hooks=dict(checkpoint=hook))[0] == "step-7.pth"


def test_no_checkpoint_that_is_whole(folder):
    for epoch in (1, 2, 3):
        cut(folder / f"epoch_{epoch}.pth")
    with pytest.raises(
        UserError, match=r"there is no undamaged checkpoint in .*run \(.*epoch_3.*epoch_2.*epoch_1.*\): .*--work-dir"
    ):
        choose(folder)


def test_nothing_to_resume_from(tmp_path):
    cfg = Config(dict(work_dir=str(tmp_path / "new"), resume=True))
    path, note = choose_checkpoint(cfg)
    assert path is None
    assert "has no checkpoint" in note
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("damage", [cut, spoil])
def test_a_damaged_checkpoint_that_was_asked_for_is_an_error(folder, damage):
    damage(folder / "epoch_3.pth")
    with pytest.raises(UserError, match=r"epoch_3\.pth is damaged"):
        choose_checkpoint(Config(dict(work_dir=str(folder), resume=True, load_from=str(folder / "epoch_3.pth"))))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({**without("message_hub"), "meta": {"config": "model = 1", "epoch": 1, "iter": 2}}, "MMDetection 2.x"),
        ({"state_dict": STATE["state_dict"]}, "epoch, iter, message_hub, optimizer"),
        (STATE["state_dict"], "epoch, iter, message_hub, optimizer"),
        (without("optimizer", "param_schedulers"), "(optimizer, param_schedulers)"),
        (without("meta"), "(epoch, iter)"),
    ],
)
def test_a_checkpoint_without_the_state_of_its_training_is_not_resumed(tmp_path, content, told):
    path = tmp_path / "file.pth"
    torch.save(content, path)
    cfg = Config(dict(work_dir="run", resume=True, load_from=str(path), param_scheduler=[dict(type="LinearLR")]))
    with pytest.raises(UserError) as raised:
        choose_checkpoint(cfg)
    assert told in str(raised.value)
    assert f"load_from={path}" in str(raised.value)
