"""The sensitivity of the blocks of a network to int8, and the fewest that have to stay in float."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .agreement import Outputs, agreement, relative_errors

TOLERANCE = 0.02
"""By how much the metric, or the agreement with the float32 file, may be lower."""
COMPARED = 8
"""Batches on which blocks are compared."""

Content = bytes | Mapping[str, bytes]


class Trials(Protocol):
    """Files of a model in which some blocks are in float and the others in int8.

    Attributes:
        groups: the names of the blocks.
    """

    groups: Sequence[str]

    def run(self, floats: Collection[str]) -> list[tuple[Outputs, Outputs]]:
        """Return the maps of the heads and the outputs, by name, for each of some batches."""
        ...

    def content(self, floats: Collection[str]) -> Content:
        """Return the content of the file."""
        ...


@dataclass(frozen=True)
class Found:
    """Which blocks stay in float, and why.

    Attributes:
        errors: relative error of the heads' maps when a block alone is in int8, the largest first.
        floats: the blocks that stay in float.
        scores: the metric, or the agreement, of the files in float32, all in int8, and with ``floats``.
        measure: what the scores are.
    """

    errors: dict[str, float]
    floats: tuple[str, ...]
    scores: dict[str, float]
    measure: str

    def record(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {
            "sensitivity": self.errors,
            "float_layers": list(self.floats),
            "held": {"measure": self.measure, "tolerance": TOLERANCE, **self.scores},
        }


def search(trials: Trials, metric: Callable[[Content], float] | None, name: str = "metric") -> Found:
    """Measure each block alone, and find a smallest set of float blocks that holds the metric.

    The blocks with the largest errors become float, one after the other, until the metric is held; then each is tried
    in int8 again.

    Args:
        trials: the files.
        metric: returns the metric of a file, higher for a better one; by default the files are compared with the
            float32 one.
        name: what the metric is called.
    """
    every = frozenset(trials.groups)
    reference = trials.run(every)
    errors = {
        group: float(np.mean([_error(*maps) for maps in _pairs(reference, trials.run(every - {group}), 0)]))
        for group in trials.groups
    }
    errors = dict(sorted(errors.items(), key=lambda item: -item[1]))

    def score(floats: Collection[str]) -> float:
        if metric:
            return metric(trials.content(floats))
        wanted, found = zip(*_pairs(reference, trials.run(floats), 1), strict=True)
        return agreement(wanted, found)

    best = score(every)
    low = best - TOLERANCE
    found = first = score(())
    floats: list[str] = []
    for group in errors:
        if found >= low:
            break
        floats.append(group)
        found = score(floats)
    for group in reversed(floats[:-1]):
        fewer = [other for other in floats if other != group]
        if (value := score(fewer)) >= low:
            floats, found = fewer, value
    scores = {"float32": best, "int8": first, "chosen": found}
    return Found(errors, tuple(floats), scores, name if metric else "agreement with the float32 file")


def _pairs(first: list[tuple[Outputs, Outputs]], second: list[tuple[Outputs, Outputs]], part: int) -> list[Any]:
    return [(one[part], other[part]) for one, other in zip(first, second, strict=True)]


def _error(wanted: Outputs, found: Outputs) -> float:
    return float(np.mean(relative_errors(wanted, found)))
