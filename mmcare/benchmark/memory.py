"""Memory: peak allocation, activations stored for the backward pass, and out-of-memory errors."""

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
def report_out_of_memory(what: object) -> Iterator[None]:
    """Turn a failed allocation into a UserError.

    Raises:
        UserError: there was not enough memory for ``what``.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        kinds = (MemoryError, torch.OutOfMemoryError)
        # The CPU allocator and oneDNN have no exception class of their own.
        if not isinstance(error, kinds) and not any(
            text in str(error) for text in ("can't allocate memory", "could not create a memory", "Storage size calc")
        ):
            raise
        raise UserError(
            f"{what} needs more memory than this machine has free: give a smaller --shape, --sizes or --batch"
        ) from error


def limit_memory() -> None:
    """Make allocations beyond the machine's free memory fail, for which Linux would otherwise kill the process.

    Do nothing if the amount of free memory is unknown.
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
    """Return the peak of the bytes allocated during a call, beyond those allocated before it.

    These are maps, gradients and workspaces, without the weights and the images. The figure comes from torch's
    allocator, which serves oneDNN's and cuDNN's workspaces as well. It is exact and repeatable, but does not include
    the libraries' own allocations: on the CPU, buffers of a few MiB for each thread.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise it logs every start and stop on standard error
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def resident_peak(call: Callable[[], None]) -> int:
    """Return by how many bytes the memory of this process grows at most during a call.

    For runtimes, whose allocations torch does not see. Pages that were free before and stay with the process do not
    count, so the first call of a runtime is the one to measure.
    """
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not (status.is_file() and os.access(reset, os.W_OK)):
        raise UserError("the memory of exported files is measured with /proc, which this system lacks: omit them")
    reset.write_text("5")  # the peak starts again from what is resident now
    before = _kilobytes(status, "VmHWM")
    call()
    return (_kilobytes(status, "VmHWM") - before) * 1024


def kept_for_backward(forward: Callable[[], object], model: nn.Module) -> int:
    """Return the exact number of bytes that a forward pass stores for the backward pass.

    A storage counts once and with its full size, however many views of it are stored. The model's parameters and
    buffers do not count.

    Args:
        forward: runs the pass and returns outputs that keep its graph alive.
        model: the model whose parameters and buffers do not count.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    storages: dict[int, int] = {}
    kept: list[Tensor] = []  # while a storage is alive, no other storage has its address

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
