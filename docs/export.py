"""Time the forms of a backbone in onnxruntime: ``python docs/export.py CONFIG … [--shape 512] [--threads 2]``.

Each form and opset is a file of its own. One session is open at a time, as the threads of others would spin; sessions
take turns.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from statistics import median

import numpy as np
import onnxruntime
import torch
from mmengine.model import initialize
from mmengine.registry import MODELS, DefaultScope

import mmcare
from mmcare.export import check_options
from mmcare.export.preparation import INPUT, prepare

FORMS = ("plain", "fast")
OPSETS = (18, 20)
CALLS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="+", help="names that mmcare --help lists")
    parser.add_argument("--shape", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    image = np.random.RandomState(0).rand(1, 3, args.shape, args.shape).astype(np.float32) * 255
    for config in args.configs:
        files = dict(convert(config, args.shape))
        times = defaultdict(list)
        for _ in range(args.rounds):
            for name, content in files.items():
                times[name] += run(content, image, args.threads)
        for name, seconds in times.items():
            print(f"{config}, {name}: {1e3 * min(seconds):.1f} ms at least, median {1e3 * median(seconds):.1f} ms")


def convert(config: str, side: int) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the file of each form and opset, with random weights."""
    target = check_options("onnx", "backbone", None)
    for opset in OPSETS:
        for form in FORMS:
            prepared = prepare(build(config), "detection", "backbone", form, (side, side))
            yield f"{form}, opset {opset}", target.load().convert(prepared, opset)


def build(config: str) -> torch.nn.Module:
    """Return the model of a config, with random weights."""
    cfg = mmcare.get_config(config)
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    initialize(model.backbone, model.backbone.init_cfg)
    return model


def run(content: bytes, image: np.ndarray, threads: int) -> list[float]:
    """Return the times of some calls after a first one, in seconds."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    seconds = []
    for _ in range(CALLS + 1):
        start = time.perf_counter()
        session.run(None, {INPUT: image})
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


if __name__ == "__main__":
    main()
