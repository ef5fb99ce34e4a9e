"""The sensitivity of the blocks of a network to int8, and the fewest that have to stay in float."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..certification import say
from .agreement import Outputs, agreement, relative_errors

TOLERANCE = 0.018
"""By how much a metric, or the agreement with the float32 file, may be lower than the float32 file's. It is less than
the 0.02 below the trained model's that an export allows, as that file is not quite the model."""
AGREEMENT = "agreement"
"""What is held where there is no metric."""
COMPARED = 4
"""Batches on which blocks are compared."""

Content = bytes | Mapping[str, bytes]
Metric = Callable[[Content], Mapping[str, float]]
"""From the content of a file to its metrics by name, higher for better ones; what is missing is 0."""


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
        scores: the metrics of the files in float32, all in int8, and as written.
    """

    errors: dict[str, float]
    floats: tuple[str, ...]
    scores: dict[str, dict[str, float]]

    def record(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {"sensitivity": self.errors, "float_layers": list(self.floats), "held": self.scores}


def search(trials: Trials, metric: Metric | None) -> Found:
    """Measure each block alone, and find a smallest set of float blocks that holds the metrics.

    The blocks with the largest errors become float, one after the other, until the metrics are held; then each is tried
    in int8 again.

    Args:
        trials: the files.
        metric: by default the outputs on calibration pictures are compared with the float32 file's.
    """
    every = frozenset(trials.groups)
    reference = trials.run(every)

    def score(floats: Collection[str]) -> dict[str, float]:
        if metric:
            scores = dict(metric(trials.content(floats)))
        else:
            outputs = ([outputs for _, outputs in results] for results in (reference, trials.run(floats)))
            scores = {AGREEMENT: agreement(*outputs)}
        values = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        say(f"{len(floats)} of {len(trials.groups)} blocks in float: {values}")
        return scores

    best = score(every)  # first, as it may be that test images do not fit the file
    say(f"measuring the sensitivity of {len(trials.groups)} blocks to int8")
    errors = {group: _error(reference, trials.run(every - {group})) for group in trials.groups}
    errors = dict(sorted(errors.items(), key=lambda item: -item[1]))

    def is_held(scores: Mapping[str, float]) -> bool:
        return all(value - scores.get(name, 0.0) <= TOLERANCE for name, value in best.items())

    first = found = score(())
    floats: list[str] = []
    for group in errors:
        if is_held(found):
            break
        floats.append(group)
        found = score(floats)
    for group in floats[:-1]:  # the last one was needed
        fewer = [other for other in floats if other != group]
        if is_held(fewer_found := score(fewer)):
            floats, found = fewer, fewer_found
    return Found(errors, tuple(floats), {"float32": best, "int8": first, "written": found})


def _error(wanted: list[tuple[Outputs, Outputs]], found: list[tuple[Outputs, Outputs]]) -> float:
    """Return the mean relative error of the heads' maps."""
    return float(np.mean([relative_errors(maps, others) for (maps, _), (others, _) in zip(wanted, found, strict=True)]))
