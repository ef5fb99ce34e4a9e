"""Training curves from the logs in a work folder."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from ..errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NOT_METRICS = {"step", "time", "data_time"}


@dataclass
class Curves:
    """The logged values of a training."""

    unit: str
    """The unit of the metrics' steps: ``"epoch"``, or ``"iteration"`` in iteration-based training."""
    loss: dict[int, float] = field(default_factory=dict)
    """The loss by iteration."""
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    """The metrics of each validation, by epoch or iteration."""

    def metric(self, name: str) -> dict[int, float]:
        """Return the values of a metric by epoch or iteration."""
        return {step: values[name] for step, values in sorted(self.metrics.items()) if name in values}

    def metric_names(self) -> list[str]:
        """Return the names of the metrics in logging order."""
        return list(dict.fromkeys(name for values in self.metrics.values() for name in values))


def read_curves(work_dir: Path) -> Curves:
    """Read the newest training in a work folder, joined with the runs that it resumed.

    Raises:
        UserError: the folder has no log of a training, or a log is damaged.
    """
    logs = sorted([*work_dir.glob("vis_data/scalars.json"), *work_dir.glob("*/vis_data/scalars.json")])
    runs = [(log, records) for log in logs if any(map(_of_training, records := _read_records(log)))]
    if not runs:
        raise UserError(f"{work_dir} has no log of a training (<time>/vis_data/scalars.json): give a work folder")
    first = len(runs) - 1
    while first > 0 and _is_resumed(runs[first][0]):
        first -= 1
    curves = Curves(unit="epoch" if any("epoch" in record for record in runs[-1][1]) else "iteration")
    for _, records in runs[first:]:
        _append(curves, records)
    return curves


def _read_records(log: Path) -> list[dict[str, Any]]:
    """Read the records of a log, one per line. The last line of a killed run may be incomplete."""
    lines = log.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise UserError(f"line {number} of {log} is damaged: remove that line") from error
    return records


def _of_training(record: dict[str, Any]) -> bool:
    return "iter" in record and "loss" in record


def _is_resumed(log: Path) -> bool:
    config = log.with_name("config.py")
    return config.is_file() and bool(re.search(r"^resume = True$", config.read_text(encoding="utf-8"), re.MULTILINE))


def _append(curves: Curves, records: list[dict[str, Any]]) -> None:
    """Append a resumed run, replacing values that were logged after its starting checkpoint."""
    start = next(filter(_of_training, records))
    first_metric = start["epoch"] if curves.unit == "epoch" else start["step"]
    curves.loss = {step: value for step, value in curves.loss.items() if step < start["step"]}
    curves.metrics = {step: values for step, values in curves.metrics.items() if step < first_metric}
    for record in records:
        if _of_training(record):
            curves.loss[record["step"]] = record["loss"]
            continue
        # COCO's -1 means that there are no objects of that size.
        values = {name: value for name, value in record.items() if name not in _NOT_METRICS and value != -1}
        if values:
            curves.metrics[record["step"]] = values


def smooth(values: list[float]) -> list[float]:
    """Return the exponential moving average over about a twentieth of the curve; skip values that are not finite."""
    keep = 1 - 2 / (max(len(values) / 20, 1) + 1)
    total = weight = 0.0
    means = []
    for value in values:
        if math.isfinite(value):
            total = keep * total + value
            weight = keep * weight + 1
        means.append(total / weight if weight else math.nan)
    return means


def summarize(curves: Curves) -> str:
    """Return a line with the loss and a table of the metrics: best value, its step, last value."""
    steps = sorted(curves.loss)
    loss = [curves.loss[step] for step in steps]
    lines = [f"loss {loss[0]:.4g} at iteration {steps[0]}, {loss[-1]:.4g} at iteration {steps[-1]}"]
    broken = next((step for step in steps if not math.isfinite(curves.loss[step])), None)
    if broken is not None:
        lines.append(f"The loss is not a finite number from iteration {broken} on.")
    rows = []
    for name in curves.metric_names():
        curve = curves.metric(name)
        better = min if "loss" in name.lower() else max
        best = better(curve, key=lambda step, curve=curve: curve[step])
        rows.append((name, f"{curve[best]:.4g}", str(best), f"{curve[max(curve)]:.4g}"))
    if not rows:
        return "\n".join([*lines, "There is no validation yet."])
    headers = ("metric", "best", f"at {curves.unit}", "last")
    alignment = ("left", "right", "right", "right")
    table = tabulate(rows, headers, tablefmt="plain", colalign=alignment, disable_numparse=True)
    return "\n".join([*lines, table])


def draw_curves(curves: Curves, title: str) -> Figure:
    """Draw the loss and, below it, the metrics if there are any."""
    from matplotlib.figure import Figure  # not pyplot, which would look for a display

    names = curves.metric_names()
    figure = Figure(figsize=(9, 8 if names else 4), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(2 if names else 1, squeeze=False)[:, 0]
    steps = sorted(curves.loss)
    loss = [curves.loss[step] for step in steps]
    panels[0].plot(steps, loss, color="tab:blue", alpha=0.3, label="as logged")
    panels[0].plot(steps, smooth(loss), color="tab:blue", label="smoothed")
    panels[0].set(xlabel="iteration", ylabel="loss")
    for name in names:
        curve = curves.metric(name)
        panels[1].plot(list(curve), list(curve.values()), marker=".", label=name)
    if names:
        panels[1].set(xlabel=curves.unit, ylabel="metric on the validation data")
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.legend()
    return figure
