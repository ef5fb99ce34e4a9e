"""A checkpoint is saved complete or not at all, and a failed save costs no earlier checkpoint."""

import os
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from helpers import LargestFile
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from mmcare.checkpoints import guard_checkpoint_saving
from mmcare.files import whole_file


def test_a_file_that_could_not_be_written_whole_leaves_the_one_before(tmp_path):
    path = tmp_path / "file"
    with whole_file(path) as file:
        file.write(b"before")
    with pytest.raises(OSError, match="File too large") as raised, LargestFile(1000), whole_file(path) as file:
        file.write(bytes(2000))
    assert raised.value.filename == str(path)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file"]


class Toy(BaseModel):
    """A model with one weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3000))

    def forward(self, inputs, mode):
        return {"loss": (self.weight * inputs).sum()} if mode == "loss" else [inputs]


class Scores(BaseMetric):
    """A metric that returns one given score after the other."""

    def __init__(self, scores):
        super().__init__()
        self.scores = iter(scores)

    def process(self, *_):
        self.results.append(None)

    def compute_metrics(self, _):
        score = next(self.scores)
        return {"acc": score, "loss": -score}


def toy_runner(work_dir, scores, guarded=True, hook=None, **run):
    data = dict(batch_size=1, num_workers=0, dataset=torch.ones(1, 1))
    cfg = Config(
        dict(
            model=None,
            work_dir=str(work_dir),
            train_cfg=dict(by_epoch=True, max_epochs=len(scores)),
            val_cfg=dict(),
            default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=1, **(hook or {}))),
            experiment_name=f"{work_dir.parent.name}-{work_dir.name}",
            **run,
        )
    )
    if guarded:
        guard_checkpoint_saving(cfg)
    # Not in the Config, which cannot hold objects.
    parts = dict(
        model=Toy(),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        train_dataloader={**data, "sampler": dict(type="DefaultSampler", shuffle=True)},
        val_dataloader={**data, "sampler": dict(type="DefaultSampler", shuffle=False)},
        val_evaluator=Evaluator(Scores(scores)),
    )
    return Runner(**{**cfg.to_dict(), **parts, "cfg": Config(dict(work_dir=str(work_dir)))})


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".py")


@pytest.mark.stack
@pytest.mark.parametrize("save_best", ["acc", ["acc", "loss"]])
def test_what_is_kept_of_a_training_is_what_mmengine_keeps(tmp_path, save_best):
    scores = [1, 3, 2, 4, 3]
    hook = dict(max_keep_ckpts=2, save_best=save_best)
    for name in ("plain", "safe"):
        toy_runner(tmp_path / name, scores, guarded=name == "safe", hook=hook).train()
    assert files(tmp_path / "safe") == files(tmp_path / "plain")
    assert {"epoch_4.pth", "epoch_5.pth", "best_acc_epoch_4.pth"} < set(files(tmp_path / "safe"))
    assert Path((tmp_path / "safe/last_checkpoint").read_text()) == tmp_path / "safe/epoch_5.pth"


@pytest.mark.stack
@pytest.mark.usefixtures("safe_loading")
def test_the_best_checkpoint_of_the_folder_that_was_resumed_from_stays(tmp_path):
    hook = dict(save_best="acc")
    toy_runner(tmp_path / "first", [1], hook=hook).train()
    resumed = dict(load_from=str(tmp_path / "first/epoch_1.pth"), resume=True)
    toy_runner(tmp_path / "second", [2, 3, 4], hook=hook, **resumed).train()
    assert "best_acc_epoch_1.pth" in files(tmp_path / "first")
    best = [name for name in files(tmp_path / "second") if name.startswith("best")]
    assert best == ["best_acc_epoch_3.pth"]


def test_a_validation_alone_deletes_nothing(tmp_path):
    assert toy_runner(tmp_path / "run", [1]).val() == {"acc": 1, "loss": -1}


@pytest.mark.parametrize("kept", ["epoch_1.pth", "best_acc_epoch_1.pth"])
def test_a_checkpoint_that_finds_no_room_costs_no_other_one(tmp_path, kept):
    runner = toy_runner(tmp_path / "run", [1, 2], hook=dict(max_keep_ckpts=1, save_best="acc"))
    save = runner.save_checkpoint

    def save_in_little_room(out_dir, filename, *args, **kwargs):
        if filename == kept.replace("1", "2"):
            with LargestFile(5000):
                save(out_dir, filename, *args, **kwargs)
        save(out_dir, filename, *args, **kwargs)

    runner.save_checkpoint = save_in_little_room
    with pytest.raises(OSError, match="File too large"):
        runner.train()
    assert (tmp_path / "run" / kept).exists()
    assert Path((tmp_path / "run/last_checkpoint").read_text()).exists()
    assert [name for name in files(tmp_path / "run") if not name.endswith((".pth", "last_checkpoint"))] == []
    assert not any(ZipFile(path).testzip() for path in tmp_path.glob("run/*.pth"))
