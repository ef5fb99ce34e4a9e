"""Command lines report their help and invalid options even if torch and MMEngine cannot be imported.

This also keeps --help fast, as importing these takes seconds.
"""

import os
import subprocess
import sys

import pytest
from helpers import DETECTION, ROOT

HEAVY = ("torch", "mmengine", "mmcv", "mmdet", "mmseg")
COMMANDS = {path.stem: [path] for path in sorted((ROOT / "tools").glob("*.py"))} | {"sample": ["-m", "mmcare.sample"]}
READ_CONFIGS = ("train", "test", "print_config", "browse_dataset")


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Run Python with heavy packages that cannot be imported."""
    folder = tmp_path_factory.mktemp("broken")
    for name in HEAVY:
        (folder / f"{name}.py").write_text("raise ImportError('heavy')")

    def broken(*args):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT)))}
        command = [sys.executable, *map(str, args)]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)

    return broken


@pytest.mark.parametrize("name", COMMANDS)
def test_help_needs_nothing_heavy(broken, name):
    done = broken(*COMMANDS[name], "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_option_is_told_first(broken, name):
    done = broken(*COMMANDS[name], "--colour")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "torch" not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", READ_CONFIGS)
def test_then_what_is_wrong_with_the_installation(broken, name):
    own = {"test": ["c.pth"], "browse_dataset": ["--not-show", "--output-dir", "out"]}
    done = broken(*COMMANDS[name], DETECTION, *own.get(name, []), "--cfg-options", "a=[1,2]")
    assert done.returncode == 2
    assert done.stderr.startswith("error: torch cannot be imported (ImportError: heavy): run `pip install ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["mmcare", "mmcare.cli", "mmcare.runs", "mmcare.data", "mmcare.benchmark"])
def test_a_room_that_command_lines_use_needs_nothing_heavy(broken, name):
    done = broken("-c", f"import {name}")
    assert (done.returncode, done.stderr) == (0, "")
