"""``python -m mmcare.cli.launch``: torchrun that keeps a tool's error message as the last line."""

import os
import socket
import subprocess
import sys

import pytest
from helpers import ROOT

from mmcare.cli import launch


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("NNODES", "NODE_RANK", "MASTER_ADDR", "PORT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


OURS = ["mmcare.cli.launch"]
TORCHRUN = ["torch.distributed.run", "--standalone"]
MISTAKEN = """
from mmcare.cli import run
from mmcare.errors import UserError

def main():
    raise UserError("there is no config: check the path")

run(main)
"""


def command(processes, program, launcher=OURS):
    return [sys.executable, "-m", *launcher, f"--nproc-per-node={processes}", program]


@pytest.mark.parametrize("launcher", [OURS, TORCHRUN], ids=["ours", "torchrun"])
def test_a_mistake_is_told_once_by_the_first_process_and_last_here(tmp_path, launcher):
    (tmp_path / "tool.py").write_text(MISTAKEN)
    done = subprocess.run(command(2, "tool.py", launcher), capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.count("error: there is no config: check the path\n") == 1
    if launcher is OURS:
        assert (done.returncode, done.stderr) == (2, "error: there is no config: check the path\n")


def test_a_crash_keeps_its_trace_and_torchruns_report(tmp_path):
    (tmp_path / "crash.py").write_text("1 / 0")
    done = subprocess.run(command(1, "crash.py"), capture_output=True, text=True)
    assert done.returncode == 1
    trace, _, report = done.stderr.partition("ZeroDivisionError")
    assert trace.count("Traceback") == 1
    assert "crash.py" in report
    assert "Traceback" not in report  # of torchrun


def test_two_machines_find_each_other(tmp_path):
    (tmp_path / "say.py").write_text("import os; print('{RANK} {WORLD_SIZE}\\n'.format(**os.environ), end='')")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        where = dict(os.environ, NNODES="2", MASTER_ADDR="127.0.0.1", PORT=str(listener.getsockname()[1]))
    machines = [
        subprocess.Popen(command(2, "say.py"), env=dict(where, NODE_RANK=rank), stdout=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    said = [machine.communicate()[0].splitlines() for machine in machines]
    assert [sorted(lines) for lines in said] == [["0 4", "1 4"], ["2 4", "3 4"]]


def test_a_number_of_machines_that_is_none(monkeypatch, refusal):
    monkeypatch.setenv("NNODES", "two")
    assert refusal(launch.main, "launch") == "NNODES=two is not valid: give a whole number"
