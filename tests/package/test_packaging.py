"""Packaging: the metadata of the distribution, the requirements files, and the Makefile's setup."""

import os
import re
import shutil
import subprocess
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mmcare.stack import BUILD_TOOLS, FAMILIES, TORCH
from mmcare.version import __version__

ROOT = Path(__file__).parent.parent.parent


def read_requirements(name: str) -> dict[str, Requirement]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {requirement.name: requirement for requirement in requirements}


def pinned_version(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "=="
    return specifier.version


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as content:
        (name,) = (name for name in content.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(content.read(name).decode())


def required(metadata: Message, extra: str = "") -> dict[str, Requirement]:
    """Return the requirements of ``pip install mmcare``, or those that an extra adds."""
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    return {
        requirement.name: requirement
        for requirement in requirements
        if (requirement.marker is None if not extra else f'"{extra}"' in str(requirement.marker))
    }


def test_wheel_holds_the_package_with_the_configs_and_nothing_else(wheel):
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mmcare").rglob("*.*") if path.suffix != ".pyc"}
    configs = {f"mmcare/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.py")}
    with zipfile.ZipFile(wheel) as content:
        assert {name for name in content.namelist() if ".dist-info/" not in name} == package | configs


def test_metadata(metadata):
    assert (metadata["Name"], metadata["Version"]) == ("mmcare", __version__)
    assert metadata["License"] == "Apache-2.0" or metadata["License-Expression"] == "Apache-2.0"
    versions = [name for name in metadata.get_all("Classifier") if re.search(r":: 3\.\d+$", name)]
    assert versions == ["Programming Language :: Python :: 3.11"]  # the tested one


def test_install_brings_neither_family(metadata):
    names = set(required(metadata))
    assert not names & {Requirement(pin).name for family in FAMILIES.values() for pin in family.values()}
    assert required(metadata)["torch"] == Requirement(TORCH)


@pytest.mark.parametrize("family", FAMILIES)
def test_pins_extras_and_diagnosis_agree(metadata, family):
    optional = {"original": "classification", "onedl": "classification-onedl"}
    files = {family: family, f"classification-{family}": optional[family]}
    pins = {file: read_requirements(file) for file in files}
    pinned = {str(pin) for file in pins.values() for pin in file.values() if pin.specifier}
    assert pinned == set(FAMILIES[family].values())
    for file, name in files.items():
        extra = required(metadata, name)
        assert extra.keys() == pins[file].keys()
        for package, pin in pins[file].items():
            assert not pin.specifier or pinned_version(pin) in extra[package].specifier


def test_tested_torch_is_one_that_setup_admits():
    assert pinned_version(read_requirements("build")["torch"]) in Requirement(TORCH).specifier


def test_diagnosis_names_the_build_tools_in_use():
    tools = {str(requirement) for name, requirement in read_requirements("build").items() if name != "torch"}
    assert tools == {str(Requirement(tool)) for tool in BUILD_TOOLS}


class Checkout:
    """A copy of the Makefile and the requirements, with an interpreter that only records its arguments."""

    PYTHON = """#!/usr/bin/env bash
echo "$*" >> "$CALLS"
case "$*" in
    "-m venv --clear "*) rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
    *"-r $FAILING") echo "OSError: no space left"; exit 1 ;;
    tools/train.py*)
        mkdir -p work_dirs
        mkdir work_dirs/demo
        echo work_dirs/demo/epoch_9.pth > work_dirs/demo/last_checkpoint ;;
    tools/test.py*) mkdir -p work_dirs/demo/test/20260101_000000/pictures ;;
    *--no-build-isolation*-r*) for n in {1..25}; do echo "  [$n/25] c++ -O3 file$n.cpp"; done ;;
esac
"""

    def __init__(self, folder: Path):
        self.folder = folder
        self.calls = folder / "calls"
        self.python = folder / "python"
        self.python.write_text(self.PYTHON)
        self.python.chmod(0o755)
        shutil.copytree(ROOT / "requirements", folder / "requirements")
        for name in ("Makefile", "setup.py", "pyproject.toml", "mmcare/version.py"):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / name)

    def make(self, *arguments: str, failing: str = "nothing") -> subprocess.CompletedProcess:
        # Without the variables of a make that runs these tests.
        environment = {name: value for name, value in os.environ.items() if not re.match("MAKE|MFLAGS|STACK", name)}
        environment |= {"CALLS": str(self.calls), "FAILING": failing}
        self.calls.write_text("")
        command = ["make", f"PYTHON={self.python}", *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)

    def called(self, *parts: str) -> list[bool]:
        return [part in self.calls.read_text() for part in parts]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


STEPS = ("venv --clear .venv", "-r requirements/build.txt", "-r requirements/original.txt", "-m mmcare.stack")
LAST_STEPS = (
    "-r requirements/test.txt",
    "-r requirements/classification-original.txt",
    "--no-deps --no-build-isolation -e .",
)


def test_setup_installs_once(checkout):
    assert checkout.make("setup").returncode == 0
    assert all(checkout.called(*STEPS, *LAST_STEPS))
    assert checkout.make("setup").returncode == 0
    assert checkout.calls.read_text() == ""


def test_changed_pin_installs_from_nothing(checkout):
    checkout.make("setup")
    future = (checkout.folder / ".venv" / ".ready").stat().st_mtime + 10
    os.utime(checkout.folder / "requirements" / "onedl.txt", (future, future))
    checkout.make("setup")
    assert checkout.calls.read_text() == "", "the other stack's pins are of no concern"
    os.utime(checkout.folder / "requirements" / "original.txt", (future, future))
    checkout.make("setup")
    assert all(checkout.called(*STEPS, *LAST_STEPS))


@pytest.mark.parametrize("stage", ["build", "original"])
def test_failed_installation_is_begun_again(checkout, stage):
    assert checkout.make("setup", failing=f"requirements/{stage}.txt").returncode != 0
    assert not list(checkout.folder.glob(".venv/.stack"))
    assert checkout.make("setup").returncode == 0
    assert all(checkout.called(*STEPS, *LAST_STEPS))


def test_failure_of_the_test_tools_keeps_the_stack(checkout):
    assert checkout.make("setup", failing="requirements/test.txt").returncode != 0
    assert checkout.make("setup").returncode == 0
    assert not any(checkout.called(*STEPS))
    assert all(checkout.called(*LAST_STEPS))


def test_stack_that_does_not_work_is_not_taken_for_installed(checkout):
    checkout.python.write_text(Checkout.PYTHON.replace("esac", '"-m mmcare.stack") exit 1 ;;\nesac'))
    assert checkout.make("setup").returncode != 0
    assert not list(checkout.folder.glob(".venv/.stack"))


def test_compiling_shows_progress_and_logs_the_rest(checkout):
    done = checkout.make("setup")
    assert re.findall(r"^  compiled (.+)$", done.stdout, re.MULTILINE) == [f"[{n}/25]" for n in (5, 10, 15, 20, 25)]
    assert "c++" not in done.stdout
    assert "[25/25] c++ -O3 file25.cpp" in (checkout.folder / ".venv" / "install.log").read_text()


def test_failed_compilation_names_its_log(checkout):
    done = checkout.make("setup", failing="requirements/original.txt")
    assert "error: the original stack was not installed, for the reason in .venv/install.log" in done.stderr
    assert "no space left" in done.stdout


def test_successors_have_an_environment_of_their_own(checkout):
    checkout.make("setup", "STACK=onedl")
    files = ("requirements/onedl.txt", "requirements/classification-onedl.txt")
    assert all(checkout.called("venv --clear .venv-onedl", *(f"-r {file}" for file in files)))
    assert not (checkout.folder / ".venv").exists()


def test_unknown_stack_is_refused(checkout):
    done = checkout.make("setup", "STACK=mmcv")
    assert "STACK=mmcv is not a stack, give STACK=original or STACK=onedl" in done.stderr
    assert checkout.calls.read_text() == ""


def test_demo_hands_the_checkpoint_on_and_says_where_everything_is(checkout):
    done = checkout.make("demo", "DEMO_AMP=--amp")
    assert done.returncode == 0
    config, work_dir = "configs/detection/retinanet_care_s1.py", "work_dirs/demo"
    assert all(
        checkout.called(
            f"tools/train.py {config} --sample --amp --work-dir {work_dir}\n",
            f"tools/test.py {config} {work_dir}/epoch_9.pth --sample --work-dir {work_dir}/test --show-dir pictures\n",
            f"tools/analyze_logs.py {work_dir} --out {work_dir}/curves.png\n",
        )
    )
    assert done.stdout.splitlines()[-3:] == [
        "Pictures:   work_dirs/demo/test/20260101_000000/pictures",
        "Curves:     work_dirs/demo/curves.png",
        "Checkpoint: work_dirs/demo/epoch_9.pth",
    ]


def test_second_demo_begins_anew_and_keeps_the_first(checkout):
    checkout.make("demo")
    (checkout.folder / "work_dirs" / "demo" / "mine").touch()
    assert checkout.make("demo").returncode == 0
    assert not (checkout.folder / "work_dirs" / "demo" / "mine").exists()
    assert len(list(checkout.folder.glob("work_dirs/demo-until-*/mine"))) == 1
