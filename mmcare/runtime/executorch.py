"""ExecuTorch files. Its Python package needs torch, so this module does too."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from .attaching import certificate_of
from .errors import FileError


@contextmanager
def _without_warnings() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


with _without_warnings():  # torchao warns that its CUDA libraries cannot be loaded
    import torch
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Program, Runtime


class Session:
    """A .pte file in ExecuTorch, on the CPU; see :class:`.sessions.Session`.

    All files of a process share the runtime's threads, so the number that was asked for last counts for all.
    """

    def __init__(self, path: Path, threads: int | None, precision: str | None) -> None:
        if precision is not None:
            raise FileError(f"ExecuTorch computes {path} in the precision of the file: omit the precision")
        names = [output.name for output in certificate_of(path).outputs]  # a .pte file has no names
        self._program = load_executorch(path, threads)
        self._method = self._program.load_method("forward")
        described = self._method.metadata
        if (described.num_inputs(), described.num_outputs()) != (1, len(names)):
            raise FileError(
                f"{path} has {described.num_inputs()} input and {described.num_outputs()} outputs, not the 1 and "
                f"{len(names)} of its certificate: export the model again"
            )
        self._path, self._names, self._shape = path, names, tuple(described.input_tensor_meta(0).sizes())

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name."""
        if images.shape != self._shape:
            raise FileError(f"{self._path} takes images {self._shape}, not {images.shape}: give such images")
        try:
            found = self._method.execute((torch.from_numpy(images),))
        except RuntimeError as error:
            raise FileError(f"{self._path} cannot be run by ExecuTorch: {_reason([], error)}") from None
        return {name: value.numpy() for name, value in zip(self._names, found, strict=True)}


def load_executorch(source: Path | bytes, threads: int | None = None) -> Program:
    """Return the program in a file, or in its content, with its method ``forward`` ready to run.

    Raises:
        FileError: the runtime refuses it.
    """
    log: list[str] = []
    try:
        with _captured(log):
            _set_threads(threads)
            program = Runtime.get().load_program(source)
            program.load_method("forward")
    except (RuntimeError, KeyError) as error:
        name = source if isinstance(source, Path) else "the file"
        raise FileError(f"{name} cannot be opened by ExecuTorch: {_reason(log, error)}") from None
    return program


def _set_threads(threads: int | None) -> None:
    """Set the number of the runtime's threads, which is one for each core otherwise."""
    reset = getattr(portable_lib, "_unsafe_reset_threadpool", None)  # there is no public way in Python
    if threads is not None and reset is None:
        raise FileError("this release of ExecuTorch takes no number of threads: omit it")
    if threads is not None:
        reset(threads)


@contextmanager
def _captured(log: list[str]) -> Iterator[None]:
    """Append to a list what the runtime writes to standard error, which is its only log.

    Some of it goes to Python's stream, and some to the process's.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with TemporaryFile() as file, redirect_stderr(StringIO()) as stream:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            log += [*file.read().decode(errors="replace").splitlines(), *stream.getvalue().splitlines()]


def _reason(log: list[str], error: Exception) -> str:
    """Return why the runtime refuses a file: the first line of its log that is not about the processor."""
    lines = [line for line in log if not re.match(r"\[(cpuinfo_utils|threadpool)\.cpp:", line)]
    return re.sub(r"^\[[^\]]*\] ", "", lines[0] if lines else str(error))[:300]
