"""Measure an exported file for runtime.md: ``python docs/runtime.py CONFIG CHECKPOINT FILE FOLDER``.

It predicts the pictures in a folder with the trained model and with the file, which has to be exported with
``--dynamic`` from the same two, and prints how far the results are apart, and the time that the Model takes for a
picture besides computing it. ``--sample`` reads the config as ``tools/train.py --sample`` does.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from mmcare import Predictor
from mmcare.inference import pictures_in
from mmcare.runs import load_config
from mmcare.runtime import Model, Result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("config", "checkpoint", "file", "folder"):
        parser.add_argument(name)
    parser.add_argument("--sample", action="store_true")
    args = parser.parse_args()
    cfg = load_config(args.config, ("model",), sample=args.sample)
    predictor, model = Predictor(cfg, args.checkpoint, device="cpu", fast=False), Model(args.file, threads=2)
    computing = _Clock(model.file.run)
    model.file.run = computing
    apart, around = [], []
    pictures = list(pictures_in(args.folder))
    for wanted in predictor(pictures):
        start = time.perf_counter()
        found = model(wanted.source)
        around.append(time.perf_counter() - start - computing.last)
        apart.append(compare(found, wanted))
    print(f"{len(pictures)} pictures")
    for name in apart[0]:
        values = [each[name] for each in apart]
        print(f"{name}: largest {max(values):.2g}, mean {statistics.mean(values):.2g}")
    print(f"reading, resizing and bringing back: median {1000 * statistics.median(around):.1f} ms a picture")


def compare(found: Result, wanted: Result) -> dict[str, float]:
    """Return how far the results for a picture are apart."""
    if wanted.label_map is not None:
        return {"share of pixels with another label": (found.label_map != wanted.label_map).mean()}
    distance = np.abs(found.boxes[:, None] - wanted.boxes).max(-1, initial=0)
    other = (np.abs(found.scores[:, None] - wanted.scores) > 1e-4) | (found.labels[:, None] != wanted.labels)
    distance[other] = np.inf  # detections of equal scores may change places
    partners = distance.argmin(1)
    result = {
        "detections without a partner": float(
            np.isinf(distance.min(1)).sum() + abs(len(found.boxes) - len(wanted.boxes))
        ),
        "pixels between boxes": float(distance.min(1).max(initial=0, where=np.isfinite(distance.min(1)))),
    }
    if wanted.masks is not None:
        result["share of mask pixels"] = (found.masks != wanted.masks[partners]).sum() / max(wanted.masks.sum(), 1)
    return result


class _Clock:
    """A call that keeps the time that it took."""

    def __init__(self, call) -> None:
        self._call, self.last = call, 0.0

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        start = time.perf_counter()
        try:
            return self._call(images)
        finally:
            self.last = time.perf_counter() - start


if __name__ == "__main__":
    main()
