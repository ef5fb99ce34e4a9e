"""OpenVINO files on the CPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import openvino

from .errors import FileError

PRECISIONS = ("f32", "bf16", "f16")
"""OpenVINO's names. f32 is the default here; OpenVINO's own is bf16 where the processor has it."""


@cache
def openvino_core() -> openvino.Core:
    """Return the one ``openvino.Core`` of the process, which is never destroyed.

    OpenVINO gives the thread a stack for signal handlers while it has a ``Core``. If the lives of two overlap, the
    thread keeps the stack of the first after that was freed. The next signal that Python handles, such as Ctrl-C or the
    end of a child process, then ends the process with a segmentation fault (seen with OpenVINO 2026.4).
    """
    return openvino.Core()


class Session:
    """An .xml file with the .bin file beside it, on the CPU; see :class:`.sessions.Session`."""

    def __init__(self, path: Path, threads: int | None, precision: str | None) -> None:
        if precision not in (None, *PRECISIONS):
            raise FileError(f"OpenVINO has no precision {precision!r}: give one of {', '.join(PRECISIONS)}")
        settings = {"INFERENCE_PRECISION_HINT": precision or PRECISIONS[0], "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled = openvino_core().compile_model(path, "CPU", settings)
        except Exception as error:  # RuntimeError, and others from reading
            raise FileError(f"{path} cannot be opened by OpenVINO: {_reason(error)}") from None
        self._path = path
        self._request = self._compiled.create_infer_request()

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name."""
        try:
            found = self._request.infer({0: images})
        except Exception as error:
            raise FileError(f"{self._path} cannot be run by OpenVINO: {_reason(error)}") from None
        return {output.any_name: value.copy() for output, value in found.items()}


def _reason(error: Exception) -> str:
    """Return the last line of an error, which says why; the others say where in OpenVINO's sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
