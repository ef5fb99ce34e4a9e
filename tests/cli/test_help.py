"""Command lines report their help and invalid options even if torch and MMEngine cannot be imported.

This also keeps --help fast, as importing these takes seconds.
"""

import os
import subprocess
import sys

import pytest
from helpers import DETECTION, ROOT

import mmcare.__main__ as mmcare

HEAVY = ("torch", "mmengine", "mmcv", "mmdet", "mmseg")
TOOLS = {path.stem: [path] for path in sorted((ROOT / "tools").glob("*.py"))}
COMMANDS = {
    **TOOLS,
    "sample": ["-m", "mmcare.sample"],
    "mmcare": ["-m", "mmcare"],
    **{f"mmcare {name}": ["-m", "mmcare", name] for name in mmcare.COMMANDS},
}
READ_CONFIGS = ("train", "test", "print_config", "browse_dataset", "mmcare train")


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


@pytest.mark.parametrize(
    "name",
    ["mmcare", "mmcare.cli", "mmcare.runs", "mmcare.data", "mmcare.benchmark", "mmcare.export", "mmcare.runtime"],
)
def test_a_room_that_command_lines_use_needs_nothing_heavy(broken, name):
    done = broken("-c", f"import {name}")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_tools_are_the_commands(broken):
    assert {module for module, _ in mmcare.COMMANDS.values()} == set(TOOLS)
    for name, (module, _) in mmcare.COMMANDS.items():
        tool, command = (broken(*COMMANDS[key], "--help").stdout for key in (module, f"mmcare {name}"))
        assert command.startswith(f"usage: mmcare {name} ")
        assert command.partition("\n\n")[2] == tool.partition("\n\n")[2]


def test_the_help_of_all_lists_commands_and_configs(broken):
    said = broken("-m", "mmcare", "--help").stdout
    assert set(mmcare.COMMANDS) <= {line.split()[0] for line in said.splitlines() if line.strip()}
    configs = {f"{path.parent.name}/{path.stem}" for path in ROOT.glob("configs/[!_]*/*.py")}
    assert {name for name in said.replace(",", " ").split() if "/" in name} == configs


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["publsh"], "mmcare has no command 'publsh': did you mean publish?"),
        (["x"], "mmcare has no command 'x': choose one of train, test, "),
        (["config"], "the following arguments are required: config; mmcare config --help lists the options"),
    ],
)
def test_a_wrong_command_is_told(refusal, args, message):
    assert refusal(mmcare.main, "mmcare", *args).startswith(message)
