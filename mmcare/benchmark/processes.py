"""Separate processes for measurements, so that the allocations of one case do not affect the times of another.

For the CPU, each process is forked from a server that has imported everything but computed nothing, so that many fit
into memory. CUDA cannot be used in a fork of a process that has looked for a GPU, which imports do. The processes end
when the benchmark ends, however it ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import ParamSpec, TypeVar

import torch

from ..errors import UserError
from .memory import limit_memory

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def new_process(device: str) -> ProcessPoolExecutor:
    """Return a process for :func:`ask`, with as many torch threads as this process has.

    As a context manager it ends the process on exit.

    Args:
        device: the device it will compute on; on the CPU, allocations beyond the machine's free memory raise an error.
    """
    context = multiprocessing.get_context("forkserver" if device == "cpu" else "spawn")
    if device == "cpu":
        context.set_forkserver_preload(["mmcare.benchmark.measuring", "mmdet.models"])
    return ProcessPoolExecutor(1, context, _initialize, (torch.get_num_threads(), device))


def _initialize(threads: int, device: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all processes: this one should print nothing
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    if device == "cpu":
        limit_memory()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def ask(
    process: ProcessPoolExecutor,
    what: object,
    function: Callable[Arguments, Result],
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> Result:
    """Run a module-level function in a process and return its result.

    Raises:
        UserError: the process ended unexpectedly; the message names ``what`` it measured.
    """
    try:
        return process.submit(function, *args, **kwargs).result()
    except BrokenProcessPool as error:
        raise UserError(
            f"the process that measured {what} was killed, most likely because the machine ran out of memory: give a "
            "smaller --shape, --sizes or --batch, or fewer models at a time"
        ) from error
