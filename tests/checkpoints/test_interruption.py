"""A training that is killed, interrupted or stopped by a full disk loses only the work since its last checkpoint."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from zipfile import ZipFile

import pytest
import torch
from helpers import DETECTOR, IN_PROCESS, ROOT, SEGMENTOR
from mmengine.config import Config

from mmcare.checkpoints import choose_checkpoint, read_checkpoint
from mmcare.data.sample import prepare

# Kill the process in the middle of a training step or a save, as the environment says.
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
# Three epochs or six iterations on four images; only their order is random.
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


def finish(*args, **kwargs):
    process = start(*args, **kwargs)
    out, err = process.communicate()
    return SimpleNamespace(code=process.returncode, out=out, err=err)


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".py")


def choose(folder):
    """Return the name of the checkpoint from which a training in this folder would resume, and its log message."""
    path, note = choose_checkpoint(Config(dict(work_dir=str(folder), resume=True)))
    return os.path.basename(path), note


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
    """Return a training that was killed in a step and in a save, and the output of its three processes."""
    name = request.param
    first = NAMES[name].format(1 if name == "detector" else 2)
    work_dir = ground / "work_dirs" / name
    unseeded = "randomness.seed=None"

    killed = finish(ground, name, unseeded, kill_at="step 4")
    assert killed.code == -signal.SIGKILL, killed.err
    assert files(work_dir) == [first, "last_checkpoint"]

    killed = finish(ground, name, unseeded, "--resume", kill_at="save 1")
    assert killed.code == -signal.SIGKILL, killed.err
    partial, *others = files(work_dir)
    assert re.fullmatch(rf"\.{NAMES[name].format('[24]')}\.\d+\.partial", partial)
    assert others == [first, "last_checkpoint"]

    resumed = finish(ground, name, unseeded, "--resume")
    assert resumed.code == 0, resumed.err
    assert f"removed {partial}" in resumed.out
    return SimpleNamespace(name=name, work_dir=work_dir)


def test_a_killed_training_goes_on_as_if_nothing_had_been(ground, survivor):
    name, work_dir = survivor.name, survivor.work_dir
    middle, last = (NAMES[name].format(n) for n in ([2, 3] if name == "detector" else [4, 6]))
    assert files(work_dir) == [middle, last, "last_checkpoint"]  # --sample keeps two checkpoints
    resumed = {file: read_checkpoint(work_dir / file) for file in (middle, last)}

    seed = resumed[last]["meta"]["seed"]
    whole = finish(ground, name, f"randomness.seed={seed}", "--work-dir", "whole")
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
    os.truncate(work_dir / "epoch_3.pth", 10_000)
    room = (work_dir / "epoch_2.pth").stat().st_size - 1
    done = finish(
        ground,
        "detector",
        *("--work-dir", "full", "--resume", "--cfg-options", "default_hooks.checkpoint.max_keep_ckpts=1"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )
    assert re.search(
        r"WARNING - .*epoch_3\.pth is damaged.*: resuming from .* undamaged checkpoint, full/epoch_2\.pth\n", done.out
    )
    assert "resumed epoch: 2, iter: 4" in done.out
    assert done.code == 2
    assert re.fullmatch(
        r"error: \S+/full/epoch_3\.pth could not be written \(File too large\): .*--resume", last(done.err)
    )
    assert "Traceback" not in done.err
    assert files(work_dir) == ["epoch_2.pth", "epoch_3.pth", "last_checkpoint"]
    assert ZipFile(work_dir / "epoch_2.pth").testzip() is None
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
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
    _, err = process.communicate()
    assert process.returncode == 130
    assert last(err) == "interrupted: --resume continues from the last checkpoint in stopped"
    assert "Traceback" not in err
    assert choose(ground / "stopped")[1] is None


def test_a_config_that_says_to_resume_needs_no_option(ground, train):
    (ground / "based.py").write_text(DETECTOR)
    cfg = Config.fromfile(ground / "based.py")
    cfg.resume = True
    cfg.pop("load_from")  # mmcare's configs set it, others need not
    cfg.dump(ground / "resuming.py")
    for epochs in (1, 2):
        train(ground, "resuming.py", *OPTIONS, f"train_cfg.max_epochs={epochs}")
    work_dir = ground / "work_dirs/resuming"
    assert files(work_dir) == ["epoch_1.pth", "epoch_2.pth", "last_checkpoint"]
    assert read_checkpoint(work_dir / "epoch_2.pth")["meta"]["iter"] == 4
    assert "resumed epoch: 1" in max(work_dir.rglob("*.log")).read_text()
