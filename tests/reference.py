"""The authors' networks as data: their parameter names, weights made from those names, and the outputs they gave.

``data/reference/*.json`` lists each parameter and buffer of the released networks with its shape, ``*.npz`` what the
authors' code returned in float64 for the weights of :func:`weights` and the input of :func:`image`.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data" / "reference"
ARCHS = [("CARE", arch) for arch in ("s0", "s1", "s2")] + [("CASViT", arch) for arch in ("xs", "s", "m", "t")]
SIZE = (64, 96)


def weights(family: str, arch: str, kind: str) -> dict[str, Tensor]:
    """What a file of the authors' holds, by their names; ``kind`` is classifier or, for CAS-ViT, pyramid."""
    names = json.loads((DATA / f"{family.lower()}_{arch}.json").read_text())[kind]
    return {name: _weight(name, tuple(shape)) for name, shape in names.items()}


def backbone_weights(family: str, arch: str) -> dict[str, Tensor]:
    """The backbone's part of the weights, in the authors' names: everything that the expected outputs depend on."""
    return weights(family, arch, "classifier" if family == "CARE" else "pyramid")


def expected(family: str, arch: str) -> list[Tensor]:
    """The authors' outputs of the four stages for :func:`image`."""
    with np.load(DATA / f"{family.lower()}_{arch}_{SIZE[0]}x{SIZE[1]}.npz") as outputs:
        return [torch.from_numpy(outputs[f"stage{i}"]) for i in range(1, 5)]


def image() -> Tensor:
    """The input the outputs were measured with, (1, 3, 64, 96)."""
    values = np.random.RandomState(SIZE[0] * 10000 + SIZE[1]).standard_normal((1, 3, *SIZE))
    return torch.from_numpy(values.astype(np.float32))


def relative_error(output: Tensor, wanted: Tensor) -> float:
    """‖output − wanted‖ / ‖wanted‖, computed in float64."""
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
