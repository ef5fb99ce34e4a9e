"""Harmless stand-ins for objects that trainers store in checkpoints besides tensors, containers and numbers.

Files are read with torch's ``weights_only`` unpickler, which creates only objects of allowed classes. The classes here
hold numbers or names and do nothing when they are created.
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
    """A file asks a stand-in for something that it refuses; the message is the name of what was asked for.

    This is not an ``UnpicklingError``, because torch replaces its message with one that advises trusting the file.
    """


@contextmanager
def only_harmless_classes() -> Iterator[None]:
    """Allow torch's ``weights_only`` unpickler only the stand-ins, whatever else the program allows.

    Otherwise it would create an allowed NumPy class instead of its stand-in.
    """
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(_STAND_INS)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)


# NumPy trusts the sizes, flags and fields of a pickled dtype, which can turn bytes of the file into pointers. So a file
# gets these classes instead of NumPy's, and only kind, size and byte order are taken from a dtype.


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
        return np.asarray(self).__reduce__()  # when saved again, the file should name NumPy's class, not this one


def _array(*_: Any) -> _Array:
    return _Array(0)


def _scalar(dtype: _Dtype, content: bytes) -> Any:
    return np.ndarray((), _checked(dtype), content)[()]


def _checked(dtype: Any) -> np.dtype:
    if not isinstance(dtype, _Dtype):  # another object in the file could have any dtype
        raise Refused("an array without a numpy.dtype")
    return dtype.dtype


def _no_bytes() -> bytes:
    """Return no bytes, as arrays without elements are pickled with a call of ``bytes()``."""
    return b""


def _history_statistic(owner: Any, name: str) -> Any:
    """Stand in for ``getattr``: return only the methods to which a pickled HistoryBuffer refers."""
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
