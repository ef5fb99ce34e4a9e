"""What is measured of steps: the time of all of them side by side, and what else there is to know of each."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .memory import kept_for_backward, memory_errors_told, peak_memory
from .steps import Step

PRODUCT = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices whose float32 product gives a device's ceiling: far more work than traffic."""


def ceiling_product(device: str) -> Callable[[], None]:
    """Return a large float32 matrix product to call, whose operations are :func:`product_flops`."""
    side = PRODUCT[device]
    left, right = (torch.ones(side, side, device=device) for _ in range(2))
    out = torch.empty(side, side, device=device)

    def product() -> None:
        torch.mm(left, right, out=out)

    return product


def product_flops(device: str) -> int:
    """Return the additions and multiplications of :func:`ceiling_product`."""
    return 2 * PRODUCT[device] ** 3


def timed(call: Callable[[], None], device: str) -> float:
    """Return the seconds that one call takes."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def timed_again(call: Callable[[], None], device: str) -> float:
    """Return the seconds of a call after an untimed one, which brings its weights into the caches."""
    call()
    return timed(call, device)


def interleaved(
    clocks: Sequence[Callable[[], float]],
    repeats: int,
    warmup: int,
    after_round: Callable[[], None] = lambda: None,
) -> list[list[float]]:
    """Time calls that are to be compared round by round, so that what slows the machine for a while slows all of them.

    Each round takes them in another order.

    Args:
        clocks: each calls what is to be timed and returns the seconds; see :func:`timed_again`.
        repeats: rounds, and so times of each.
        warmup: rounds before those, which do not count.
        after_round: called after each round that counts.

    Returns:
        Each one's seconds, a list of ``repeats``.
    """
    order = list(range(len(clocks)))
    shuffle = random.Random(0).shuffle
    seconds: list[list[float]] = [[] for _ in clocks]
    for index in range(-warmup, repeats):
        shuffle(order)
        for i in order:
            seconds[i].append(clocks[i]())
        if index >= 0:
            after_round()
    return [own[warmup:] for own in seconds]


def relative_difference(outputs: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Return the largest ‖a − b‖ / ‖b‖ of the maps."""
    pairs = zip(outputs, reference, strict=True)
    return max(float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-300)) for a, b in pairs)


@dataclass(frozen=True)
class Findings:
    """What does not vary from call to call.

    Attributes:
        peak: see :func:`peak_memory`.
        kept: see :func:`kept_for_backward`; None in inference.
        difference: see :func:`relative_difference`; None of the form that the others are compared with.
    """

    peak: int
    kept: int | None
    difference: float | None


def examine(step: Step, reference: Sequence[Tensor] | None) -> tuple[Findings, list[Tensor]]:
    """Measure all of a step but its time.

    Args:
        step: what to run.
        reference: the maps to compare its maps with, if any.

    Returns:
        What does not vary from call to call, and the maps in float32.

    Raises:
        UserError: there is not enough memory.
    """
    with memory_errors_told(step.case):
        outputs = [output.detach().float().cpu() for output in step.forward()]
        difference = None if reference is None else relative_difference(outputs, reference)
        step()
        # The replay of a CUDA graph allocates nothing: its recording does.
        peak = peak_memory(step.prepare_run if "cuda-graph" in step.steps else step, step.case.device)
        kept = kept_for_backward(step.forward, step.model) if step.case.training else None
    return Findings(peak, kept, difference), outputs
