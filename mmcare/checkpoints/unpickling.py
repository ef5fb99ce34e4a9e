"""What a file may make besides tensors, containers and numbers: harmless stand-ins for what trainers leave in it.

Files are read with torch's ``weights_only`` unpickler, which makes only the classes that it is allowed to. Those here
hold numbers or names and do nothing when they are made.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


class Refused(Exception):
    """A file asks a stand-in for more than it gives; the message is the name of what was asked for.

    No ``UnpicklingError``, whose message torch replaces with one that advises to trust the file.
    """


@contextmanager
def only_harmless_classes() -> Iterator[None]:
    """Allow torch's ``weights_only`` unpickler the stand-ins and nothing else, whatever the program allows otherwise.

    A class of NumPy's own that the program has allowed would be made in the place of its stand-in.
    """
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(_STAND_INS)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)


# NumPy trusts a pickled dtype with sizes, flags and fields, by which bytes of the file become pointers. So a file makes
# these in place of NumPy's own, and takes no more than kind, size and byte order from a dtype.


class _Dtype:
    def __init__(self, kind: str, *_: Any) -> None:
        self.dtype = np.dtype(str(kind))
        if self.dtype.kind not in "biufcSU":
            raise Refused(f"numpy.dtype {self.dtype.str}")

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, content = state
        super().__setstate__((1, shape, _checked(dtype), fortran, content))

    def __reduce__(self) -> Any:
        return np.asarray(self).__reduce__()  # a file written with it is to name NumPy's class, not this one


def _array(*_: Any) -> _Array:
    return _Array(0)


def _scalar(dtype: _Dtype, content: bytes) -> Any:
    return np.ndarray((), _checked(dtype), content)[()]


def _checked(dtype: Any) -> np.dtype:
    if not isinstance(dtype, _Dtype):  # another object of the file's could have any dtype
        raise Refused("an array without a numpy.dtype")
    return dtype.dtype


def _no_bytes() -> bytes:
    """Return no bytes: an array without elements names its content by this call."""
    return b""


def _history_statistic(owner: Any, name: str) -> Any:
    """Stand in for ``getattr``, by which a pickled HistoryBuffer names its methods, and look up nothing else."""
    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise Refused("builtins.getattr")
    return getattr(owner, name)


_STAND_INS: list[Any] = [
    HistoryBuffer,
    argparse.Namespace,
    (_Dtype, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    *((_scalar, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")),  # NumPy 1's and 2's name
    *((_array, f"{module}.multiarray._reconstruct") for module in ("numpy.core", "numpy._core")),
    *((_history_statistic, f"{module}.getattr") for module in ("builtins", "__builtin__")),
    *((_no_bytes, f"{module}.bytes") for module in ("builtins", "__builtin__")),
]
