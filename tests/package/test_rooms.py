"""The rooms of the package: imports go in one direction, and only through each room's ``__init__.py``."""

import ast
import os
import subprocess
import sys

import pytest
from helpers import ROOT

PACKAGE = ROOT / "mmcare"
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
# Allowed imports: each layer may import the layers above it.
LAYERS = [
    {"errors", "version", "torch_internals", "files", "registry", "stack", "importing_mmpretrain"},
    {"runtime"},
    {"memory"},
    {"models", "data"},
    {"fast", "checkpoints"},
    {"runs"},
    {"benchmark", "inference"},
    {"visualization", "export"},
    {"cli"},
    {"sample", "__main__"},
]
# Allowed imports within a layer
BESIDE = {"files": {"errors"}, "stack": {"errors", "importing_mmpretrain"}, "importing_mmpretrain": {"errors"}}
# The fast form of a network uses the parts of the network, and so does what looks into them.
TWINS = {
    ("fast/care.py", "models.care"),
    ("fast/casvit.py", "models.casvit"),
    ("visualization/attention.py", "models.care"),
    ("visualization/attention.py", "models.casvit"),
}


def imports(path):
    """Yield (room or module of mmcare, whether through its ``__init__.py``, line) for each import in a file."""
    inside = path.is_relative_to(PACKAGE)
    package = ["mmcare", *path.relative_to(PACKAGE).parent.parts] if inside else []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            full = [*base, *(node.module.split(".") if node.module else [])]
            names = [[*full, alias.name] for alias in node.names] if full == ["mmcare"] else [full]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        else:
            continue
        for name in names:
            if name[0] == "mmcare" and len(name) > 1:
                twin = inside and (str(path.relative_to(PACKAGE)), ".".join(name[1:])) in TWINS
                door = name[1] not in ROOMS or PACKAGE.joinpath(*name[1:], "__init__.py").is_file()
                yield name[1], door or twin, node.lineno


def level(name):
    return next(number for number, layer in enumerate(LAYERS) if name in layer)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_and_through_doors(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        assert [name for name, _, _ in imports(path)] == ["version"]
        return
    for other, by_door, line in imports(path):
        if other == own:
            continue
        assert by_door, f"line {line} of {path} goes into the room {other}: its __init__.py is the door"
        assert own != "runtime", f"line {line} of {path}: runtime is also installed without the rest of mmcare"
        down = level(other) < level(own) or other in BESIDE.get(own, ())
        assert down, f"line {line} of {path}: {own} may not import {other}"


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("*.py")), ids=lambda path: path.name)
def test_tools_use_the_doors(path):
    assert all(by_door for _, by_door, _ in imports(path))


def test_importing_the_rooms_computes_nothing():
    """A process that is forked after OpenMP has started its threads hangs in its first computation."""
    code = """
import os
import mmcv.ops, mmdet.models, mmengine.runner, torch
before = len(os.listdir("/proc/self/task"))
import mmcare.benchmark.measuring, mmcare.checkpoints, mmcare.data.sample, mmcare.runs.hooks, mmcare.visualization
print(len(os.listdir("/proc/self/task")) - before)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "4"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout) == 0


def test_importing_the_package_or_the_diagnosis_imports_nothing_heavy():
    code = "import sys, mmcare, mmcare.stack, mmcare.cli, mmcare.benchmark, mmcare.runtime; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "mmengine", "mmcv", "numpy", "cv2"} & set(done.stdout.split())
