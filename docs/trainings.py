"""Training many models for a table. The scripts beside this file import it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

from mmengine.utils import ProgressBar

from mmcare.runs import Curves, read_curves


def train_all(runs: Mapping[Path, Sequence[str]], jobs: int = 1) -> dict[Path, Curves]:
    """Run ``mmcare train`` in each folder with its arguments, so many at a time, unless the run there is complete."""
    for folder, arguments in runs.items():
        complete = folder / "complete"
        if complete.exists() and complete.read_text() != shlex.join(arguments):
            sys.exit(f"error: {folder} was trained with other options ({complete.read_text()}): give another --folder")
    progress = ProgressBar(len(runs), file=sys.stderr)
    with ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(_train, runs, runs.values()):
            progress.update()
    return {folder: read_curves(folder) for folder in runs}


def _train(folder: Path, arguments: Sequence[str]) -> None:
    if (folder / "complete").exists():
        return
    resume = ["--resume"] if [*folder.glob("*.pth")] else []
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mmcare", "train", *arguments, "--work-dir", str(folder), *resume]
    with (folder / "output.log").open("a") as log:
        subprocess.run(command, stdout=log, stderr=log, check=True)
    (folder / "complete").write_text(shlex.join(arguments))


def last(curves: Curves, metric: str) -> float:
    """Return a metric at the end of a training. MMDetection logs no mAP where nothing was detected: it is 0."""
    return curves.metrics[max(curves.metrics)].get(metric, 0.0) if curves.metrics else 0.0


def last_checkpoint(folder: Path) -> Path:
    """Return the path of the checkpoint at the end of a training."""
    return folder / Path((folder / "last_checkpoint").read_text()).name


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """Return the mean of some values, the lowest and the highest."""
    return f"{mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"
