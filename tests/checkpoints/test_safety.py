"""No checkpoint runs code, on any of the ways by which one can get into a training or a test."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import Touch

from helpers import ROOT
CONFIG = str(ROOT / "configs/detection/retinanet_care_s1.py")


WAYS = {
    "test": ("test.py", CONFIG, "{file}", "--sample"),
    "train, resumed": ("train.py", CONFIG, "--sample", "--resume", "{file}"),
    "train, load_from": ("train.py", CONFIG, "--sample", "--cfg-options", "load_from={file}"),
    "train, init_cfg": (
        "train.py",
        CONFIG,
        "--sample",
        "--cfg-options",
        "model.backbone.init_cfg._delete_=True",  # the sample data's is None
        "model.backbone.init_cfg.type=Pretrained",
        "model.backbone.init_cfg.checkpoint={file}",
    ),
    # of a module that is not ours, and so is loaded by MMEngine
    "train, init_cfg of the neck": (
        "train.py",
        CONFIG,
        "--sample",
        "--cfg-options",
        "model.neck.init_cfg.type=Pretrained",
        "model.neck.init_cfg.checkpoint={file}",
    ),
}


@pytest.mark.stack
@pytest.mark.parametrize("way", WAYS)
def test_hostile_checkpoint_is_refused_and_its_file_does_not_appear(way, tmp_path):
    file, marker = tmp_path / "hostile.pth", tmp_path / "marker"
    torch.save({"state_dict": {"weight": torch.zeros(1)}, "meta": Touch(marker)}, file)
    tool, *args = (part.format(file=file) for part in WAYS[way])
    command = [sys.executable, str(ROOT / "tools" / tool), *args, "--work-dir", str(tmp_path / "work")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2, result.stderr
    assert result.stderr.rstrip().splitlines()[-1].startswith("error: ")
    assert "hostile.pth asks to load" in result.stderr
    assert "Traceback" not in result.stderr
    assert not marker.exists()
