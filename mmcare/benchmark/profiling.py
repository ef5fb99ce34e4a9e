"""Where a pass spends its time: which operators, how many bytes and operations, how far from the machine's limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .measure import ceiling_product, interleaved, product_flops, timed, timed_again
from .table import align

COPIED = 2**28
"""Bytes that are copied to find out the memory's speed, far more than caches hold."""


@dataclass
class Kind:
    """All calls of one kind of operator in one pass.

    Attributes:
        name: the operator; of a convolution also its kernel.
        calls: how many.
        seconds: the sum of their times.
        flops: additions and multiplications of convolutions and matrix products; other operators count none.
        moved: bytes of all their arguments and results, each read or written once; views move nothing.
    """

    name: str
    calls: int = 0
    seconds: float = 0.0
    flops: int = 0
    moved: int = 0

    def limit(self, ceiling: float, bandwidth: float) -> tuple[float, str]:
        """The time that the machine needs at least, by the roofline model, and whether that is compute or memory."""
        return max((self.flops / ceiling, "compute"), (self.moved / bandwidth, "memory"))


class _Recorder(TorchDispatchMode):
    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.calls: list[Kind] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with self:  # what is made of other operators is recorded as those
            if (decomposed := func.decompose(*args, **kwargs)) is not NotImplemented:
                return decomposed
        results: list[Any] = []
        seconds = timed(lambda: results.append(func(*args, **kwargs)), self.device)
        (out,) = results
        flops = 0
        if func._overloadpacket in flop_registry:
            flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        elif func.name() in _FUSED:
            flops = 2 * out.numel() * math.prod(args[_FUSED[func.name()]].shape[1:])
        moved = 0
        if not _moves_nothing(func):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self.calls.append(Kind(_name(func, args), 1, seconds, flops, moved))
        return out


def _moves_nothing(func: Any) -> bool:
    """Whether an operator only allocates, or returns a view of its argument without writing to it."""
    returns = [value.alias_info for value in func._schema.returns]
    view = any(alias is not None and not alias.is_write for alias in returns)
    return view or func._schema.name.startswith("aten::empty")


_FUSED = {"mkldnn::_convolution_pointwise": 1, "mkldnn::_convolution_pointwise_.binary": 2}
"""oneDNN's convolutions that do more (:mod:`mmcare.fast.convolutions`), and where among their arguments the weight is."""


def _name(func: Any, args: Sequence[Any]) -> str:
    name = func._schema.name.partition("::")[2].strip("_").removeprefix("native_").partition("_legit")[0]
    if not name.startswith("convolution"):
        return name
    if func.name() in _FUSED:
        first = _FUSED[func.name()]
        weight, groups, also = args[first], args[first + 5], args[first + 6]
        end = "" if also == "none" else f" + {also.replace('gelu', 'GELU').replace('add', 'sum')}"
    elif name == "convolution_backward":
        weight, groups, end = args[2], args[-2], " backward"
    else:
        weight, groups, end = args[1], args[-1], ""
    kernel = "×".join(map(str, weight.shape[2:]))
    depthwise = "depth-wise " if groups > 1 and groups == weight.shape[0] else ""
    return f"{depthwise}convolution {kernel}{end}"


def profile(step: Callable[[], None], device: str, repeats: int) -> list[Kind]:
    """The kinds of operators that a pass calls, the slowest first; times are the medians of repeated passes.

    Args:
        step: runs the pass eagerly.
        device: ``"cpu"`` or ``"cuda"``.
        repeats: passes.
    """
    step()
    passes = []
    for _ in range(repeats):
        with _Recorder(device) as recorder:
            step()
        passes.append(recorder.calls)
    kinds: dict[str, Kind] = {}
    for calls in zip(*passes, strict=True):
        first = calls[0]
        kind = kinds.setdefault(first.name, Kind(first.name))
        kind.calls += 1
        kind.seconds += float(torch.tensor([call.seconds for call in calls], dtype=torch.float64).quantile(0.5))
        kind.flops += first.flops
        kind.moved += first.moved
    return sorted(kinds.values(), key=lambda kind: -kind.seconds)


def limits(device: str, repeats: int) -> tuple[float, float]:
    """The machine's ceiling in operations a second and its memory's speed in bytes a second."""
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    calls = [ceiling_product(device), lambda: target.copy_(source)]
    products, copies = interleaved([partial(timed_again, call, device) for call in calls], repeats, warmup=1)
    return product_flops(device) / sorted(products)[repeats // 2], 2 * COPIED / sorted(copies)[repeats // 2]


def profile_table(kinds: Sequence[Kind], ceiling: float, bandwidth: float) -> str:
    """The profile as a table to read."""
    total = Kind("all", *(sum(getattr(kind, key) for kind in kinds) for key in ("calls", "seconds", "flops", "moved")))
    cells = [("operator", "time", "share", "calls", "GFLOP", "MB", "FLOP/byte", "limit", "of limit")]
    for kind in (*kinds, total):
        least, bound = kind.limit(ceiling, bandwidth)
        if kind is total:  # whose limit is what its kinds need one after the other
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
    lines = align(cells, left=1)
    lines.append(
        f"limit: {ceiling / 1e9:.0f} GFLOP/s in a large float32 matrix product, {bandwidth / 1e9:.1f} GB/s in a large "
        "copy, both measured beside it; what fits the caches may beat the second."
    )
    return "\n".join(lines)
