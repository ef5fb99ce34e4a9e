"""Train the ablations of both networks on the sample data: ``python docs/ablations.py``.

CARE s0 and CAS-ViT xs, whole and with each ablation, are trained from scratch with ``--sample`` and the same seeds, as
classifiers and as backbones of RetinaNet. docs/ablations.md has the results.

``--folder`` keeps the finished runs: the same command goes on after an interruption. Other options are those of
``mmcare train``, such as ``--amp``.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate
from trainings import last, spread, train_all

from mmcare.benchmark import count, resolve
from mmcare.models import care_ablations, casvit_ablations

ABLATIONS = {"CARE:s0": care_ablations.ABLATIONS, "CASViT:xs": casvit_ablations.ABLATIONS}
CONFIGS = {
    "classification": {"CARE:s0": "classification/care_s0", "CASViT:xs": "classification/casvit_xs"},
    "detection": {"CARE:s0": "detection/retinanet_care_s0", "CASViT:xs": "detection/retinanet_casvit_xs"},
}
METRICS = {"classification": ("top-1", "accuracy/top1", ".1f"), "detection": ("mAP", "coco/bbox_mAP", ".3f")}
"""What the table calls the metric of each task, what the log calls it, and how it is written."""
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


def run(folder: Path, task: str, network: str, way: str, seed: int, options: Sequence[str]) -> tuple[Path, list[str]]:
    """Return the folder of a training, and its arguments."""
    _, settings = ways(network)[way]
    arguments = [CONFIGS[task][network], "--sample", *options, "--cfg-options", *settings, f"randomness.seed={seed}"]
    return folder / f"{task}-{network.replace(':', '-')}-{way}-{seed}", arguments


def table(task: str, network: str, scores: dict[str, list[float]]) -> str:
    """Return a table of the scores of each way, one for each seed."""
    name, _, form = METRICS[task]
    rows = []
    for way, (subject, settings) in ways(network).items():
        differences = [score - other for score, other in zip(scores[way], scores["whole"], strict=True)]
        [(_, parameters, macs)] = count(resolve(subject).model, SIDE, SIDE)
        difference = spread(differences, f"+{form}") if settings else ""
        rows.append((way, f"{parameters / 1e6:.2f} M", f"{macs / 1e9:.3f}", spread(scores[way], form), difference))
    headers = (network, "params", f"GMACs at {SIDE}²", name, "difference, seed by seed")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = ArgumentParser(description="Train the ablations of both networks on the sample data.")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds for each network (default: 3)")
    parser.add_argument("--tasks", nargs="+", choices=CONFIGS, default=list(CONFIGS), help="default: both")
    parser.add_argument("--networks", nargs="+", choices=ABLATIONS, default=list(ABLATIONS), help="default: both")
    parser.add_argument("--folder", type=Path, default=Path("work_dirs/ablations"), help="where the runs are kept")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (default: 1)")
    args, options = parser.parse_known_args()
    tables = [(task, network) for task in args.tasks for network in args.networks]
    runs = {
        (task, network, way, seed): run(args.folder, task, network, way, seed, options)
        for seed in range(args.seeds)  # so that one seed is complete before the next
        for task, network in tables
        for way in ways(network)
    }
    curves = train_all(dict(runs.values()), args.jobs)
    print(f"\n{args.seeds} seeds: mean (lowest to highest)")
    for task, network in tables:
        _, metric, _ = METRICS[task]
        scores = defaultdict(list)
        for (of, name, way, _), (folder, _) in runs.items():
            if (of, name) == (task, network):
                scores[way].append(last(curves[folder], metric))
        print(f"\n{table(task, network, scores)}")


if __name__ == "__main__":
    main()
