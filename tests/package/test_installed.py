"""mmcare installed from a wheel into an environment that does not know the repository: the command, the configs."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from helpers import IN_PROCESS, ROOT, succeed
from mmengine.config import Config

from mmcare.version import __version__


class Environment:
    """A virtual environment with the wheel in it; of this one it sees the other packages, but no editable install."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "-q", "--no-deps", wheel]
        subprocess.run(pip, check=True)
        # Of folders added in this way, Python reads no .pth files: the finders of editable installs are in such.
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "others.pth").write_text(sysconfig.get_path("purelib"))

    def run(self, program: str, *args: object, cwd: Path) -> str:
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [self.folder / "bin" / program, *map(str, args)]
        env = {**kept, "OMP_NUM_THREADS": "1"}
        return succeed(subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True))


@pytest.fixture(scope="module")
def installed(tmp_path_factory, wheel):
    return Environment(tmp_path_factory.mktemp("installed"), wheel)


def test_the_repository_is_out_of_sight(installed, tmp_path):
    code = """
import sys
from importlib.util import find_spec
from pathlib import Path
print(package := find_spec("mmcare").origin)
sys.path.remove(str(Path(package).parents[1]))
print(find_spec("mmcare"))
"""
    package, elsewhere = installed.run("python", "-c", code, cwd=tmp_path).splitlines()
    assert Path(package).is_relative_to(installed.folder)
    assert elsewhere == "None"


def test_the_command_is_there(installed, tmp_path):
    assert installed.run("mmcare", "--version", cwd=tmp_path) == f"mmcare {__version__}\n"


@pytest.mark.stack
def test_its_configs_are_the_repositorys(installed, tmp_path):
    code = """
import json, mmcare
print(json.dumps({name: mmcare.get_config(name).to_dict() for name in mmcare.list_configs()}))
"""
    found = json.loads(installed.run("python", "-c", code, cwd=tmp_path))
    assert set(found) == {f"{path.parent.name}/{path.stem}" for path in ROOT.glob("configs/[!_]*/*.py")}
    for name, config in found.items():
        assert config == json.loads(json.dumps(Config.fromfile(ROOT / f"configs/{name}.py").to_dict()))


@pytest.mark.stack
def test_a_detector_from_training_to_its_release(installed, tmp_path):
    name = "detection/retinanet_care_s0"
    few = [f"{split}_dataloader.dataset.indices=2" for split in ("train", "val", "test")]
    options = ["--sample", "--cfg-options", *few, *IN_PROCESS, "train_cfg.max_epochs=1"]
    installed.run("mmcare", "train", name, *options, cwd=tmp_path)
    checkpoint = "work_dirs/retinanet_care_s0/epoch_1.pth"
    assert "Epoch(test) [2/2]" in installed.run("mmcare", "test", name, checkpoint, *options, cwd=tmp_path)
    installed.run("mmcare", "publish", checkpoint, "release.pth", cwd=tmp_path)
    (release,) = tmp_path.glob("release-*.pth")
    picture = next(tmp_path.glob("data/sample/*/coco/val2017/*.jpg"))
    installed.run("mmcare", "predict", picture, "--model", release, cwd=tmp_path)
    assert len(json.loads((tmp_path / "predictions/images.json").read_text())["images"]) == 1
