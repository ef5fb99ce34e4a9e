"""The memory-saving mode of the running code."""

from __future__ import annotations

from contextvars import ContextVar
from enum import Enum
from types import TracebackType


class Saving(Enum):
    """What a chain does in training."""

    RECOMPUTE = "recomputes maps and folds frozen norms"
    FOLD = "folds frozen norms, within something larger that is recomputed"
    NOTHING = "runs its layers"


_saving = ContextVar("saving", default=Saving.RECOMPUTE)


class Switched:
    """A context that sets the memory-saving mode; it can be entered again after it was left."""

    def __init__(self, saving: Saving) -> None:
        self.saving = saving

    def __enter__(self) -> None:
        self.token = _saving.set(self.saving)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _saving.reset(self.token)


def keep_everything() -> Switched:
    """Return a context that turns memory saving off: the authors' operations one for one, nothing recomputed."""
    return Switched(Saving.NOTHING)


def present() -> Saving:
    """Return the current memory-saving mode."""
    return _saving.get()
