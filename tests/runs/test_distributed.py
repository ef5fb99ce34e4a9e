"""Distributed runs: the launch scripts, real runs of two processes on the CPU, and errors before the start."""

import json
import os
import pickle
import re
import socket
import subprocess
import sys
from datetime import timedelta
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import IN_PROCESS, ROOT, run_tool, succeed, write_ground
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from mmcare import CARE, CASViT, UserError
from mmcare.checkpoints import read_checkpoint
from mmcare.runs import build_runner

RECORDER = """
import atexit
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Recorder(Hook):
    def __init__(self):
        self.images = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.images.append([sample.img_path for sample in data_batch["data_samples"]])

    def after_train(self, runner):
        weights = {name: weight.detach() for name, weight in runner.model.module.named_parameters()}
        torch.save(dict(images=self.images, weights=weights), f"{runner.work_dir}/rank{get_rank()}.pt")
        atexit.register(write_threads, Path(runner.work_dir, f"threads{get_rank()}.txt"))

def write_threads(path):
    path.write_text("".join(file.read_text() for file in Path("/proc/self/task").glob("*/comm")))
"""
RECORDED = """
_base_ = ["{}.py"]
custom_imports = dict(imports=["recorder"])
custom_hooks = [dict(type="Recorder")]
"""
SRUN = """#!/usr/bin/env bash
# Slurm's srun with all the tasks on this machine.
echo "$@" >> srun.txt
while [[ $1 == --* ]]; do
    [[ $1 == --ntasks=* ]] && tasks=${1#*=}
    shift
done
export SLURM_NTASKS=$tasks SLURM_NODELIST=here
for ((task = 0; task < tasks; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
done
for ((task = 0; task < tasks; task++)); do
    wait -n || { status=$?; kill $(jobs -p); exit $status; }
done
"""
SCRIPTS = {
    "dist_train": ["CONFIG", "GPUS"],
    "dist_test": ["CONFIG", "CHECKPOINT", "GPUS"],
    "slurm_train": ["PARTITION", "JOB_NAME", "CONFIG", "WORK_DIR"],
    "slurm_test": ["PARTITION", "JOB_NAME", "CONFIG", "CHECKPOINT"],
}
OF_LAUNCHERS = {"NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"}


def environment(**more):
    """Return this process's environment without GPUs and without the variables of a launcher."""
    kept = {name: value for name, value in os.environ.items() if name not in OF_LAUNCHERS}
    own = dict(PYTHON=sys.executable, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="-1")
    return {**kept, **own, **{name: str(value) for name, value in more.items()}}


def run_script(name, *args, cwd, **more):
    command = [ROOT / f"tools/{name}.sh", *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=environment(**more), capture_output=True, text=True)


def told(done):
    """Check that the processes of a run succeeded, and return their output."""
    return succeed(done) + done.stderr


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in OF_LAUNCHERS:  # set them first, so that monkeypatch restores them
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


# -- training and testing ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ground")
    options = write_ground(folder)
    (folder / "recorder.py").write_text(RECORDER)
    for name in ("detector", "segmentor"):
        (folder / f"recorded_{name}.py").write_text(RECORDED.format(name))
    programs = folder / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/sh\necho 127.0.0.1\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    return SimpleNamespace(folder=folder, options=options, more=dict(cwd=folder, PYTHONPATH=folder, PATH=path))


@pytest.fixture(scope="module")
def detector(ground):
    options = ["--sample", *ground.options, "train_dataloader.batch_size=4", "train_cfg.max_epochs=40"]
    log = told(run_script("dist_train", "recorded_detector.py", 2, *options, **ground.more))
    return SimpleNamespace(work_dir=ground.folder / "work_dirs/recorded_detector", log=log)


@pytest.fixture(scope="module")
def segmentor(ground):
    short = ["train_cfg.max_iters=4", "train_cfg.val_interval=4", "default_hooks.checkpoint.interval=4"]
    options = ["--sample", "--amp", "--cfg-options", *IN_PROCESS, *short, "val_dataloader.dataset.indices=4"]
    slurm = dict(GPUS=2, GPUS_PER_NODE=2, SRUN_ARGS="--exclusive --gres=none", MASTER_PORT=free_port())
    log = told(
        run_script("slurm_train", "cpus", "seg", "recorded_segmentor.py", "seg", *options, **slurm, **ground.more)
    )
    return SimpleNamespace(work_dir=ground.folder / "seg", log=log)


def assert_one_model_was_trained(run, checkpoint):
    first, second = (torch.load(run.work_dir / f"rank{rank}.pt") for rank in (0, 1))
    for rank in (0, 1):
        assert "gloo" not in (run.work_dir / f"threads{rank}.txt").read_text()  # they may abort a process at exit
    saved = read_checkpoint(run.work_dir / checkpoint)["state_dict"]
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name])
        assert torch.equal(weight, saved[name])
    for ours, theirs in zip(first["images"], second["images"], strict=True):
        assert len({*ours, *theirs}) == len(ours) + len(theirs)  # no image twice in a step
    assert run.log.count("2 processes run on the CPU, connected by gloo") == 1
    losses = [json.loads(line) for line in next(run.work_dir.glob("*/vis_data/scalars.json")).read_text().splitlines()]
    return [entry["loss"] for entry in losses if "loss" in entry]


@pytest.mark.stack
def test_two_processes_train_one_detector(detector):
    losses = assert_one_model_was_trained(detector, "epoch_40.pth")
    assert losses[-1] < 0.8 * losses[0]
    assert "SyncBN needs GPUs" not in detector.log  # the detector has no SyncBN


@pytest.mark.stack
def test_two_tasks_of_slurm_train_one_segmentor_in_mixed_precision_without_the_syncbn_it_asks_for(ground, segmentor):
    assert_one_model_was_trained(segmentor, "iter_4.pth")
    assert segmentor.log.count("SyncBN needs GPUs") == 1
    asked = "--partition=cpus --job-name=seg --gres=gpu:2 --ntasks=2 --ntasks-per-node=2 --cpus-per-task=5"
    asked += " --kill-on-bad-exit=1 --exclusive --gres=none"
    assert (ground.folder / "srun.txt").read_text().startswith(f"{asked} {sys.executable}")


def metrics(ground, work_dir):
    (file,) = (ground.folder / work_dir).glob("*/*.json")
    # In MMEngine every process writes this file, with the same metrics. Their times differ in length, so the end of a
    # longer one may follow the closing brace.
    told, _ = json.JSONDecoder().raw_decode(file.read_text())
    return {name: value for name, value in told.items() if "time" not in name}


def run_test(ground, *args):
    succeed(run_tool("test", *args, cwd=ground.folder, CUDA_VISIBLE_DEVICES="-1"))


@pytest.mark.stack
def test_two_processes_find_what_one_finds_in_an_odd_number_of_images(ground, detector):
    args = ["detector.py", detector.work_dir / "epoch_40.pth"]
    seven = ["--sample", *ground.options, "test_dataloader.dataset.indices=7"]
    run_test(ground, *args, "--work-dir", "one", "--out", "one.pkl", *seven)
    two = ["--work-dir", "two", "--out", "two.pkl"]
    succeed(run_script("dist_test", *args, 2, *two, *seven, PORT=free_port(), **ground.more))
    assert metrics(ground, "two") == metrics(ground, "one")
    assert metrics(ground, "one")["coco/bbox_mAP"] > 0.1  # an untrained detector has 0
    ones, twos = (pickle.loads((ground.folder / f"{name}.pkl").read_bytes()) for name in ("one", "two"))
    assert len(twos) == 7
    for one, two in zip(ones, twos, strict=True):
        assert one["img_id"] == two["img_id"]
        for key, value in one["pred_instances"].items():
            assert np.array_equal(value, two["pred_instances"][key])


@pytest.mark.stack
def test_two_tasks_of_slurm_measure_what_one_process_measures_on_an_odd_number_of_images(ground, segmentor):
    checkpoint = segmentor.work_dir / "iter_4.pth"
    five = ["--sample", "--cfg-options", *IN_PROCESS, "test_dataloader.dataset.indices=5"]
    run_test(ground, "segmentor.py", checkpoint, "--work-dir", "seg_one", *five)
    slurm = dict(GPUS=2, GPUS_PER_NODE=2, MASTER_PORT=free_port())
    two = ["segmentor.py", checkpoint, "--work-dir", "seg_two"]
    succeed(run_script("slurm_test", "cpus", "seg", *two, *five, **slurm, **ground.more))
    assert metrics(ground, "seg_two") == metrics(ground, "seg_one")
    assert metrics(ground, "seg_one")["aAcc"] > 0


@pytest.mark.parametrize(("family", "arch"), [(CARE, "s0"), (CASViT, "xs")])
def test_every_parameter_that_is_trained_gets_a_gradient(family, arch):
    # DistributedDataParallel waits for the gradient of each of them.
    small = dict(family.arch_settings[arch], depths=(1, 1, 1, 1))
    for indices in (subset for size in (1, 2, 3, 4) for subset in combinations(range(4), size)):
        for frozen_stages in (-1, 0, max(indices)):
            backbone = family(arch=small, out_indices=indices, frozen_stages=frozen_stages).train()
            sum(out.sum() for out in backbone(torch.randn(1, 3, 32, 32))).backward()
            waited_for = [name for name, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
            assert waited_for == [], f"{indices} {frozen_stages}"


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_how_it_is_called(tmp_path, name):
    right = ["2" if word == "GPUS" else word for word in SCRIPTS[name]]
    wrong = [[], right[:-1]]
    if "GPUS" in SCRIPTS[name]:
        wrong += [[*right[:-1], count] for count in ("two", "0", "--amp", "")]
    for args in wrong:
        done = run_script(name, *args, cwd=tmp_path, PYTHON="false")
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(rf"error: give .*: tools/{name}.sh {' '.join(SCRIPTS[name])} \[.*\]\n", done.stderr)


def set_device(monkeypatch, device):
    for user in ("mmcare.runs.distributed", "mmengine.device"):  # in this order, as the first imports the second
        monkeypatch.setattr(f"{user}.get_device", lambda: device)


@pytest.mark.parametrize(
    ("launcher", "device", "variables", "told"),
    [
        ("pytorch", "cuda", dict(LOCAL_RANK=0, LOCAL_WORLD_SIZE=3), "3 processes .* use only 2 of its GPUs"),
        ("slurm", "cuda", dict(LOCAL_RANK=2), "3 processes .* use only 2 of its GPUs"),
        ("mpi", "cuda", dict(LOCAL_RANK=0), "MASTER_ADDR"),
        ("pytorch", "mps", dict(LOCAL_RANK=0), "Apple's GPUs"),
        ("pytorch", "cpu", dict(LOCAL_RANK=0), "runner_type"),
    ],
)
def test_runs_that_cannot_be_distributed_here(monkeypatch, launcher, device, variables, told):
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    set_device(monkeypatch, device)
    with pytest.raises(UserError, match=told):
        build_runner(Config(dict(work_dir="run", launcher=launcher, runner_type="Mine")), require_all=True)


def test_with_a_gpu_for_each_process_the_run_is_mmengines(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    set_device(monkeypatch, "cuda")
    monkeypatch.setattr(
        Runner, "from_cfg", classmethod(lambda cls, cfg: SimpleNamespace(kind=cls, build_dataloader=print))
    )
    runner = build_runner(Config(dict(work_dir="run", launcher="slurm")), require_all=True)
    assert runner.kind is Runner


# -- connecting the processes ------------------------------------------------------------------------------------------


@MODELS.register_module()
class Normalizer(BaseModel):
    def __init__(self):
        super().__init__()
        self.norm = nn.SyncBatchNorm(3)

    def forward(self, inputs, mode="tensor"):
        return self.norm(inputs)


def config(launcher, **dist_cfg):
    env_cfg = dict(dist_cfg=dict(backend="nccl", **dist_cfg))
    return Config(dict(model=dict(type="Normalizer"), work_dir="run", launcher=launcher, env_cfg=env_cfg))


VARIABLES = {
    "pytorch": dict(RANK=3, WORLD_SIZE=4, LOCAL_RANK=1, MASTER_ADDR="10.0.0.1", MASTER_PORT=29501),
    "slurm": dict(SLURM_PROCID=3, SLURM_NTASKS=4, SLURM_LOCALID=1, SLURM_NODELIST="node[1-2]", LOCAL_RANK=1),
    "mpi": dict(
        OMPI_COMM_WORLD_RANK=3,
        OMPI_COMM_WORLD_SIZE=4,
        OMPI_COMM_WORLD_LOCAL_RANK=1,
        LOCAL_RANK=1,
        MASTER_ADDR="10.0.0.1",
    ),
}


SCONTROL = """#!/bin/sh
[ "$*" = "show hostname node[1-2]" ] && echo 10.0.0.1 && echo 10.0.0.2
"""


class Connecting(Exception):
    """Raised where a run would wait for the other processes."""


@pytest.mark.parametrize(
    ("launcher", "dist_cfg", "port", "settings"),
    [
        ("pytorch", dict(timeout=90), "29501", dict(timeout=timedelta(seconds=90))),
        ("slurm", dict(port=29502, timeout=90), "29502", dict(timeout=timedelta(seconds=90))),
        ("slurm", {}, "29500", {}),
        ("mpi", {}, "29500", {}),
    ],
)
def test_every_launchers_processes_are_connected_by_gloo(monkeypatch, tmp_path, launcher, dist_cfg, port, settings):
    for name, value in VARIABLES[launcher].items():
        monkeypatch.setenv(name, str(value))
    (tmp_path / "scontrol").write_text(SCONTROL)
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    connections = []

    def connect(*args, **kwargs):
        connections.append((args, kwargs))
        raise Connecting

    monkeypatch.setattr("torch.distributed.init_process_group", connect)
    with pytest.raises(Connecting):
        build_runner(config(launcher, **dist_cfg), require_all=True)
    assert connections == [(("gloo",), settings)]
    place = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    assert place == dict(RANK="3", WORLD_SIZE="4", LOCAL_RANK="1", MASTER_ADDR="10.0.0.1", MASTER_PORT=port)


def test_a_process_of_mpirun(monkeypatch):
    own = dict(RANK=0, SIZE=1, LOCAL_RANK=0, LOCAL_SIZE=1)
    for name, value in {f"OMPI_COMM_WORLD_{name}": value for name, value in own.items()}.items():
        monkeypatch.setenv(name, str(value))
    for name, value in dict(LOCAL_RANK=0, MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port()).items():
        monkeypatch.setenv(name, str(value))
    cfg = config("mpi")
    cfg.sync_bn = "torch"
    try:
        runner = build_runner(cfg, require_all=True)
        assert torch.distributed.get_backend() == "gloo"
        assert not isinstance(runner.model.module.norm, nn.SyncBatchNorm)
        assert runner.model(torch.randn(2, 3, 4, 4)).shape == (2, 3, 4, 4)
    finally:
        torch.distributed.destroy_process_group()
