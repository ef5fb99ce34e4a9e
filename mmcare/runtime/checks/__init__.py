"""What an exported file holds, read without its runtime, so that a damaged or hostile file does not get there.

Nothing in a file is believed: lengths and places are checked against its size, sizes of tensors against the data that
they have, and nothing outside of the file is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from math import prod
from pathlib import Path

from ..errors import FileError

LARGEST_FILE = 2**31
"""Bytes; formats with 32-bit places have no more."""
LARGEST_TENSOR = 2**32
"""Values that a tensor may have; 100 masks of 800×1333 pixels in each of 16 pictures have less than half."""

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Contents:
    """What was read of a file; None for what its format hides.

    Attributes:
        inputs: the shape of each input by its name; None in it is free.
        outputs: the names of the outputs.
        operators: how often the graph has each operator.
    """

    inputs: dict[str, Shape] | None
    outputs: tuple[str, ...] | None
    operators: dict[str, int] | None


FORMATS = {".onnx": "onnx", ".xml": "openvino", ".tflite": "litert", ".pte": "executorch"}
"""The module for files with each ending.

Its ``read(content, main)`` takes a function from a file's name to what is in it, None if there is none. It returns
Contents, or raises ValueError with the rest of a sentence that starts with the file's name.
"""


def check_files(files: Mapping[str, bytes | memoryview], main: str) -> Contents:
    """Return what the files of an export hold.

    Args:
        files: their contents by name.
        main: the name of the one that a runtime opens.

    Raises:
        FileError: they are damaged, or hold what no export makes and a runtime had better not get.
    """
    return _check(Path(main), lambda name: memoryview(files[name]) if name in files else None)


def check_file(path: Path) -> Contents:
    """Return what an exported file, and those beside it, hold; see :func:`check_files`."""

    def content(name: str) -> memoryview | None:
        file = path.with_name(name)
        if not file.is_file():
            return None
        if file.stat().st_size > LARGEST_FILE:
            raise ValueError("is larger than 2 GiB")
        return memoryview(file.read_bytes())

    return _check(path, content)


def check_shape(name: str, shape: Shape, largest: int = LARGEST_TENSOR) -> None:
    """Raise ValueError if a tensor has sides that are negative, or more values than a runtime should make room for."""
    known = [side for side in shape if side is not None]
    if any(side < 0 for side in known) or prod(known) > largest:
        sides = "×".join("any" if side is None else str(side) for side in shape)
        raise ValueError(f"has a tensor {name[:60]!r} of {sides} values")


def _check(path: Path, content: Callable[[str], memoryview | None]) -> Contents:
    module = FORMATS.get(path.suffix.lower())
    if module is None:
        return Contents(None, None, None)
    try:
        return import_module(f".{module}", __name__).read(content, path.name)
    except ValueError as error:
        raise FileError(f"{path} {error}: copy it again, or export the model again") from None
