"""Importing MMPretrain beside packages that it was not written for.

MMPretrain imports torchvision without requiring it, for a few transforms and for boxes, which no classification config
of mmcare uses. A torchvision for CUDA cannot be imported beside a torch for CPUs, and some machines have none.

Where transformers is installed, MMPretrain imports its multi-modal models, too, which are written for transformers 4.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from .errors import UserError

_MODULES = ("transforms", "transforms.functional", "transforms.transforms", "ops", "ops.boxes")
_NAME = "torchvision"


@contextmanager
def mmpretrain_importable() -> Iterator[None]:
    """Return a context in which MMPretrain can be imported: without what it cannot have, which then raises if used."""
    with torchvision_or_stand_in():
        if not _has_transformers_4():
            # Otherwise set by the presence of any transformers.
            import_module("mmpretrain.utils.dependency").WITH_MULTIMODAL = False
        yield


def _has_transformers_4() -> bool:
    try:
        return version("transformers").startswith("4.")
    except PackageNotFoundError:
        return False


@contextmanager
def torchvision_or_stand_in() -> Iterator[None]:
    """Return a context in which torchvision can be imported.

    Where it cannot, its modules are stand-ins, which others do not see later: what is taken from them here can be
    subclassed, and raises a UserError when it is used.
    """
    try:
        import_module(_NAME)
    except (ImportError, OSError, RuntimeError):  # a build for another torch says that an operator does not exist
        present = {name: module for name, module in sys.modules.items() if _is_part(name)}
        sys.modules.update(_stand_ins())
        try:
            yield
        finally:
            for name in [name for name in sys.modules if _is_part(name)]:
                del sys.modules[name]
            sys.modules.update(present)
    else:
        yield


def _is_part(name: str) -> bool:
    return name.partition(".")[0] == _NAME


def _stand_ins() -> dict[str, ModuleType]:
    """Return the modules by name, each an attribute of the one above."""
    modules: dict[str, ModuleType] = {_NAME: _StandIn(_NAME)}
    for path in _MODULES:
        parent, _, leaf = f"{_NAME}.{path}".rpartition(".")
        modules[f"{parent}.{leaf}"] = _StandIn(f"{parent}.{leaf}")
        setattr(modules[parent], leaf, modules[f"{parent}.{leaf}"])
    return modules


class _StandIn(ModuleType):
    __path__: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Missing,), {"__module__": self.__name__})


class _Missing:
    """The base class of all that a stand-in has."""

    def __init__(self, *_: Any, **__: Any) -> None:
        kind = next(kind for kind in type(self).__mro__ if _is_part(kind.__module__))
        raise UserError(
            f"{kind.__name__} of torchvision is needed, which cannot be imported: install the torchvision that belongs "
            "to your torch"
        )
