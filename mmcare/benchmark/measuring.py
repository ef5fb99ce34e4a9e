"""A run: all cases measured side by side, for one table."""

from __future__ import annotations

import platform
import re
import secrets
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.utils import ProgressBar

from ..errors import UserError
from .cases import Case
from .exported import ExportedStep, ExportedSubject
from .memory import report_out_of_memory
from .processes import ask, new_process
from .steps import Step
from .subjects import Subject, resolve
from .table import Row
from .timing import Findings, ceiling_product, examine, interleaved, product_flops, timed_again

_steps: dict[Case, Step | ExportedStep] = {}
"""The prepared steps of a measuring process."""


def measure(
    cases: Sequence[Case], subjects: Sequence[Subject | ExportedSubject], repeats: int, warmup: int
) -> list[Row]:
    """Measure cases side by side, and report progress on standard error.

    On the CPU each case has its own process: how often glibc takes memory from the system and returns it, and so how
    long a call takes, depends on all earlier allocations of the process. On CUDA, where torch caches memory itself, all
    cases share one process.

    Args:
        cases: from :func:`~mmcare.benchmark.cases.plan`, all on one device.
        subjects: the subjects of the cases.
        repeats, warmup: number of timed rounds, and of untimed rounds before them.

    Returns:
        A row for each case.

    Raises:
        UserError: there is not enough memory.
    """
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    device = cases[0].device
    with ExitStack() as stack:
        processes = []
        for case in cases:
            if not processes or device == "cpu":
                process = stack.enter_context(new_process(device))
            processes.append(process)
            print(f"preparing {case}", file=sys.stderr, flush=True)
            ask(process, case, _prepare, case)
        clocks = [partial(ask, process, case, _time, case) for process, case in zip(processes, cases, strict=True)]
        clocks.append(partial(timed_again, ceiling_product(device), device))
        print(f"timing {len(cases)} in {repeats} rounds", file=sys.stderr, flush=True)
        progress = ProgressBar(repeats, file=sys.stderr)
        *times, products = interleaved(clocks, repeats, warmup, after_round=progress.update)
        print(file=sys.stderr)
        # Last, since its allocations must not affect the times.
        found = _examine_all(cases, processes)
    ceiling = product_flops(device) / float(np.median(products))
    of_name = {subject.name: subject for subject in subjects}
    costs = {key: of_name[key[0]].cost(key[1], *key[2]) for key in {(c.subject, c.part, c.shape) for c in cases}}
    rows = []
    for case, findings, seconds in zip(cases, found, times, strict=True):
        p10, median, p90 = (float(value) for value in np.percentile(seconds, (10, 50, 90)))
        parameters, macs = costs[case.subject, case.part, case.shape]
        rows.append(
            Row(
                run=name,
                machine=machine(device),
                subject=case.subject,
                part=case.part,
                form=case.form,
                mode="training" if case.training else "inference",
                batch=case.batch,
                height=case.shape[0],
                width=case.shape[1],
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
                network=getattr(getattr(of_name[case.subject], "network", None), "name", None),
            )
        )
    return rows


def _examine_all(cases: Sequence[Case], processes: Sequence[ProcessPoolExecutor]) -> list[Findings]:
    """Examine each case in its process.

    The maps of each form are compared with those of the subject's first form at the same size.
    """
    found = []
    compared, reference = None, None
    for case, process in zip(cases, processes, strict=True):
        print(f"examining {case}", file=sys.stderr, flush=True)
        if compared != (setting := replace(case, form="")):
            compared, reference = setting, None
        findings, maps = ask(process, case, _examine, case, reference)
        reference = reference or maps
        found.append(findings)
    return found


def _prepare(case: Case) -> None:
    with report_out_of_memory(case):
        _steps[case] = ExportedStep(case) if case.exported else Step(case, resolve(case.subject))
    try:
        with report_out_of_memory(case):
            _steps[case]()  # compiled forms compile here
    except RuntimeError as error:
        if not {"bf16", "fp16"} & set(case.form.split("+")):
            raise
        # Such as Swin, which adds a mask in float32.
        reason = str(error).splitlines()[0]
        raise UserError(f"{case} cannot be computed in that precision ({reason}): leave one of the two out") from error


def _time(case: Case) -> float:
    with report_out_of_memory(case):
        return timed_again(_steps[case], case.device)


def _examine(case: Case, reference: list[np.ndarray] | None) -> tuple[Findings, list[np.ndarray]]:
    if isinstance(step := _steps[case], ExportedStep):
        return step.examine(), []
    # As arrays: torch passes tensors between processes in shared memory, of which containers have little.
    wanted = None if reference is None else [torch.from_numpy(array) for array in reference]
    findings, outputs = examine(step, wanted)
    return findings, [] if reference else [output.numpy() for output in outputs]


def machine(device: str) -> str:
    """Return a description of the machine: processor or GPU, threads, and torch's version."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}"


def processor() -> str:
    """Return the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.is_file() else []
    return names[0] if names else platform.machine()
