"""The sensitivity of a network's blocks, as a table and as a plot."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate


def sensitivity_table(record: Mapping[str, Any]) -> str:
    """Return the table of a record of quantization, the most sensitive block first."""
    floats = record["float_layers"]
    rows = [
        (group, f"{100 * error:.2f} %", "float32" if group in floats else "int8")
        for group, error in record["sensitivity"].items()
    ]
    held, latency = record["held"], record["latency"]
    return "\n".join(
        (
            tabulate(rows, ("block", "error when it alone is int8", "written as"), tablefmt="github"),
            *(
                f"{name}: {value:.4f} in float32, {held['int8'].get(name, 0):.4f} all in int8, "
                f"{held['written'].get(name, 0):.4f} as written"
                for name, value in held["float32"].items()
            ),
            f"time of one batch: {latency['float32_ms']:.1f} ms in float32, {latency['int8_ms']:.1f} ms as written",
        )
    )


def sensitivity_plot(record: Mapping[str, Any]) -> bytes:
    """Return a PNG picture of the errors in a record of quantization, as bars."""
    from matplotlib.figure import Figure

    errors, floats = record["sensitivity"], record["float_layers"]
    figure = Figure(figsize=(8, 1 + 0.22 * len(errors)), layout="constrained")
    axes = figure.add_subplot()
    colours = ["tab:orange" if group in floats else "tab:blue" for group in errors]
    axes.barh(list(errors), [100 * error for error in errors.values()], color=colours)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel(
        "relative error of the heads' maps when the block alone is int8, in %\norange blocks stay in float32"
    )
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()
