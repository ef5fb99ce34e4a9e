"""Measurement of steps: interleaved timing, and memory and output differences."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .memory import kept_for_backward, peak_memory, report_out_of_memory
from .steps import Step

PRODUCT = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices whose float32 product gives a device's ceiling; large enough to be compute-bound."""


def ceiling_product(device: str) -> Callable[[], None]:
    """Return a function that computes a large float32 matrix product, with :func:`product_flops` operations."""
    side = PRODUCT[device]
    left, right = (torch.randn(side, side, device=device) for _ in range(2))  # zeros and ones use less power
    out = torch.empty(side, side, device=device)

    def product() -> None:
        torch.mm(left, right, out=out)

    return product


def product_flops(device: str) -> int:
    """Return the additions and multiplications of :func:`ceiling_product`."""
    return 2 * PRODUCT[device] ** 3


def timed(call: Callable[[], None], device: str) -> float:
    """Return the time of one call in seconds."""
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
    """Return the time of a call in seconds, after an untimed call that brings the weights into the caches."""
    call()
    return timed(call, device)


def interleaved(
    clocks: Sequence[Callable[[], float]],
    repeats: int,
    warmup: int,
    after_round: Callable[[], None] = lambda: None,
) -> list[list[float]]:
    """Time several calls round by round, so that a temporary slowdown of the machine affects all of them.

    The order changes from round to round.

    Args:
        clocks: functions that run a call and return its time in seconds; see :func:`timed_again`.
        repeats: number of timed rounds.
        warmup: number of untimed rounds before them.
        after_round: called after each timed round.

    Returns:
        A list of ``repeats`` times in seconds for each clock.
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
    """Measurements that do not vary from call to call.

    Attributes:
        peak: see :func:`peak_memory`.
        kept: see :func:`kept_for_backward`; None in inference.
        difference: see :func:`relative_difference`; None for the form that the others are compared with.
    """

    peak: int
    kept: int | None
    difference: float | None


def examine(step: Step, reference: Sequence[Tensor] | None) -> tuple[Findings, list[Tensor]]:
    """Measure everything of a step except its time.

    Args:
        step: the step.
        reference: maps to compare its maps with, if any.

    Returns:
        The findings, and the step's maps in float32.

    Raises:
        UserError: there is not enough memory.
    """
    with report_out_of_memory(step.case):
        outputs = [output.detach().float().cpu() for output in step.forward()]
        difference = None if reference is None else relative_difference(outputs, reference)
        step()
        # Replaying a CUDA graph allocates nothing, but recording it does.
        peak = peak_memory(step.prepare_run if "cuda-graph" in step.steps else step, step.case.device)
        kept = kept_for_backward(step.forward, step.model) if step.case.training else None
    return Findings(peak, kept, difference), outputs
