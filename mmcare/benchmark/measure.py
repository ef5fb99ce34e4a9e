"""What is measured of steps: the time of all of them side by side, and what else there is to know of each."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .memory import kept_for_backward, memory_errors_told, peak_memory
from .subjects import Step

PRODUCT = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices whose float32 product gives a device's ceiling: far more work than traffic."""


def ceiling_product(device: str) -> Callable[[], None]:
    """A large float32 matrix product, whose operations are :func:`product_flops`."""
    side = PRODUCT[device]
    left, right = (torch.ones(side, side, device=device) for _ in range(2))
    out = torch.empty(side, side, device=device)

    def product() -> None:
        torch.mm(left, right, out=out)

    return product


def product_flops(device: str) -> int:
    """The additions and multiplications of :func:`ceiling_product`."""
    return 2 * PRODUCT[device] ** 3


def timed(call: Callable[[], None], device: str) -> float:
    """Seconds that one call takes."""
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


def interleaved(
    calls: Sequence[Callable[[], None]],
    device: str,
    repeats: int,
    warmup: int,
    after_round: Callable[[], None] = lambda: None,
) -> list[list[float]]:
    """Times calls round by round, so that whatever slows the machine down for a while slows all of them.

    Each round takes the calls in another order, and each call right after an untimed one of its own, which brings its
    weights into the caches as in a stream of images.

    Args:
        calls: to be timed.
        device: ``"cpu"`` or ``"cuda"``.
        repeats: rounds, and so times of each.
        warmup: untimed calls of each before the first round.
        after_round: called after each round.

    Returns:
        Each call's seconds, a list of ``repeats``.
    """
    for call in calls:
        for _ in range(warmup):
            call()
    order = list(range(len(calls)))
    shuffle = random.Random(0).shuffle
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        shuffle(order)
        for i in order:
            calls[i]()
            seconds[i].append(timed(calls[i], device))
        after_round()
    return seconds


def relative_difference(outputs: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The largest ‖a − b‖ / ‖b‖ of the maps."""
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


def examine(steps: Iterable[Step], tell: Callable[[str], None]) -> Iterator[tuple[Step, Findings]]:
    """Runs each step for the first time, which compiles what is to be compiled, and measures all but its time.

    Args:
        steps: :func:`~mmcare.benchmark.subjects.plan`'s; the maps of the first of a subject's forms at a size are what
            the other forms' are compared with.
        tell: is told which step is being examined.

    Raises:
        UserError: there is not enough memory.
    """
    compared: tuple[object, ...] | None = None
    reference: list[Tensor] = []
    for step in steps:
        tell(str(step))
        with memory_errors_told(step):
            outputs = [output.detach().float() for output in step.forward()]
            same = (step.subject.name, step.part, step.shape)
            difference = relative_difference(outputs, reference) if same == compared else None
            if same != compared:
                compared, reference = same, outputs
            step()
            # The replay of a CUDA graph allocates nothing: its recording does.
            peak = peak_memory(step.prepare_run if "cuda-graph" in step.steps else step, step.device)
            kept = kept_for_backward(step.forward, step.model) if step.training else None
        yield step, Findings(peak, kept, difference)
