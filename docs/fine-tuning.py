"""Compare fine-tuning with training from scratch on pictures of other classes: ``python docs/fine-tuning.py``.

The detector of ``make demo``, trained on discs, triangles, boxes and stars, is fine-tuned with ``--recipe finetune`` on
80 pictures of crosses, arrows, hexagons and crescents, and the same model is trained on them from scratch with the
demo's own schedule, scaled to as many steps. docs/fine-tuning.md has the results.

Finished runs are kept in ``work_dirs/fine-tuning``: the same command goes on after an interruption.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tabulate import tabulate
from trainings import last, last_checkpoint, spread, train_all

from mmcare.data.sample import OTHER_CLASSES, Recipe, overlay_sample, prepare
from mmcare.runs import get_config

CONFIG = "detection/retinanet_care_s1"
FOLDER = Path("work_dirs/fine-tuning")
IMAGES, BATCH, STEPS = 80, 8, 100
SEEDS = (0, 1, 2)
SCORES = ("coco/bbox_mAP", "coco/bbox_mAP_50")


def write_config() -> Path:
    """Make the pictures, and write the demo's config for them; return its path."""
    cfg = get_config(CONFIG)
    recipe = Recipe(seed=1, classes=OTHER_CLASSES, train_images=IMAGES)
    overlay_sample(cfg, prepare(FOLDER / "data", recipe))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.metainfo.classes = OTHER_CLASSES
    path = FOLDER / "other.py"
    cfg.dump(path)
    return path


def ways(detector: Path) -> dict[str, list[str]]:
    """Return the arguments of the two ways of training."""
    repeated = 50  # steps of an epoch of the recipe, which repeats the pictures
    epochs = STEPS * BATCH // IMAGES
    return {
        "fine-tuned": [
            "--recipe=finetune",
            "--cfg-options",
            f"load_from={detector}",
            f"train_cfg.max_epochs={STEPS // repeated}",
        ],
        "from scratch": [
            "--cfg-options",
            f"train_cfg.max_epochs={epochs}",
            f"train_cfg.val_interval={epochs}",
            f"default_hooks.checkpoint.interval={epochs}",
            f"param_scheduler.1.begin={STEPS // 3}",
            f"param_scheduler.1.end={STEPS}",
            f"param_scheduler.1.T_max={STEPS - STEPS // 3}",
        ],
    }


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    config = write_config()
    amp = sys.argv[1:]  # --amp, or nothing
    demo = FOLDER / "demo"
    train_all({demo: [CONFIG, "--sample", *amp]})
    runs = {
        way: {
            FOLDER / f"{way.replace(' ', '-')}-{seed}": [str(config), *amp, *args, f"randomness.seed={seed}"]
            for seed in SEEDS
        }
        for way, args in ways(last_checkpoint(demo)).items()
    }
    curves = train_all(dict(run for each in runs.values() for run in each.items()))
    assert all(max(run.loss) == STEPS for run in curves.values())
    rows = [
        (way, *(spread([last(curves[folder], score) for folder in folders]) for score in SCORES))
        for way, folders in runs.items()
    ]
    print(f"\n{IMAGES} pictures, {STEPS} steps of {BATCH}, {len(SEEDS)} seeds: mean (lowest to highest)\n")
    print(tabulate(rows, ("", "mAP", "mAP at IoU 0.5"), tablefmt="github"))


if __name__ == "__main__":
    main()
