"""LiteRT files on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from .errors import FileError
from .native import silent_stderr


class Session:
    """A .tflite file in LiteRT's interpreter, with XNNPACK; see :class:`.sessions.Session`."""

    def __init__(self, path: Path, threads: int | None, precision: str | None) -> None:
        if precision is not None:
            raise FileError(f"LiteRT computes {path} in the precision of the file: omit the precision")
        try:
            with silent_stderr():  # or it announces XNNPACK
                interpreter = Interpreter(path, num_threads=threads)
                interpreter.allocate_tensors()
            # Of outputs, only a signature has the names.
            self._runner = interpreter.get_signature_runner()
            (self._input,) = self._runner.get_input_details()
        except (RuntimeError, ValueError) as error:
            raise FileError(f"{path} cannot be opened by LiteRT: {_first_line(error)}") from None
        self._path = path

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name; LiteRT's integers of 32 bits become the usual ones of 64."""
        try:
            found = self._runner(**{self._input: images})
        except (RuntimeError, ValueError) as error:
            raise FileError(f"{self._path} cannot be run by LiteRT: {_first_line(error)}") from None
        return {name: value.astype(np.int64) if value.dtype == np.int32 else value for name, value in found.items()}


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
