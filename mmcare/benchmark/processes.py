"""Processes to measure in: what one allocates and frees does not change how long another's calls take.

Each is forked from a server that has imported everything and computed nothing, so that many fit into memory. They end
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
    """Return a process for :func:`ask`, with as many threads as torch has in this one.

    It is a context manager, at whose end the process ends.

    Args:
        device: what it will compute on; on the CPU an allocation beyond the machine's free memory is an error in it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmcare.benchmark.measuring", "mmdet.models"])
    return ProcessPoolExecutor(1, context, _initialize, (torch.get_num_threads(), device))


def _initialize(threads: int, device: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all processes: this one has nothing to say
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
    """Run a module's function in a process and return what it returns.

    Raises:
        UserError: the process ended meanwhile; ``what`` it was to measure is named.
    """
    try:
        return process.submit(function, *args, **kwargs).result()
    except BrokenProcessPool as error:
        raise UserError(
            f"the process that measured {what} was ended from outside, most likely because the machine had no memory "
            "left: give a smaller --shape, --sizes or --batch, or fewer models at a time"
        ) from error
