"""Tiny models, and eight images for them to learn by heart: what the tests that train and test run."""

import json
from pathlib import Path

from mmcare.data.sample import prepare

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
DETECTION = CONFIGS / "detection/retinanet_care_s1.py"
TINY = "depths=(1, 1, 1, 1), memory_channels=(8, 8, 16, 32), ratios=((1, 1), (1, 1), (1, 1), (1, 1))"
SEGMENTOR = f"""
_base_ = [
    "{CONFIGS}/_base_/models/semantic_fpn.py",
    "{CONFIGS}/_base_/datasets/ade20k_512x512.py",
    "{CONFIGS}/_base_/schedules/segmentation_40k.py",
    "{CONFIGS}/_base_/runtime/segmentation.py",
]
model = dict(
    backbone=dict(type="mmcare.CARE", arch=dict({TINY})),
    neck=dict(in_channels=[32, 32, 64, 128], out_channels=32),
    decode_head=dict(in_channels=[32, 32, 32, 32], channels=16),
)
"""
DETECTOR = f"""
_base_ = ["{DETECTION}"]
model = dict(
    backbone=dict(arch=dict({TINY}, _delete_=True)),
    neck=dict(in_channels=[32, 32, 64, 128], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1),
)
"""
IN_PROCESS = [
    f"{split}_dataloader.{setting}"
    for split in ("train", "val", "test")
    for setting in ("num_workers=0", "persistent_workers=False")
]
"""Settings with which the data is read without worker processes."""


def write_ground(folder):
    """Puts the sample data, ``detector.py``, ``segmentor.py`` and the annotations of eight training images in a folder.

    Returns:
        Options with which the detector, and with ``--sample``, is trained for 40 epochs and tested on the eight.
    """
    data = prepare(folder / "data/sample")
    coco = json.loads((data / "coco/annotations/instances_train2017.json").read_text())
    coco["images"] = coco["images"][:8]
    kept = {image["id"] for image in coco["images"]}
    coco["annotations"] = [mark for mark in coco["annotations"] if mark["image_id"] in kept]
    (folder / "eight.json").write_text(json.dumps(coco))
    (folder / "detector.py").write_text(DETECTOR)
    (folder / "segmentor.py").write_text(SEGMENTOR)
    by_heart = [
        *(f"{split}_dataloader.dataset.ann_file={folder}/eight.json" for split in ("train", "val", "test")),
        *(f"{split}_dataloader.dataset.data_prefix.img=train2017/" for split in ("val", "test")),
        *(f"{split}_evaluator.ann_file={folder}/eight.json" for split in ("val", "test")),
    ]
    schedule = ["param_scheduler=None", "optim_wrapper.optimizer.lr=3e-3", "train_cfg.val_interval=40"]
    return ["--cfg-options", *IN_PROCESS, *by_heart, *schedule, "default_hooks.checkpoint.interval=40"]
