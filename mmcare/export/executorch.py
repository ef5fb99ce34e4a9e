"""The target ExecuTorch: a .pte file for images of one size, whose network is computed by XNNPACK.

What XNNPACK lacks splits the graph into several programs, and at every border a map is turned from NCHW to NHWC or
back. So operations that it lacks are first written as others, exactly; a backbone is then one program. Non-maximum
suppression is a loop in the file.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from . import portable
from .decoding import DROPPED, gather
from .preparation import Prepared

try:  # torch's one way to a loop of a fixed number of rounds; it is not public yet
    from torch._higher_order_ops.scan import scan
except ImportError:
    scan = None


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what torch, torchao and ExecuTorch tell their developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


with quiet():  # torchao warns that its CUDA libraries cannot be loaded
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.config.generic_node_configs import EluConfig
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    try:  # the one way to read a file without running it; it is not public
        from executorch.exir._serialize._program import deserialize_pte_binary
    except ImportError:
        deserialize_pte_binary = None

aten = torch.ops.aten


def convert(prepared: Prepared, opset: None) -> bytes:
    """Return the content of a .pte file."""
    return lower(capture(prepared))


def capture(prepared: Prepared) -> ExportedProgram:
    """Return the graph of a model, in operations that XNNPACK has where possible."""
    for module in prepared.module.modules():
        if scan and getattr(module, "keep", None) is portable.keep:
            module.keep = keep
    with torch.no_grad(), quiet():
        program = torch.export.export(prepared.module, (prepared.images,), strict=False)
        return program.run_decompositions(dict(DECOMPOSITIONS))


def lower(program: ExportedProgram) -> bytes:
    """Return the content of the .pte file of a graph."""
    with torch.no_grad(), quiet():
        # ExecuTorch leaves out ELU until a release of torch that is out now.
        partitioner = XnnpackPartitioner(configs=[*ALL_PARTITIONER_CONFIGS, EluConfig])
        return to_edge_transform_and_lower(program, partitioner=[partitioner]).to_executorch().buffer


def operators(content: bytes) -> dict[str, int]:
    """Return how often a file calls each operator, and XNNPACK's programs."""
    if deserialize_pte_binary is None:
        return {}
    (plan,) = deserialize_pte_binary(content).program.execution_plan
    calls = Counter()
    for instruction in (step.instr_args for chain in plan.chains for step in chain.instructions):
        if hasattr(instruction, "op_index"):
            called = plan.operators[instruction.op_index]
            calls[f"{called.name}.{called.overload}".rstrip(".")] += 1
        elif hasattr(instruction, "delegate_index"):
            calls[plan.delegates[instruction.delegate_index].id] += 1
    return dict(sorted(calls.items()))


def keep(boxes: Tensor, scores: Tensor, most: int, iou: float) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression as :func:`.portable.keep`, one box after another in a loop."""
    numbers = torch.arange(scores.shape[1], device=scores.device)

    def step(left: Tensor, _: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        number = left.argmax(1, keepdim=True)
        over = portable.overlap(gather(boxes, number), boxes, iou).squeeze(1)
        kept = (left.gather(1, number).squeeze(1), number.squeeze(1))
        return torch.where(over | (numbers == number), DROPPED, left), kept

    _, (best, chosen) = scan(step, scores, scores.new_zeros(most))
    return best.transpose(0, 1), chosen.transpose(0, 1)


# -- operations as others that XNNPACK has -----------------------------------------------------------------------------
#
# A function returns NotImplemented for arguments with which the operation stays.


def _split_with_sizes(x: Tensor, sizes: Sequence[int], dim: int = 0) -> list[Tensor]:
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return [aten.slice.Tensor(x, dim, end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _split(x: Tensor, size: int, dim: int = 0) -> list[Tensor]:
    whole = x.shape[dim]
    return _split_with_sizes(x, [min(size, whole - start) for start in range(0, whole, size)], dim)


def _chunk(x: Tensor, count: int, dim: int = 0) -> list[Tensor]:
    return _split(x, -(-x.shape[dim] // count), dim)


def _slice(x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Tensor:
    whole = not start and (end is None or end >= x.shape[dim]) and step == 1
    return x if whole else NotImplemented


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Without the expansion to a common batch, where both have the same."""
    if a.dim() != b.dim() or a.dim() < 3 or a.shape[:-2] != b.shape[:-2]:
        return NotImplemented
    product = aten.bmm.default(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]))
    return product.reshape(*a.shape[:-1], b.shape[-1])


def _mean(x: Tensor, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    """XNNPACK averages maps only: a mean of rows (A, B, C, D) as one of maps (A · B, C, 1, D)."""
    if x.dim() != 4 or [axis % 4 for axis in dim or ()] != [3] or not keepdim or dtype:
        return NotImplemented
    rows = x.reshape(x.shape[0] * x.shape[1], x.shape[2], 1, x.shape[3])
    return aten.mean.dim(rows, (2, 3), True).reshape(*x.shape[:3], 1)


def _to(x: Tensor, dtype: torch.dtype | None = None, *_: Any, **__: Any) -> Tensor:
    return x if dtype in (None, x.dtype) else NotImplemented


DECOMPOSITIONS: dict[Any, Callable] = {
    aten._to_copy.default: _to,
    aten.alias.default: lambda x: x,
    aten.chunk.default: _chunk,
    aten.matmul.default: _matmul,
    aten.mean.dim: _mean,
    aten.slice.Tensor: _slice,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split_with_sizes,
    aten.to.dtype: _to,
}
