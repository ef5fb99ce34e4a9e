"""Operator profiles: time, bytes and operations of each operator, and its distance from the machine's limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch.utils.flop_counter import flop_registry

from ..errors import UserError
from .cases import Case
from .memory import report_out_of_memory
from .private import TorchDispatchMode
from .processes import ask, new_process
from .steps import Step, tensors
from .subjects import resolve
from .timing import ceiling_product, interleaved, product_flops, timed, timed_again

COPIED = 2**28
"""Bytes copied to measure memory bandwidth: far more than caches hold."""


@dataclass
class Kind:
    """All calls of one kind of operator in one pass.

    Attributes:
        name: name of the operator; for a convolution with its kernel size.
        calls: number of calls.
        seconds: total time.
        flops: additions and multiplications of convolutions and matrix products; 0 for other operators.
        moved: bytes of all arguments and results, each read or written once; 0 for views.
    """

    name: str
    calls: int = 0
    seconds: float = 0.0
    flops: int = 0
    moved: int = 0

    def limit(self, ceiling: float, bandwidth: float) -> tuple[float, str]:
        """Return the minimum time in seconds by the roofline model, and the limiting resource."""
        return max((self.flops / ceiling, "compute"), (self.moved / bandwidth, "memory"))


def profiles(cases: Sequence[Case], repeats: int) -> Iterator[str]:
    """Profile cases, each in its own process, and yield a table with a title for each.

    Args:
        cases: from :func:`~mmcare.benchmark.cases.plan`, all on one device and none compiled.
        repeats: passes of each case.

    Raises:
        UserError: there is not enough memory, or torch does not support profiling.
    """
    ceiling, bandwidth = limits(cases[0].device, repeats)
    for case in cases:
        with new_process(case.device) as process:
            found = ask(process, case, _profile_case, case, repeats)
        yield f"{case}, batch {case.batch}\n{profile_table(found, ceiling, bandwidth)}"


def _profile_case(case: Case, repeats: int) -> list[Kind]:
    step = Step(case, resolve(case.subject))
    with report_out_of_memory(case):
        return profile(step, case.device, repeats)


def profile(step: Callable[[], None], device: str, repeats: int) -> list[Kind]:
    """Return the kinds of operators that a pass calls, slowest first; times are medians over repeated passes.

    Args:
        step: runs the pass eagerly.
        device: ``"cpu"`` or ``"cuda"``.
        repeats: number of passes.

    Raises:
        UserError: this version of torch does not support profiling.
    """
    step()
    passes = [_operators(step, device) for _ in range(repeats)]
    kinds: dict[str, Kind] = {}
    for calls in zip(*passes, strict=True):
        first = calls[0]
        kind = kinds.setdefault(first.name, Kind(first.name))
        kind.calls += 1
        kind.seconds += float(np.median([call.seconds for call in calls]))
        kind.flops += first.flops
        kind.moved += first.moved
    return sorted(kinds.values(), key=lambda kind: -kind.seconds)


def _operators(step: Callable[[], None], device: str) -> list[Kind]:
    """Run a pass and return its operator calls in order."""
    if TorchDispatchMode is None:
        raise UserError(f"torch {torch.__version__} does not expose its operator calls: use another version to profile")

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            with self:  # composite operators are recorded as their parts
                if (decomposed := operator.decompose(*args, **kwargs)) is not NotImplemented:
                    return decomposed
            results: list[Any] = []
            seconds = timed(lambda: results.append(operator(*args, **kwargs)), device)
            (out,) = results
            moved = 0
            if not (operator.is_view or operator.name().startswith("aten::empty")):
                moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors((args, kwargs, out)))
            calls.append(Kind(_name(operator, args), 1, seconds, _flops(operator, args, kwargs, out), moved))
            return out

    calls: list[Kind] = []
    with Recorder():
        step()
    return calls


_FUSED = {"mkldnn::_convolution_pointwise": 1, "mkldnn::_convolution_pointwise_.binary": 2}
"""The position of the weight among the arguments of oneDNN's fused convolutions, by operator."""


def _flops(operator: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    name = operator.name()
    if name in _FUSED:
        return 2 * out.numel() * math.prod(args[_FUSED[name]].shape[1:])
    namespace, _, rest = name.partition("::")
    overloads = getattr(getattr(torch.ops, namespace), rest.partition(".")[0])
    return flop_registry[overloads](*args, **kwargs, out_val=out) if overloads in flop_registry else 0


def _name(operator: Any, args: Sequence[Any]) -> str:
    name = operator.name().partition("::")[2].partition(".")[0]
    name = name.strip("_").removeprefix("native_").partition("_legit")[0]
    if not name.startswith("convolution"):
        return name
    if operator.name() in _FUSED:
        first = _FUSED[operator.name()]
        weight, groups, also = args[first], args[first + 5], args[first + 6]
        end = "" if also == "none" else f" + {also.replace('gelu', 'GELU').replace('add', 'sum')}"
    elif name == "convolution_backward":
        weight, groups, end = args[2], args[-2], " backward"
    else:
        weight, groups, end = args[1], args[-1], ""
    kernel = "×".join(map(str, weight.shape[2:]))
    depthwise = "depth-wise " if groups > 1 and groups == weight.shape[0] else ""
    return f"{depthwise}convolution {kernel}{end}"


def limits(device: str, repeats: int) -> tuple[float, float]:
    """Measure the machine's compute ceiling in operations per second and its memory bandwidth in bytes per second."""
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    calls = [ceiling_product(device), lambda: target.copy_(source)]
    products, copies = interleaved([partial(timed_again, call, device) for call in calls], repeats, warmup=1)
    return product_flops(device) / sorted(products)[repeats // 2], 2 * COPIED / sorted(copies)[repeats // 2]


def profile_table(kinds: Sequence[Kind], ceiling: float, bandwidth: float) -> str:
    """Return a profile as a text table.

    Args:
        kinds: from :func:`profile`.
        ceiling, bandwidth: from :func:`limits`.
    """
    total = Kind("all", *(sum(getattr(kind, key) for kind in kinds) for key in ("calls", "seconds", "flops", "moved")))
    header = ("operator", "time", "share", "calls", "GFLOP", "MB", "FLOP/byte", "limit", "of limit")
    cells = []
    for kind in (*kinds, total):
        least, bound = kind.limit(ceiling, bandwidth)
        if kind is total:  # the limit of the total is the sum of its kinds' limits
            least, bound = sum(kind.limit(ceiling, bandwidth)[0] for kind in kinds), ""
        cells.append(
            (
                kind.name,
                f"{kind.seconds * 1e3:.2f} ms",
                f"{kind.seconds / total.seconds:.1%}",
                str(kind.calls),
                f"{kind.flops / 1e9:.3f}",
                f"{kind.moved / 1e6:.2f}",
                f"{kind.flops / kind.moved:.1f}" if kind.moved else "",
                bound if least else "",
                f"{least / kind.seconds:.0%}" if least else "",
            )
        )
    table = tabulate(cells, header, disable_numparse=True, colalign=("left", *["right"] * (len(header) - 1)))
    return (
        f"{table}\nlimit: {ceiling / 1e9:.0f} GFLOP/s in a large float32 matrix product, {bandwidth / 1e9:.1f} GB/s in "
        "a large copy, both measured in this run; operators on maps in the caches may exceed the second."
    )
