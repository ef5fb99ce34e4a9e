"""Shared by the tests: reference data of the authors' networks, tiny models and data sets, and running of tools.

``data/reference/*.json`` lists the parameters and buffers of the authors' released networks with their shapes;
``*.npz`` has the outputs of their code in float64 for the weights of :func:`weights` and the input of :func:`image`.
"""

import importlib
import importlib.util
import json
import os
import resource
import subprocess
import sys
import zlib
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmcare.data.sample import prepare

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"

# -- running a tool ----------------------------------------------------------------------------------------------------


def load_tool(name: str) -> ModuleType:
    """Return the module that ``tools/<name>.py`` runs."""
    return importlib.import_module(f"mmcare.cli.commands.{name}")


def load_module(path: Path) -> ModuleType:
    """Return the module in a file with any name, which may import what is beside it."""
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}_{len(path.parts)}", path)
    module = importlib.util.module_from_spec(spec)
    sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def run_tool(name: str, *args: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a tool as a user does, in its own process and without a display."""
    # One thread each: on a small machine, threads that wait for each other take longer.
    kept = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command = [sys.executable, ROOT / f"tools/{name}.py", *map(str, args)]
    env = {**kept, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def succeed(done: subprocess.CompletedProcess[str]) -> str:
    """Check that a process succeeded, and return its standard output."""
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


class LargestFile:
    """A context that simulates a full disk with a limit on the size of files; it can be entered again."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


# -- the authors' networks ---------------------------------------------------------------------------------------------

DATA = Path(__file__).parent / "data" / "reference"
ARCHS = [("CARE", arch) for arch in ("s0", "s1", "s2")] + [("CASViT", arch) for arch in ("xs", "s", "m", "t")]
SIZE = (64, 96)


def weights(family: str, arch: str, kind: str) -> dict[str, Tensor]:
    """Return weights with the authors' names and shapes; ``kind`` is classifier or, for CAS-ViT, pyramid."""
    names = json.loads((DATA / f"{family.lower()}_{arch}.json").read_text())[kind]
    return {name: _weight(name, tuple(shape)) for name, shape in names.items()}


def backbone_weights(family: str, arch: str) -> dict[str, Tensor]:
    """Return the backbone's weights with the authors' names: all weights on which the expected outputs depend."""
    return weights(family, arch, "classifier" if family == "CARE" else "pyramid")


def expected(family: str, arch: str) -> list[Tensor]:
    """Return the authors' outputs of the four stages for :func:`image`."""
    with np.load(DATA / f"{family.lower()}_{arch}_{SIZE[0]}x{SIZE[1]}.npz") as outputs:
        return [torch.from_numpy(outputs[f"stage{i}"]) for i in range(1, 5)]


def expected_logits(family: str, arch: str) -> Tensor:
    """Return the logits of the authors' classifier for :func:`image`, (1, 1000)."""
    with np.load(DATA / f"{family.lower()}_{arch}_{SIZE[0]}x{SIZE[1]}.npz") as outputs:
        return torch.from_numpy(outputs["logits"])


def image() -> Tensor:
    """Return the input of the expected outputs, (1, 3, 64, 96)."""
    values = np.random.RandomState(SIZE[0] * 10000 + SIZE[1]).standard_normal((1, 3, *SIZE))
    return torch.from_numpy(values.astype(np.float32))


def relative_error(output: Tensor, wanted: Tensor) -> float:
    """Return ‖output − wanted‖ / ‖wanted‖, computed in float64."""
    return float((output.double() - wanted.double()).norm() / wanted.double().norm())


def _weight(name: str, shape: tuple[int, ...]) -> Tensor:
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return torch.zeros((), dtype=torch.int64)
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if leaf == "running_var":
        value = np.exp(0.2 * z)
    elif leaf in ("running_mean", "bias"):
        value = 0.1 * z
    elif leaf == "gamma":
        value = 0.3 + 0.1 * z
    elif len(shape) == 1:
        value = 1 + 0.1 * z
    else:
        value = 0.5 * z / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(value.astype(np.float32))


# -- small networks as after a training --------------------------------------------------------------------------------

SMALL_ARCHS = {
    "CARE": dict(depths=(1, 2, 1, 2), memory_channels=(4, 8, 16, 32), ratios=((1, 2), (2, 1), (1, 1), (2, 2))),
    "CASViT": dict(depths=(1, 1, 2, 1), channels=(8, 12, 16, 24)),
}


def shake(model: nn.Module) -> nn.Module:
    """Set norms, biases and layer scale to values far from their initial ones, so that wrong folding is noticed."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        leaf = name.rpartition(".")[2]
        if leaf == "running_var" or (leaf == "weight" and tensor.dim() == 1):
            tensor.data.uniform_(0.5, 2, generator=generator)
        elif leaf in ("running_mean", "bias"):
            tensor.data.normal_(0, 0.3, generator=generator)
    return model


def trained(family: str, **kwargs: object) -> nn.Module:
    """Return a small backbone in eval mode, without norms that are identities."""
    torch.manual_seed(0)
    arguments = {"arch": SMALL_ARCHS[family], **kwargs}
    return shake(MODELS.build(dict(type=f"mmcare.{family}", **arguments))).eval()


def assert_same_maps(found: Callable, wanted: Callable, images: Tensor, tolerance: float = 1e-5) -> None:
    """Assert that two backbones return the same maps for images."""
    with torch.no_grad():
        outputs, stages = found(images), wanted(images)
    assert len(outputs) == len(stages)
    for output, stage in zip(outputs, stages, strict=True):
        assert output.shape == stage.shape
        assert output.dtype == stage.dtype
        assert relative_error(output, stage) < tolerance


# -- tiny models, and eight images for them to memorize ----------------------------------------------------------------

DETECTION = CONFIGS / "detection/retinanet_care_s1.py"
TINY = "depths=(1, 1, 1, 1), memory_channels=(8, 8, 16, 32), ratios=((1, 1), (1, 1), (1, 1), (1, 1))"
SEGMENTOR = f"""
_base_ = [
    "{CONFIGS}/_base_/models/semantic_fpn.py",
    "{CONFIGS}/_base_/datasets/ade20k_512x512.py",
    "{CONFIGS}/_base_/schedules/segmentation_40k.py",
    "{CONFIGS}/_base_/runtime/segmentation.py",
]
model = dict(
    backbone=dict(type="mmcare.CARE", arch=dict({TINY})),
    neck=dict(in_channels=[32, 32, 64, 128], out_channels=32),
    decode_head=dict(in_channels=[32, 32, 32, 32], channels=16),
)
"""
DETECTOR = f"""
_base_ = ["{DETECTION}"]
model = dict(
    backbone=dict(arch=dict({TINY}, _delete_=True)),
    neck=dict(in_channels=[32, 32, 64, 128], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1),
)
"""
IN_PROCESS = [
    f"{split}_dataloader.{setting}"
    for split in ("train", "val", "test")
    for setting in ("num_workers=0", "persistent_workers=False")
]
"""Settings for reading the data without worker processes."""


def write_ground(folder):
    """Write the sample data, ``detector.py``, ``segmentor.py`` and the annotations of eight training images.

    Returns:
        Options with which the detector, with ``--sample``, is trained for 40 epochs and tested on the eight images.
    """
    data = prepare(folder / "data/sample")
    coco = json.loads((data / "coco/annotations/instances_train2017.json").read_text())
    coco["images"] = coco["images"][:8]
    kept = {image["id"] for image in coco["images"]}
    coco["annotations"] = [mark for mark in coco["annotations"] if mark["image_id"] in kept]
    (folder / "eight.json").write_text(json.dumps(coco))
    (folder / "detector.py").write_text(DETECTOR)
    (folder / "segmentor.py").write_text(SEGMENTOR)
    by_heart = [
        *(f"{split}_dataloader.dataset.ann_file={folder}/eight.json" for split in ("train", "val", "test")),
        *(f"{split}_dataloader.dataset.data_prefix.img=train2017/" for split in ("val", "test")),
        *(f"{split}_evaluator.ann_file={folder}/eight.json" for split in ("val", "test")),
    ]
    schedule = ["param_scheduler=None", "optim_wrapper.optimizer.lr=3e-3", "train_cfg.val_interval=40"]
    return ["--cfg-options", *IN_PROCESS, *by_heart, *schedule, "default_hooks.checkpoint.interval=40"]


# -- a hostile object --------------------------------------------------------------------------------------------------


class Touch:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))
