"""Compare three ways to store activations for the backward pass on all networks: ``python docs/checkpointing.py``.

They are: storing everything; chains (mmcare/memory); and torch's selective checkpointing, which stores the outputs of
dense convolutions and recomputes the rest of each block. docs/training-memory.md has the conclusions.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import numpy as np
import torch
from mmengine.registry import MODELS
from mmengine.utils import ProgressBar
from tabulate import tabulate
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from mmcare import keep_freed_memory
from mmcare.benchmark.measuring import machine
from mmcare.benchmark.timing import interleaved, timed_again
from mmcare.memory import Chain, keep_everything

NETWORKS = [("CARE", arch) for arch in ("s0", "s1", "s2")] + [("CASViT", arch) for arch in ("xs", "s", "m", "t")]
SIDE = 512
ROUNDS = 3


class Selective(nn.Module):
    """A block under torch's selective checkpointing."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        contexts = partial(create_selective_checkpoint_contexts, policy)
        settings = dict(use_reentrant=False, preserve_rng_state=False, determinism_check="none")
        return checkpoint(self.block, x, context_fn=contexts, **settings)


@contextmanager
def plain_chains() -> Iterator[None]:
    """Return a context in which chains only run their layers, with everything else as in training."""
    forward, Chain.forward = Chain.forward, nn.Sequential.forward
    try:
        yield
    finally:
        Chain.forward = forward


def policy(context: object, operator: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    """Store the outputs of dense convolutions; the last argument of a convolution is the number of groups."""
    dense = operator is torch.ops.aten.convolution.default and args[8] == 1
    return CheckpointPolicy.MUST_SAVE if dense else CheckpointPolicy.PREFER_RECOMPUTE


def build(family: str, arch: str, selective: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS.build(dict(type=f"mmcare.{family}", arch=arch)).train()
    for stage in model.stages if selective else ():
        stage.blocks = nn.ModuleList(map(Selective, stage.blocks))
    return model


def step(model: nn.Module, images: Tensor, bf16: bool, context: Callable = nullcontext) -> None:
    with context():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            maps = model(images)
        torch.autograd.backward(maps, [torch.ones_like(feature) for feature in maps])
    model.zero_grad(set_to_none=True)


def kept(model: nn.Module, images: Tensor, context: Callable = nullcontext) -> float:
    """Return the MiB that a forward pass leaves allocated, including its outputs."""
    with context(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        maps = model(images)
    events = (event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]")
    found = sum(event.nbytes() for event in events) / 2**20
    del maps
    return found


def main() -> None:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    keep_freed_memory()
    images = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    progress = ProgressBar(len(NETWORKS), file=sys.stderr)
    rows = []
    for family, arch in NETWORKS:
        model, selective = build(family, arch), build(family, arch, selective=True)
        ways = {
            "everything": (model, keep_everything),
            "chains": (model, nullcontext),
            "selective": (selective, plain_chains),
        }
        memory = {name: kept(network, images, context) for name, (network, context) in ways.items()}
        calls = {
            (name, bf16): partial(step, network, images, bf16, context)
            for name, (network, context) in ways.items()
            for bf16 in (False, True)
        }
        seconds = interleaved([partial(timed_again, call, "cpu") for call in calls.values()], ROUNDS, warmup=1)
        medians = dict(zip(calls, (float(np.median(own)) for own in seconds), strict=True))
        for name in ways:
            against = [medians["chains", bf16] / medians[name, bf16] for bf16 in (False, True)]
            times = (f"{medians[name, bf16] * 1e3:.0f} ms, {ratio:.2f}×" for bf16, ratio in enumerate(against))
            label = "" if name != "everything" else f"{family} {arch}"
            rows.append((label, name, f"{memory[name]:.0f} MiB", *times))
        progress.update()
    print(f"\n{machine('cpu')}, {SIDE}×{SIDE}, {ROUNDS} rounds; speeds are relative to chains\n")
    print(tabulate(rows, ("network", "kept", "memory", "step", "step with --amp"), tablefmt="github"))


if __name__ == "__main__":
    main()
