"""Compare detectors that start from a classifier with detectors from scratch: ``python docs/pretraining.py``.

A classifier is trained on crops of the sample data's objects; RetinaNet starts from its checkpoint, by its path alone,
and another from random weights, with the same seed and steps. docs/classification.md has the results.

``--folder`` keeps the finished runs: the same command goes on after an interruption. It is the folder of
docs/ablations.py, which trains the same classifiers and detectors from scratch. Other options are those of
``mmcare train``, such as ``--amp``.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from ablations import CONFIGS, METRICS, run
from tabulate import tabulate
from trainings import last, last_checkpoint, spread, train_all

from mmcare.runs import Curves


def pretrained(folder: Path, network: str, seed: int, options: Sequence[str]) -> tuple[Path, list[str]]:
    """Return the folder of the training of a detector that starts from the classifier, and its arguments."""
    classifier, _ = run(folder, "classification", network, "whole", seed, options)
    scratch, arguments = run(folder, "detection", network, "whole", seed, options)
    start = "model.backbone.init_cfg"
    settings = [
        f"{start}._delete_=True",
        f"{start}.type=Pretrained",
        f"{start}.checkpoint={last_checkpoint(classifier)}",
    ]
    return scratch.with_name(scratch.name.replace("whole", "pretrained")), [*arguments, *settings]


def main() -> None:
    parser = ArgumentParser(description="Compare detectors that start from a classifier with detectors from scratch.")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds for each network (default: 3)")
    parser.add_argument("--networks", nargs="+", choices=CONFIGS["detection"], default=list(CONFIGS["detection"]))
    parser.add_argument("--folder", type=Path, default=Path("work_dirs/ablations"), help="where the runs are kept")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (default: 1)")
    args, options = parser.parse_known_args()
    each = [(network, seed) for network in args.networks for seed in range(args.seeds)]
    wholes = {
        task: [run(args.folder, task, network, "whole", seed, options) for network, seed in each] for task in CONFIGS
    }
    curves: dict[Path, Curves] = train_all(dict(wholes["classification"] + wholes["detection"]), args.jobs)
    starts = [pretrained(args.folder, network, seed, options) for network, seed in each]
    curves |= train_all(dict(starts), args.jobs)

    def scores(task: str, runs: Sequence[tuple[Path, list[str]]], network: str) -> list[float]:
        _, metric, _ = METRICS[task]
        return [last(curves[folder], metric) for (folder, _), (of, _) in zip(runs, each, strict=True) if of == network]

    rows = []
    for network in args.networks:
        top1 = scores("classification", wholes["classification"], network)
        scratch, started = (scores("detection", runs, network) for runs in (wholes["detection"], starts))
        gains = [score - other for score, other in zip(started, scratch, strict=True)]
        rows.append((network, spread(top1, ".1f"), spread(scratch), spread(started), spread(gains, "+.3f")))
    headers = (
        "backbone",
        "top-1 of the classifier",
        "mAP from scratch",
        "mAP from the classifier",
        "gain, seed by seed",
    )
    print(f"\n{args.seeds} seeds: mean (lowest to highest)\n")
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
