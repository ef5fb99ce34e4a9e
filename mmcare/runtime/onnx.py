"""ONNX files in onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from .errors import FileError


class Session:
    """An ONNX file in onnxruntime, on the CPU; see :class:`.sessions.Session`."""

    def __init__(self, path: Path, threads: int | None, precision: str | None) -> None:
        if precision is not None:
            raise FileError(f"onnxruntime computes {path} in the precision of the file: omit the precision")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what it raises says the same
        # Its threads would wait for the next call awake, and take processors from others.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common class
            raise FileError(f"{path} cannot be opened by onnxruntime: {_first_line(error)}") from None
        self._path = path
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name."""
        (argument,) = self._session.get_inputs()
        try:
            values = self._session.run(self._names, {argument.name: images})
        except Exception as error:
            raise FileError(f"{self._path} cannot be run by onnxruntime: {_first_line(error)}") from None
        return dict(zip(self._names, values, strict=True))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
