"""docs/fine-tuning.md, followed to the letter."""

import json
import re
import shlex
import shutil
import textwrap
from glob import glob
from itertools import chain
from pathlib import Path

import pytest
from helpers import DETECTOR, IN_PROCESS, ROOT, run_tool, succeed

from mmcare.checkpoints import read_checkpoint
from mmcare.data.sample import Recipe, prepare

FEW = [
    *IN_PROCESS,
    *(f"{split}_dataloader.dataset.indices=4" for split in ("train", "val", "test")),
    "train_cfg.max_epochs=1",
    "train_cfg.val_interval=1",
    "default_hooks.checkpoint.interval=1",
    "train_dataloader.batch_size=2",
]
SHORT = ["--cfg-options", "train_cfg.max_epochs=1"]
"""Options for a short fine-tuning, all that a test adds to the commands of the page."""


def blocks(language):
    """Return the page's code blocks."""
    page = (ROOT / "docs/fine-tuning.md").read_text()
    return [textwrap.dedent(block) for block in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)]


def put_data(folder):
    """Lay out other generated pictures as the page says, with a coin where the sample data has a disc."""
    made = prepare(folder.parent / "other", Recipe(seed=1, train_images=16, val_images=4)) / "coco"
    (folder / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        shutil.copytree(made / f"{split}2017", folder / split)
        content = json.loads((made / f"annotations/instances_{split}2017.json").read_text())
        for category in content["categories"]:
            category["name"] = category["name"].replace("disc", "coin")
        (folder / f"annotations/{split}.json").write_text(json.dumps(content))


@pytest.fixture
def trained(tmp_path, train, monkeypatch):
    """Work in a folder with step 1 done in seconds: a small network, one epoch of four pictures."""
    (tmp_path / "retinanet_care_s1.py").write_text(DETECTOR)
    trained = train(tmp_path, "retinanet_care_s1.py", "--sample", "--cfg-options", *FEW)
    (trained / "epoch_1.pth").rename(trained / "epoch_6.pth")
    monkeypatch.chdir(tmp_path)


def follow(commands, options):
    """Run commands of the page, with more options for some tools; return what each tool printed."""
    said = {}
    for _, path, *args in map(shlex.split, commands.replace("\\\n", "").splitlines()):
        tool = Path(path).stem
        files = [glob(arg) if "*" in arg else [arg] for arg in args]  # as a shell does
        said[tool] = succeed(run_tool(tool, *chain(*files), *options.get(tool, ()), cwd=Path.cwd()))
    return said


@pytest.mark.usefixtures("trained")
def test_three_commands_lead_from_a_folder_to_predictions():
    put_data(Path("data/mine"))
    shutil.copytree("data/mine/val", "data/new")
    _, commands, *_ = blocks("bash")
    # One epoch finds nothing above the usual threshold, and without a box there is no mAP, and so no best checkpoint.
    short = ["train_cfg.max_epochs=1", "model.test_cfg.score_thr=0"]  # the page's command ends with --cfg-options
    said = follow(commands, {"train": short})
    assert "those of 1 (coin) start anew" in said["train"]
    assert "Epoch(test) [4/4]" in said["test"]
    assert "predicted 4 pictures" in said["predict"]


@pytest.mark.stack
@pytest.mark.usefixtures("trained")
def test_a_config_of_ones_own_works_as_written():
    put_data(Path("data/mine"))
    (config,) = blocks("python")
    Path("mine.py").write_text(config)
    *_, commands = blocks("bash")
    said = follow(commands, {"train": SHORT})
    assert re.search(
        r"epoch_6\.pth has 4 classes, the model 4; in bbox_head\.retina_cls, the rows of 3 \(triangle, box, star\) are "
        r"taken by name, those of 1 \(coin\) start anew",
        said["train"],
    )
    (best,) = Path("work_dirs/mine").glob("best_coco_bbox_mAP_*.pth")
    assert read_checkpoint(best)["meta"]["dataset_meta"]["classes"][0] == "coin"
    assert "Epoch(test) [4/4]" in said["test"]
    assert len([*Path("browsed").iterdir()])
    assert len([*Path("work_dirs/mine").glob("*/pictures/*")]) == 4
