"""Compare fine-tuning with training from scratch on pictures of other classes: ``python docs/fine-tuning.py``.

The detector of ``make demo``, trained on discs, triangles, boxes and stars, is fine-tuned with ``--recipe finetune`` on
80 pictures of crosses, arrows, hexagons and crescents, and the same model is trained on them from scratch with the
demo's own schedule, scaled to as many steps. docs/fine-tuning.md has the results.

Finished runs are kept in ``work_dirs/fine-tuning``: the same command goes on after an interruption.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import mean

from mmengine.utils import ProgressBar
from tabulate import tabulate

from mmcare.data.sample import OTHER_CLASSES, Recipe, overlay_sample, prepare
from mmcare.runs import get_config, read_curves

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


def train(name: str, *args: object) -> Path:
    """Run ``mmcare train`` unless the run of this name is complete; return its work folder."""
    folder = FOLDER / name
    if not (folder / "complete").exists():
        resume = ["--resume"] if [*folder.glob("*.pth")] else []
        command = [sys.executable, "-m", "mmcare", "train", *map(str, args), "--work-dir", str(folder), *resume]
        with (FOLDER / f"{name}.log").open("a") as log:
            subprocess.run(command, stdout=log, stderr=log, check=True)
        (folder / "complete").touch()
    return folder


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
    progress = ProgressBar(1 + 2 * len(SEEDS), file=sys.stderr)
    demo = train("demo", CONFIG, "--sample", *amp)
    progress.update()
    rows = []
    for way, args in ways(Path((demo / "last_checkpoint").read_text())).items():
        runs = []
        for seed in SEEDS:
            folder = train(f"{way.replace(' ', '-')}-{seed}", config, *amp, *args, f"randomness.seed={seed}")
            curves = read_curves(folder)
            assert max(curves.loss) == STEPS
            runs.append(curves.metrics[max(curves.metrics)])
            progress.update()
        rows.append((way, *(_spread([run.get(score, 0.0) for run in runs]) for score in SCORES)))
    print(f"\n{IMAGES} pictures, {STEPS} steps of {BATCH}, {len(SEEDS)} seeds: mean (lowest to highest)\n")
    print(tabulate(rows, ("", "mAP", "mAP at IoU 0.5"), tablefmt="github"))


def _spread(values: list[float]) -> str:
    return f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
