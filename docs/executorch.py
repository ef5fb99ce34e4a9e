"""Time the forms of a backbone in ExecuTorch: ``python docs/executorch.py CONFIG … [--shape 512] [--threads 2]``.

All files are in one process, as the runtime's threads sleep between calls, and take turns. PyTorch's plain form is
timed beside them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from export import build

from mmcare.export.executorch import convert, operators
from mmcare.export.preparation import prepare
from mmcare.runtime import load_executorch

FORMS = ("plain", "folded", "fast-contiguous")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="+", help="names that mmcare --help lists")
    parser.add_argument("--shape", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--forms", nargs="+", default=FORMS, help="of mmcare.export.forms")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for config in args.configs:
        calls: dict[str, Callable[[], Any]] = {}
        for form in args.forms:
            prepared = prepare(build(config), "detection", "backbone", form, (args.shape, args.shape))
            content = convert(prepared, None)
            program = load_executorch(content, args.threads)
            name = f"{form}, {len(content) / 2**20:.1f} MiB, {operators(content).get('XnnpackBackend', 0)} programs"
            calls[name] = partial(program.load_method("forward").execute, (prepared.images,))
        plain = prepare(build(config), "detection", "backbone", "plain", (args.shape, args.shape))
        calls["PyTorch"] = partial(plain.module, plain.images)
        for name, seconds in measure(calls, args.rounds).items():
            print(f"{config}, {name}: {1e3 * min(seconds):.1f} ms at least, median {1e3 * median(seconds):.1f} ms")


def measure(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the times of some calls of each in turn, after a first one, in seconds."""
    times = {name: [] for name in calls}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if number:
                    times[name].append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main()
