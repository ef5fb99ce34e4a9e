"""The runtimes of exported files: which module runs each format, and what it needs.

A session is a class ``Session(path, threads, precision)`` with ``run(images)``, which takes float32 images
(B, 3, H, W) and returns the outputs by name. It raises FileError for what its runtime refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from .errors import FileError


class Session(Protocol):
    """A file that is loaded into a runtime.

    Args:
        path: the file, which was checked.
        threads: their number; by default the runtime's own choice.
        precision: of the computation, by the runtime's name for it; by default the runtime's own choice.

    Raises:
        FileError: the runtime refuses the file or the precision.
    """

    def __init__(self, path: Path, threads: int | None, precision: str | None) -> None: ...

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name, in any order."""
        ...


@dataclass(frozen=True)
class Runtime:
    """What runs a format.

    Attributes:
        module: the name of the module of this package whose ``Session`` runs a file.
        package: what it imports.
        install: what pip calls it.
    """

    module: str
    package: str
    install: str


ENDINGS = {
    ".onnx": Runtime("onnx", "onnxruntime", "onnxruntime"),
    ".xml": Runtime("openvino", "openvino", "openvino"),
    ".pte": Runtime("executorch", "executorch", "executorch"),
    ".tflite": Runtime("litert", "ai_edge_litert", "ai-edge-litert"),
}
"""The runtimes by the ending of a file's name."""


def open_session(path: Path, threads: int | None, precision: str | None) -> Session:
    """Load a file into its runtime.

    Raises:
        FileError: there is no runtime for it, it is not installed, or it refuses the file.
    """
    if path.suffix.lower() not in ENDINGS:
        raise FileError(f"{path} is not an exported file that runs here: give one that ends in {', '.join(ENDINGS)}")
    runtime = ENDINGS[path.suffix.lower()]
    if find_spec(runtime.package.partition(".")[0]) is None:
        raise FileError(f"{path} needs {runtime.install}, which is not installed: run `pip install {runtime.install}`")
    return import_module(f".{runtime.module}", __package__).Session(path, threads, precision)
