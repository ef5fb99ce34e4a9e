"""Train the ablations of both networks on the detection sample data: ``python docs/ablations.py``.

RetinaNet is trained from scratch with ``--sample`` on CARE s0 and CAS-ViT xs, whole and with each ablation, with the
same seeds. docs/ablations.md has the results.

``--folder`` keeps the finished runs: the same command goes on after an interruption. Other options are those of
``mmcare train``, such as ``--amp``.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from mmengine.utils import ProgressBar
from tabulate import tabulate

from mmcare.benchmark import count, resolve
from mmcare.models import care_ablations, casvit_ablations
from mmcare.runs import read_curves

CONFIGS = {"CARE:s0": "detection/retinanet_care_s0", "CASViT:xs": "detection/retinanet_casvit_xs"}
ABLATIONS = {"CARE:s0": care_ablations.ABLATIONS, "CASViT:xs": casvit_ablations.ABLATIONS}
SCORE = "coco/bbox_mAP"
SIDE = 224
"""Height and width of the image for which MACs are counted."""


def ways(network: str) -> dict[str, tuple[str, list[str]]]:
    """Return the whole network and its ablations: for each the benchmark's name of it, and settings of the config."""
    family, _, arch = network.partition(":")
    return {"whole": (f"mmcare.{network}", [])} | {
        ablation: (
            f"mmcare.{family}Ablation:{arch},ablation={ablation}",
            [f"model.backbone.type=mmcare.{family}Ablation", f"model.backbone.ablation={ablation}"],
        )
        for ablation in ABLATIONS[network]
    }


def train(folder: Path, config: str, settings: Sequence[str], options: Sequence[str]) -> float:
    """Run ``mmcare train`` unless the run in this folder is complete; return the last mAP."""
    arguments = [config, "--sample", *options, "--cfg-options", *settings]
    complete = folder / "complete"
    if complete.exists() and complete.read_text() != shlex.join(arguments):
        sys.exit(f"error: {folder} was trained with other options ({complete.read_text()}): give another --folder")
    if not complete.exists():
        resume = ["--resume"] if [*folder.glob("*.pth")] else []
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "mmcare", "train", *arguments, "--work-dir", str(folder), *resume]
        with (folder / "output.log").open("a") as log:
            subprocess.run(command, stdout=log, stderr=log, check=True)
        complete.write_text(shlex.join(arguments))
    scores = read_curves(folder).metric(SCORE)
    return scores[max(scores)] if scores else 0.0  # MMDetection logs no metric where nothing was detected


def compare(network: str, seeds: int, folder: Path, options: Sequence[str], progress: ProgressBar) -> list[tuple]:
    """Train a network, whole and with each ablation; return the rows of its table."""
    rows, whole = [], None
    for name, (subject, settings) in ways(network).items():
        scores = []
        for seed in range(seeds):
            run = folder / f"{network.replace(':', '-')}-{name}-{seed}"
            scores.append(train(run, CONFIGS[network], [*settings, f"randomness.seed={seed}"], options))
            progress.update()
        whole = whole or scores
        differences = [score - other for score, other in zip(scores, whole, strict=True)]
        [(_, parameters, macs)] = count(resolve(subject).model, SIDE, SIDE)
        difference = _spread(differences, "+.3f") if settings else ""
        rows.append((name, f"{parameters / 1e6:.2f} M", f"{macs / 1e9:.3f}", _spread(scores, ".3f"), difference))
    return rows


def _spread(values: Sequence[float], form: str) -> str:
    return f"{mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    parser = ArgumentParser(description="Train the ablations of both networks on the detection sample data.")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds for each network (default: 3)")
    parser.add_argument("--networks", nargs="+", choices=CONFIGS, default=list(CONFIGS), help="default: both")
    parser.add_argument("--folder", type=Path, default=Path("work_dirs/ablations"), help="where the runs are kept")
    args, options = parser.parse_known_args()
    progress = ProgressBar(args.seeds * sum(len(ways(network)) for network in args.networks), file=sys.stderr)
    tables = []
    for network in args.networks:
        rows = compare(network, args.seeds, args.folder, options, progress)
        headers = (network, "params", f"GMACs at {SIDE}²", "mAP", "difference, seed by seed")
        tables.append(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    print(f"\n{args.seeds} seeds: mean (lowest to highest)\n")
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
