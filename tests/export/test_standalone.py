"""mmcare-runtime, installed alone, finds in pictures what mmcare.Predictor finds."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, succeed
from mmengine.config import Config
from PIL import Image

from mmcare import Predictor
from mmcare.export import export
from mmcare.version import __version__

NEEDED = ("numpy", "numpy.libs", "PIL", "pillow.libs", "onnxruntime")
"""The folders of what mmcare-runtime requires."""
SCALE = (160, 128)


@pytest.fixture(scope="module")
def standalone(tmp_path_factory):
    """Return a function that runs a program of an environment with mmcare-runtime and its requirements alone."""
    folder, wheels = tmp_path_factory.mktemp("standalone"), tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", wheels, ROOT / "runtime"]
    subprocess.run(build, check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (wheel,) = wheels.iterdir()
    subprocess.run([*pip, "--python", folder / "bin/python", "install", "-q", "--no-deps", wheel], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in NEEDED:  # links, as downloading them would take longer than the tests
        (packages / name).symlink_to(Path(sysconfig.get_path("purelib"), name))

    def run(program, *args):
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [folder / "bin" / program, *map(str, args)]
        return subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True)

    return run


@pytest.fixture(scope="module")
def files(exported):
    """Return a function from a head to the Predictor and the exported file of a tiny model."""
    made = {}

    def files(head):
        if head not in made:
            model = exported("care", head)
            cfg = Config.fromfile(model.config)
            cfg.test_dataloader.dataset.pipeline[1].scale = SCALE
            path = export(cfg, model.checkpoint, model.folder / "standalone.onnx", shape=SCALE[::-1], metric=False)
            made[head] = Predictor(cfg, model.checkpoint, device="cpu"), path
        return made[head]

    return files


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return the paths of pictures of squares in noise: one as large as the pipeline makes it, and two others."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths = []
    for number, (width, height) in enumerate((SCALE, (80, 64), (215, 172))):
        picture = random.integers(0, 256, (height, width, 3), np.uint8)
        picture[10:60, 20:50], picture[30:, 40:] = (200, 30, 90), (20, 200, 40)
        paths.append(folder / f"{number}.png")
        Image.fromarray(picture).save(paths[-1])
    return paths


def predicted(standalone, path, photos):
    lines = succeed(standalone("mmcare-runtime", "predict", *photos, "--model", path, "--threads", 1)).splitlines()
    results = [json.loads(line) for line in lines]
    assert [result["source"] for result in results] == list(map(str, photos))
    return results


def decode(code):
    """Return the mask (height, width) of a run-length code."""
    values = np.arange(len(code["counts"])) % 2 == 1
    return np.repeat(values, code["counts"]).reshape(code["size"], order="F")


def test_nothing_else_is_installed(standalone):
    code = (
        "import importlib.metadata, mmcare_runtime, pkgutil, sys\n"
        "print(importlib.metadata.version('mmcare-runtime'))\n"
        "print(*(module.name for module in pkgutil.iter_modules([sys.path[-1]])))"
    )
    version, packages = succeed(standalone("python", "-c", code)).splitlines()
    assert version == __version__
    assert set(packages.split()) == {"mmcare_runtime", "numpy", "PIL", "onnxruntime"}


def test_detections_are_the_predictors(standalone, files, photos):
    predictor, path = files("retinanet")
    for found, wanted in zip(predicted(standalone, path, photos), predictor(photos), strict=True):
        assert (found["height"], found["width"]) == wanted.size
        detections = found["detections"]
        assert len(detections) == len(wanted.boxes) > 10
        assert all(predictor.classes[detection["label"]] == detection["name"] for detection in detections)
        boxes, scores, labels = (np.array([each[key] for each in detections]) for key in ("box", "score", "label"))
        np.testing.assert_allclose(scores, wanted.scores, atol=1e-5)
        # Detections of almost equal scores may change places.
        distance = np.abs(boxes[:, None] - wanted.boxes).max(-1)
        distance[(np.abs(scores[:, None] - wanted.scores) > 1e-5) | (labels[:, None] != wanted.labels)] = np.inf
        assert distance.min(1).max() < 1e-3 * max(wanted.size)
        assert sorted(distance.argmin(1)) == list(range(len(detections)))


def test_label_maps_are_the_predictors(standalone, files, photos):
    predictor, path = files("semantic_fpn")
    shares = []
    for found, wanted in zip(predicted(standalone, path, photos), predictor(photos), strict=True):
        label_map = np.full(wanted.size, -1)
        for region in found["regions"]:
            label_map[decode(region["mask"])] = region["label"]
            assert region["name"] == predictor.classes[region["label"]]
        assert (label_map >= 0).all() and len(found["regions"]) > 1
        shares.append((label_map != wanted.label_map).mean())
    assert shares[0] == 0
    assert max(shares) < 0.01


def test_a_file_is_verified(standalone, files, tmp_path):
    _, path = files("retinanet")
    assert "error of dets" in succeed(standalone("mmcare-runtime", "verify", path))
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(path.read_bytes()[:-1000])
    done = standalone("python", "-m", "mmcare_runtime", "verify", cut)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {cut} is no ONNX file or is damaged (")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["predict", "a.png"],
            "the following arguments are required: --model; mmcare-runtime predict --help lists the",
        ),
        (["show"], "argument COMMAND: invalid choice: 'show' (choose from "),
        (["predict", "a.png", "--model", "a.onnx"], "there is no file a.onnx: give an exported file"),
    ],
)
def test_wrong_arguments_are_told(standalone, args, message):
    done = standalone("mmcare-runtime", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1
