"""Memory: what a step allocates, what a backward pass needs kept, and what happens when there is not enough."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UserError


@contextmanager
def memory_errors_told(what: object) -> Iterator[None]:
    """Tell of an allocation that fails in a sentence.

    Raises:
        UserError: there was not enough memory for ``what``.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        kinds = (MemoryError, torch.OutOfMemoryError)
        # The CPU's allocator and oneDNN have no exception of their own.
        if not isinstance(error, kinds) and not any(
            text in str(error) for text in ("can't allocate memory", "could not create a memory", "Storage size calc")
        ):
            raise
        raise UserError(
            f"{what} needs more memory than is free here: give a smaller --shape, --sizes or --batch"
        ) from error


def limit_memory() -> None:
    """Make an allocation beyond the machine's free memory fail, where Linux would end the process for it.

    Where the free memory cannot be told, do nothing.
    """
    meminfo, status = Path("/proc/meminfo"), Path("/proc/self/status")
    if not (meminfo.is_file() and status.is_file()):
        return
    free = [_kilobytes(meminfo, "MemAvailable") * 1024]
    allowance, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if allowance.is_file() and used.is_file() and (limit := allowance.read_text().strip()).isdigit():
        free.append(int(limit) - int(used.read_text()))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _kilobytes(status, "VmData") * 1024 + max(min(free), 0)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _kilobytes(table: Path, name: str) -> int:
    (line,) = (line for line in table.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


def peak_memory(call: Callable[[], None], device: str) -> int:
    """Return the bytes allocated at the same time during a call, beyond what was allocated before it.

    These are maps, gradients and workspaces, without the weights and the images. The figure is that of torch's
    allocator, which serves oneDNN's and cuDNN's workspaces as well: exact and repeatable, but without what libraries
    allocate by themselves, on the CPU buffers of a few MiB for each thread.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would tell of every start and stop on standard error
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def kept_for_backward(forward: Callable[[], object], model: nn.Module) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, counted exactly.

    What is kept as several views of one storage counts once, as the storage's whole size; the model's parameters and
    buffers, which are there anyway, do not count.

    Args:
        forward: runs the pass, and returns what keeps its graph alive.
        model: whose parameters and buffers do not count.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    storages: dict[int, int] = {}
    kept: list[Tensor] = []  # while a storage lives, no other has its address

    def pack(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = forward()
    del graph
    return sum(storages.values())
