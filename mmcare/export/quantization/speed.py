"""Whether a file with smaller numbers is faster."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

ROUNDS = 10


def compare_speed(run: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, Any], str | None]:
    """Time the float32 and the int8 file in turns.

    Args:
        run: calls that run ``float32`` and ``int8`` on the same batch.

    Returns:
        The medians, as plain JSON, and a sentence if int8 is not faster.
    """
    seconds: dict[str, list[float]] = {name: [] for name in run}
    for number in range(ROUNDS + 1):
        for name, call in run.items():
            start = time.perf_counter()
            call()
            if number:  # the first call allocates memory
                seconds[name].append(time.perf_counter() - start)
    times = {f"{name}_ms": round(1e3 * median(values), 2) for name, values in seconds.items()}
    record = {**times, "threads": len(os.sched_getaffinity(0)), "calls": ROUNDS}
    if times["int8_ms"] < times["float32_ms"]:
        return record, None
    return record, (
        f"the file is not faster in int8 on this machine, where it takes {times['int8_ms']:.1f} ms, and "
        f"{times['float32_ms']:.1f} ms in float32: use the float32 file here"
    )
