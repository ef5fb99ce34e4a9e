"""How much of training's memory is saved, for what runs now."""

from __future__ import annotations

from contextvars import ContextVar
from enum import Enum
from types import TracebackType


class Saving(Enum):
    """What a chain does in training."""

    RECOMPUTE = "computes maps again, and puts frozen norms into the weights beside them"
    FOLD = "puts frozen norms into the weights beside them, as it is computed again as a part of something larger"
    NOTHING = "runs its layers"


_saving = ContextVar("saving", default=Saving.RECOMPUTE)


class Switched:
    """A context within which memory is saved in another way; it may be entered again after it was left."""

    def __init__(self, saving: Saving) -> None:
        self.saving = saving

    def __enter__(self) -> None:
        self.token = _saving.set(self.saving)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _saving.reset(self.token)


def keep_everything() -> Switched:
    """Run the networks as if this room did not exist: the authors' operations one for one, nothing computed twice."""
    return Switched(Saving.NOTHING)


def present() -> Saving:
    """Return how memory is saved now."""
    return _saving.get()
