"""mmcare-runtime, installed alone, finds in pictures what mmcare.Predictor finds."""

import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from exported_files import certificate
from helpers import ROOT, succeed
from mmengine.config import Config
from PIL import Image

from mmcare import Predictor, runtime
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
            made[head] = Predictor(cfg, model.checkpoint, device="cpu"), _export(model, cfg)
        return made[head]

    return files


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return the paths of pictures of squares in noise: one as large as the pipeline wants it, and two others."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths = []
    for number, (width, height) in enumerate((SCALE, (90, 120), (211, 97))):
        picture = random.integers(0, 256, (height, width, 3), np.uint8)
        picture[10:60, 20:50], picture[40:80, 30:80] = (200, 30, 90), (20, 200, 40)
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


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
def test_detections_are_the_predictors(standalone, files, photos, head):
    predictor, path = files(head)
    for found, wanted in zip(predicted(standalone, path, photos), predictor(photos), strict=True):
        assert (found["height"], found["width"]) == wanted.size
        detections = found["detections"]
        assert len(detections) == len(wanted.boxes) > 10
        boxes, scores = (np.array([detection[key] for detection in detections]) for key in ("box", "score"))
        np.testing.assert_allclose(scores, wanted.scores, atol=2e-6)
        # Detections of equal score may change places.
        apart = np.abs(boxes[:, None] - wanted.boxes).max(-1) + (np.abs(scores[:, None] - wanted.scores) > 2e-6)
        apart += np.array([detection["label"] for detection in detections])[:, None] != wanted.labels
        assert apart.min(1).max() < 1e-2
        partners = apart.argmin(1)
        assert sorted(partners) == list(range(len(detections)))
        assert [predictor.classes[detection["label"]] for detection in detections] == [d["name"] for d in detections]
        if wanted.masks is not None:
            masks = np.stack([decode(detection["mask"]) for detection in detections])
            different = (masks != wanted.masks[partners]).sum() / wanted.masks.sum()
            print(head, wanted.size, different)


def test_label_maps_are_the_predictors(standalone, files, photos):
    predictor, path = files("semantic_fpn")
    for found, wanted in zip(predicted(standalone, path, photos), predictor(photos), strict=True):
        label_map = np.full(wanted.size, -1)
        for region in found["regions"]:
            label_map[decode(region["mask"])] = region["label"]
            assert region["name"] == predictor.classes[region["label"]]
        print(wanted.size, (label_map != wanted.label_map).mean())


def test_a_file_is_verified(standalone, files):
    _, path = files("retinanet")
    done = standalone("mmcare-runtime", "verify", path)
    print(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    path = path.with_name("changed.onnx")
    path.write_bytes(files("retinanet")[1].read_bytes()[:-1000])
    done = standalone("python", "-m", "mmcare_runtime", "verify", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {path} is no ONNX file or is damaged (")


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


def _export(model, cfg):
    from mmcare.export import export

    path = export(cfg, model.checkpoint, model.folder / "standalone.onnx", dynamic=True)
    detector = model.task == "detection"
    names = ("dets", "labels", "masks") if detector else ("output", "scores")
    found = runtime.check_files({path.name: path.read_bytes()}, path.name)
    made = certificate(
        part="model",
        task=model.task,
        classes=tuple("abcde"),
        resizing=runtime.Resizing(SCALE, True, None if detector else 32),
        outputs=tuple(runtime.Output(name, (None,), "float32") for name in names if name in found.outputs),
        operators=found.operators,
    )
    files = runtime.attach_certificate(replace(made), {path.name: path.read_bytes()}, path.name)
    path.write_bytes(files[path.name])
    return path
