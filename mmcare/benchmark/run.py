"""One run: everything measured side by side, into one table."""

from __future__ import annotations

import platform
import re
import secrets
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from mmengine.utils import ProgressBar

from .measure import ceiling_product, examine, interleaved, product_flops
from .subjects import Step
from .table import Row


def run(steps: Iterable[Step], device: str, repeats: int, warmup: int) -> list[Row]:
    """Measures steps side by side; tells on standard error how far it is.

    Args:
        steps: :func:`~mmcare.benchmark.subjects.plan`'s.
        device: ``"cpu"`` or ``"cuda"``.
        repeats, warmup: timed and untimed calls of each.

    Returns:
        A row for each step.

    Raises:
        UserError: there is not enough memory.
    """
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    examined = list(examine(steps, lambda what: print(f"examining {what}", file=sys.stderr, flush=True)))
    calls = [*(step for step, _ in examined), ceiling_product(device)]
    print(f"timing {len(examined)} in {repeats} rounds", file=sys.stderr, flush=True)
    progress = ProgressBar(repeats, file=sys.stderr)
    *times, products = interleaved(calls, device, repeats, warmup, after_round=progress.update)
    print(file=sys.stderr)
    ceiling = product_flops(device) / float(np.median(products))
    rows = []
    for (step, findings), seconds in zip(examined, times, strict=True):
        p10, median, p90 = (float(value) for value in np.percentile(seconds, (10, 50, 90)))
        parameters, macs = step.subject.cost(step.part, *step.shape)
        rows.append(
            Row(
                run=name,
                machine=machine(device),
                subject=step.subject.name,
                part=step.part,
                form=step.form,
                mode="training" if step.training else "inference",
                batch=step.batch,
                height=step.shape[0],
                width=step.shape[1],
                parameters=parameters,
                macs=macs,
                repeats=repeats,
                median=median,
                p10=p10,
                p90=p90,
                peak=findings.peak,
                kept=findings.kept,
                ceiling=ceiling,
                difference=findings.difference,
            )
        )
    return rows


def machine(device: str) -> str:
    """What the run ran on."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.is_file() else []
    threads = torch.get_num_threads()
    return (
        f"{names[0] if names else platform.machine()}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}"
    )
