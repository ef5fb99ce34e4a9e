"""A training that is killed, interrupted, or stopped by a full disk loses nothing but the work since its checkpoint."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from helpers import DETECTOR, IN_PROCESS, ROOT, SEGMENTOR
from torch import nn

from mmcare import UserError
from mmcare.checkpoints.reading import read_checkpoint
from mmcare.checkpoints.resuming import choose_checkpoint, find_damage
from mmcare.data.sample import prepare
from mmcare.checkpoints.saving import guard_checkpoint_saving
from mmcare.files import whole_file

# -- kept whole --------------------------------------------------------------------------------------------------------


def test_a_file_that_could_not_be_written_whole_leaves_the_one_before(tmp_path):
    path = tmp_path / "file"
    with whole_file(path) as file:
        file.write(b"before")
    with pytest.raises(OSError, match="File too large") as raised, largest_file(1000), whole_file(path) as file:
        file.write(bytes(2000))
    assert raised.value.filename == str(path)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file"]


class largest_file:
    """A disk on which no more than so many bytes of a file find room."""

    def __init__(self, size):
        self.size = size

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


class Toy(BaseModel):
    """A model with one weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3000))

    def forward(self, inputs, mode):
        return {"loss": (self.weight * inputs).sum()} if mode == "loss" else [inputs]


class Scores(BaseMetric):
    """Gives one score after the other."""

    def __init__(self, scores):
        super().__init__()
        self.scores = iter(scores)

    def process(self, *_):
        self.results.append(None)

    def compute_metrics(self, _):
        score = next(self.scores)
        return {"acc": score, "loss": -score}


def toy_runner(work_dir, scores, **hook):
    data = dict(batch_size=1, num_workers=0, dataset=torch.ones(1, 1))
    cfg = Config(
        dict(
            model=None,
            work_dir=str(work_dir),
            train_cfg=dict(by_epoch=True, max_epochs=len(scores)),
            val_cfg=dict(),
            default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=1, **hook)),
            experiment_name=work_dir.parent.name,
        )
    )
    guard_checkpoint_saving(cfg)
    # Held back from Config, which takes no objects
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


@pytest.mark.parametrize("save_best", ["acc", ["acc", "loss"]])
def test_what_is_kept_of_a_training_is_what_mmengine_keeps(tmp_path, save_best):
    scores = [1, 3, 2, 4, 3]
    toy_runner(tmp_path / "safe", scores, max_keep_ckpts=2, save_best=save_best).train()
    best = [f"best_{name}_epoch_4.pth" for name in (save_best if isinstance(save_best, list) else [save_best])]
    assert files(tmp_path / "safe") == [*best, "epoch_4.pth", "epoch_5.pth", "last_checkpoint"]
    assert Path((tmp_path / "safe/last_checkpoint").read_text()) == tmp_path / "safe/epoch_5.pth"


@pytest.mark.parametrize("kept", ["epoch_1.pth", "best_acc_epoch_1.pth"])
def test_a_checkpoint_that_finds_no_room_costs_no_other_one(tmp_path, kept):
    runner = toy_runner(tmp_path / "run", [1, 2], max_keep_ckpts=1, save_best="acc")
    save = runner.save_checkpoint

    def save_in_little_room(out_dir, filename, *args, **kwargs):
        if filename == kept.replace("1", "2"):
            with largest_file(5000):
                save(out_dir, filename, *args, **kwargs)
        save(out_dir, filename, *args, **kwargs)

    runner.save_checkpoint = save_in_little_room
    with pytest.raises(OSError, match="File too large"):
        runner.train()
    assert (tmp_path / "run" / kept).exists()
    assert Path((tmp_path / "run/last_checkpoint").read_text()).exists()
    assert [name for name in files(tmp_path / "run") if not name.endswith((".pth", "last_checkpoint"))] == []
    assert not any(map(find_damage, tmp_path.glob("run/*.pth")))


# -- which checkpoint --------------------------------------------------------------------------------------------------

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
    """A work folder after three epochs."""
    folder = tmp_path / "run"
    folder.mkdir()
    for epoch in (1, 2, 3):
        torch.save(STATE, folder / f"epoch_{epoch}.pth")
    torch.save(without("optimizer"), folder / "best_coco_bbox_mAP_epoch_3.pth")
    point(folder, folder / "epoch_3.pth")
    return folder


def point(folder, path):
    """Writes ``last_checkpoint``, later than all that is there."""
    (folder / "last_checkpoint").write_text(str(path))
    later = max(path.stat().st_mtime_ns for path in folder.iterdir()) + 1000
    os.utime(folder / "last_checkpoint", ns=(later, later))


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def spoil(path):
    """Changes one bit among the weights, which torch does not notice."""
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
    point(folder, folder / "epoch_2.pth")  # after --resume epoch_1.pth, while epoch_3.pth is of before
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
        UserError, match=r"no checkpoint in .*run is whole \(.*epoch_3.*epoch_2.*epoch_1.*\): .*--work-dir"
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


# -- real processes ----------------------------------------------------------------------------------------------------

# Kills the process in the middle of a step's or of a checkpoint's being made, where the environment says so.
KILLER = """
import os
import signal

from mmengine.optim import OptimWrapper

what, _, number = os.environ.get("KILL_AT", "").partition(" ")
left = int(number or 0)
step, fsync = OptimWrapper.step, os.fsync


def die_in_time(kind):
    global left
    left -= kind == what
    if kind == what and left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def mortal_step(self, **kwargs):
    die_in_time("step")
    step(self, **kwargs)


def mortal_fsync(file):
    size = os.fstat(file).st_size
    if size > 10_000:  # a checkpoint
        os.ftruncate(file, size // 2) if (what, left) == ("save", 1) else None
        die_in_time("save")
    fsync(file)


OptimWrapper.step, os.fsync = mortal_step, mortal_fsync
"""
# Four images, of which nothing is left to chance but their order, in three epochs or six iterations.
CONFIGS = {
    "detector": f"""{DETECTOR}
custom_imports = dict(imports=["killer"])
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True),
            dict(type="Resize", scale=(128, 96), keep_ratio=True),
            dict(type="PackDetInputs"),
        ]
    )
)
""",
    "segmentor": f"""{SEGMENTOR}
custom_imports = dict(imports=["killer"])
model["decode_head"]["dropout_ratio"] = 0.0
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", reduce_zero_label=True),
            dict(type="Resize", scale=(128, 96)),
            dict(type="PackSegInputs"),
        ]
    )
)
""",
}
LENGTHS = {
    "detector": ["train_cfg.max_epochs=3", "default_hooks.checkpoint.interval=1"],
    "segmentor": ["train_cfg.max_iters=6", "default_hooks.checkpoint.interval=2"],
}
NAMES = {"detector": "epoch_{}.pth", "segmentor": "iter_{}.pth"}
OPTIONS = [
    "--sample",
    "--cfg-options",
    *IN_PROCESS,
    *(f"val_{part}=None" for part in ("dataloader", "cfg", "evaluator")),
    "train_dataloader.dataset.indices=4",
    "train_dataloader.batch_size=2",
]


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ground")
    prepare(folder / "data/sample")
    (folder / "killer.py").write_text(KILLER)
    for name, text in CONFIGS.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def start(ground, name, *options, kill_at="", **settings):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ground}:{ROOT}", "KILL_AT": kill_at}
    command = [sys.executable, ROOT / "tools/train.py", f"{name}.py", *OPTIONS, *LENGTHS[name], *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ground, env=env, stdout=pipe, stderr=pipe, text=True, **settings)


def train(*args, **kwargs):
    process = start(*args, **kwargs)
    out, err = process.communicate()
    return SimpleNamespace(code=process.returncode, out=out, err=err)


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.fixture(scope="module", params=["detector", pytest.param("segmentor", marks=pytest.mark.stack)])
def survivor(request, ground):
    """A training that was killed in a step and in a save, and what is known of its three processes."""
    name = request.param
    first = NAMES[name].format(1 if name == "detector" else 2)
    work_dir = ground / "work_dirs" / name
    unseeded = "randomness.seed=None"

    killed = train(ground, name, unseeded, kill_at="step 4")
    assert killed.code == -signal.SIGKILL, killed.err
    assert files(work_dir) == [first, "last_checkpoint"]

    killed = train(ground, name, unseeded, "--resume", kill_at="save 1")
    assert killed.code == -signal.SIGKILL, killed.err
    partial, *others = files(work_dir)
    assert re.fullmatch(rf"\.{NAMES[name].format('[24]')}\.\d+\.partial", partial)
    assert others == [first, "last_checkpoint"]

    resumed = train(ground, name, unseeded, "--resume")
    assert resumed.code == 0, resumed.err
    assert f"removed {partial}" in resumed.out
    return SimpleNamespace(name=name, work_dir=work_dir)


def test_a_killed_training_goes_on_as_if_nothing_had_been(ground, survivor):
    name, work_dir = survivor.name, survivor.work_dir
    middle, last = (NAMES[name].format(n) for n in ([2, 3] if name == "detector" else [4, 6]))
    assert files(work_dir) == [middle, last, "last_checkpoint"]  # of which --sample keeps two
    resumed = {file: read_checkpoint(work_dir / file) for file in (middle, last)}

    seed = resumed[last]["meta"]["seed"]
    whole = train(ground, name, f"randomness.seed={seed}", "--work-dir", "whole")
    assert whole.code == 0, whole.err
    for file, checkpoint in resumed.items():
        expected = read_checkpoint(ground / "whole" / file)
        for part in ("epoch", "iter", "seed"):
            assert checkpoint["meta"][part] == expected["meta"][part]
        for part in ("optimizer", "param_schedulers", "state_dict"):
            assert equal(checkpoint[part], expected[part]), part
    shutil.rmtree(ground / "whole")


@pytest.mark.parametrize("survivor", ["detector"], indirect=True)
def test_a_full_disk_ends_a_training_that_went_on_from_before_a_damaged_checkpoint(ground, survivor):
    work_dir = shutil.copytree(survivor.work_dir, ground / "full")
    cut(work_dir / "epoch_3.pth")
    room = (work_dir / "epoch_2.pth").stat().st_size - 1
    done = train(
        ground,
        "detector",
        *("--work-dir", "full", "--resume", "--cfg-options", "default_hooks.checkpoint.max_keep_ckpts=1"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )
    assert re.search(r"WARNING - .*epoch_3\.pth is damaged.*: resuming from .* whole, full/epoch_2\.pth\n", done.out)
    assert "resumed epoch: 2, iter: 4" in done.out
    assert done.code == 2
    assert re.fullmatch(
        r"error: \S+/full/epoch_3\.pth could not be written \(File too large\): .*--resume", last(done.err)
    )
    assert "Traceback" not in done.err
    assert files(work_dir) == ["epoch_2.pth", "epoch_3.pth", "last_checkpoint"]
    assert find_damage(work_dir / "epoch_2.pth") is None
    assert choose(work_dir)[0] == "epoch_2.pth"


def last(text):
    return text.splitlines()[-1]


def test_ctrl_c(ground):
    process = start(
        ground,
        "detector",
        *("--work-dir", "stopped", "--cfg-options", "train_cfg.max_epochs=1000"),
        *("train_dataloader.num_workers=1", "train_dataloader.persistent_workers=True"),
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (ground / "stopped/last_checkpoint").exists():
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate()
    assert process.returncode == 130
    assert last(err) == "interrupted: --resume continues from the last checkpoint in stopped"
    assert "Traceback" not in err
    assert choose(ground / "stopped")[1] is None
