"""The plots of a run: accuracy over time, and time and memory over the number of pixels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from ..files import write_picture
from ..runs import is_config
from .accuracy import BOX_AP, TOP1
from .table import Row, only_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEGEND = dict(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.1))  # below the plot: hides no points
MARKERS = "osD^vP*X"


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw ``accuracy.png`` and ``sizes.png`` in a folder, as far as the rows allow, and return the paths.

    Raises:
        UserError: there is nothing to draw, the rows are from several runs, or a file cannot be written.
    """
    drawings = {}
    if any(map(reported, rows)):
        drawings["accuracy.png"] = draw_accuracy(rows)
    if by_size(rows):
        drawings["sizes.png"] = draw_sizes(rows)
    if not drawings:
        raise UserError("there is nothing to draw: give --sizes, or a backbone with a published accuracy")
    for name, figure in drawings.items():
        write_picture(figure, folder / name)
    return [folder / name for name in drawings]


def reported(row: Row) -> tuple[str, float] | None:
    """Return the metric and the value published for a row's subject; None if unknown."""
    if row.part == "whole":
        detector = re.search(r"(?:^|/)retinanet_(\w+)(?:\.py)?(?:@(.+))?$", row.subject)
        backbone = (detector[2] or detector[1]) if detector else None
        return ("COCO box AP, RetinaNet 1×", BOX_AP[backbone]) if backbone in BOX_AP else None
    return ("ImageNet top-1 in %", TOP1[row.subject]) if row.subject in TOP1 else None


def draw_accuracy(rows: Sequence[Row]) -> Figure:
    """Draw published accuracy over measured time: a panel for each metric, a line for each family and form.

    Raises:
        UserError: the rows are from several runs, or no accuracy is known for any of them.
    """
    only_run(rows, "the plot of accuracy over time")
    panels: dict[str, list[tuple[Row, float]]] = {}
    for row in rows:
        if (known := reported(row)) is not None:
            panels.setdefault(known[0], []).append((row, known[1]))
    if not panels:
        raise UserError("no accuracy is known for these subjects: the plot needs backbones such as mmcare.CARE:s1")
    figure, axes = _figure(len(panels))
    for axis, (metric, points) in zip(axes, panels.items(), strict=True):
        first = points[0][0]
        points = [(row, value) for row, value in points if (row.height, row.width) == (first.height, first.width)]
        families = list(dict.fromkeys(_family(row.subject) for row, _ in points))
        forms = list(dict.fromkeys(row.form for row, _ in points))
        for i, family in enumerate(families):
            own = [(row, value) for row, value in points if _family(row.subject) == family]
            for j, form in enumerate(dict.fromkeys(row.form for row, _ in own)):
                line = sorted((row.median * 1e3, value, row.subject) for row, value in own if row.form == form)
                milliseconds, values, _ = zip(*line, strict=True)
                style = dict(
                    color=f"C{i}", marker=MARKERS[forms.index(form) % len(MARKERS)], alpha=1 if j == 0 else 0.6
                )
                axis.plot(milliseconds, values, label=f"{family}, {form}", **style)
                for x, y, name in line if j == 0 else ():
                    axis.annotate(_variant(name), (x, y), textcoords="offset points", xytext=(6, -10), fontsize=8)
        kind = "training step" if first.mode == "training" else "forward pass"
        axis.set(
            xlabel=f"{kind} at {first.height}×{first.width}, batch {first.batch}, ms",
            ylabel=f"{metric}, as reported",
        )
        axis.legend(**LEGEND)
    figure.suptitle(first.machine, fontsize=9)
    return figure


def _family(subject: str) -> str:
    """Return the part of a subject's name that its variants share."""
    if "@" in subject:
        return subject.rpartition("@")[2]
    if is_config(subject):
        return Path(subject).stem.rpartition("_")[0]
    return subject.partition(":")[0].rpartition(".")[2]


def _variant(subject: str) -> str:
    """Return the part of a subject's name that distinguishes it within its family."""
    if "@" in subject:
        return subject.rpartition("@")[2]
    return Path(subject).stem.rpartition("_")[2] if is_config(subject) else subject.partition(":")[2]


def exponent(pixels: Sequence[int], values: Sequence[float]) -> float:
    """Return the exponent k of the best-fitting power law values ∝ pixels^k, by least squares of the logarithms."""
    return float(np.polyfit(np.log(pixels), np.log(values), 1)[0])


def by_size(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Return the rows of each (subject, part, form) measured at several sizes, sorted by size."""
    series: dict[tuple[str, str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.pixels):
        series.setdefault((row.subject, row.part, row.form), []).append(row)
    return {key: points for key, points in series.items() if points[0].pixels < points[-1].pixels}


def draw_sizes(rows: Sequence[Row]) -> Figure:
    """Draw time and peak memory over the number of pixels on logarithmic axes, with fitted exponents.

    Raises:
        UserError: the rows are from several runs, or nothing was measured at more than one size.
    """
    only_run(rows, "the plot over sizes")
    series = by_size(rows)
    if not series:
        raise UserError(
            "nothing was measured at more than one size: the plot over sizes needs --sizes, such as 256 512 1024"
        )
    figure, axes = _figure(2)
    subjects = list(dict.fromkeys(subject for subject, _, _ in series))
    kinds = list(dict.fromkeys((part, form) for _, part, form in series))
    for (subject, part, form), points in series.items():
        pixels = [row.pixels for row in points]
        for axis, values in zip(
            axes, ([row.median * 1e3 for row in points], [row.peak / 2**20 for row in points]), strict=True
        ):
            name = subject.rpartition("/")[2] + (f" {part}" if len({part for part, _ in kinds}) > 1 else "")
            axis.plot(
                pixels,
                values,
                color=f"C{subjects.index(subject) % 10}",
                marker=MARKERS[kinds.index((part, form)) % len(MARKERS)],
                label=f"{name}, {form}: exponent {exponent(pixels, values):.2f}",
            )
    sizes = sorted({(row.pixels, f"{row.height}×{row.width}") for points in series.values() for row in points})
    for axis, label in zip(axes, ("time for a batch, ms", "peak memory, MiB"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="pixels of an image", ylabel=label)
        axis.set_xticks([pixels for pixels, _ in sizes], [text for _, text in sizes], fontsize=8)
        axis.set_xticks([], minor=True)
        axis.legend(**LEGEND)
    figure.suptitle(f"{rows[0].mode}, batch {rows[0].batch}; {rows[0].machine}", fontsize=9)
    return figure


def _figure(panels: int) -> tuple[Figure, np.ndarray]:
    from matplotlib.figure import Figure  # not pyplot, which would look for a display

    figure = Figure(figsize=(8 * panels, 7), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes
