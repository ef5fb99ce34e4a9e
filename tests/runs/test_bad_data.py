"""Unusual data in tools/train.py and tools/test.py: accepted if MMDetection accepts it, otherwise refused by name."""

import json
import math
import pickle
import re

import cv2
import numpy as np
import pytest
import torch
from helpers import CONFIGS, TINY, load_tool, run_tool
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image

from mmcare.runs import LAUNCHERS

HEADS = ["retinanet", "mask_rcnn", "semantic_fpn", "upernet"]
DETECTORS, SEGMENTORS = HEADS[:2], HEADS[2:]
COMMON = """
_base_ = ["{base}"]
val_dataloader = val_cfg = val_evaluator = None
visualizer = dict(name="{root}")  # MMEngine keeps one for each name, and with it where the first run wrote
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(data_root="{root}", {data}))
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root="{root}", {data}))
"""
COCO = 'ann_file="marks.json", data_prefix=dict(img="images"), metainfo=dict(classes=("box", "disc"))'
ADE = 'data_prefix=dict(img_path="images", seg_map_path="maps"), img_suffix=".png"'
DETECTION = """
train_cfg = dict(max_epochs=1)
train_dataloader["dataset"]["filter_cfg"] = dict(min_size=0)
test_evaluator = dict(ann_file="{root}/marks.json")
"""
SEGMENTATION = """
train_cfg = dict(max_iters=4)
default_hooks = dict(checkpoint=dict(interval=4, save_best=None))
"""
BACKBONE = f"backbone=dict(arch=dict({TINY}, _delete_=True), norm_eval=False, init_cfg=None)"
HEAD_TEXTS = {
    "retinanet": f"""
model = dict(
    {BACKBONE},
    neck=dict(in_channels=[32, 32, 64, 128], out_channels=32),
    bbox_head=dict(num_classes=2, in_channels=32, feat_channels=32, stacked_convs=1),
)
""",
    "mask_rcnn": f"""
model = dict(
    {BACKBONE},
    neck=dict(in_channels=[32, 32, 64, 128], out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=32, num_classes=2),
        mask_roi_extractor=dict(out_channels=32),
        mask_head=dict(in_channels=32, conv_out_channels=32, num_convs=1, num_classes=2),
    ),
    train_cfg=dict(rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(rcnn=dict(score_thr=0.0, max_per_img=5)),
)
""",
    "semantic_fpn": f"""
model = dict(
    {BACKBONE},
    neck=dict(in_channels=[32, 32, 64, 128], out_channels=32),
    decode_head=dict(in_channels=[32, 32, 32, 32], channels=16),
)
""",
    "upernet": f"""
model = dict(
    {BACKBONE},
    decode_head=dict(in_channels=[32, 32, 64, 128], channels=16),
    auxiliary_head=dict(in_channels=64, channels=16),
)
""",
}
SMALL = {  # sizes of the images after resizing
    "detection": [
        "train_dataloader.dataset.pipeline.2.scale=(96,64)",
        "test_dataloader.dataset.pipeline.1.scale=(96,64)",
    ],
    "segmentation": [
        "train_dataloader.dataset.pipeline.2.scale=(128,64)",
        "train_dataloader.dataset.pipeline.3.crop_size=(64,64)",
        "model.data_preprocessor.size=(64,64)",
        "test_dataloader.dataset.pipeline.1.scale=(128,64)",
    ],
}
SQUARE = [[10, 10, 40, 10, 40, 40, 10, 40]]


tools = {name: load_tool(name) for name in ("train", "test")}


def task(head):
    return "detection" if head in DETECTORS else "segmentation"


def picture(height=64, width=96, channels=3):
    """Return smooth noise, which makes a large JPEG."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    return cv2.GaussianBlur(noise, (3, 3), 0).reshape(height, width, channels)


def mark(image_id, bbox=(10, 10, 30, 30), **changes):
    x, y, width, height = bbox
    entry = dict(image_id=image_id, category_id=1, bbox=list(bbox), area=width * height, iscrowd=0, segmentation=SQUARE)
    return {**entry, **changes}


def images():
    """Return a function for each kind of image that OpenCV reads, which writes one."""
    color, gray, deep = picture(), picture(channels=1), (picture().astype(np.uint16) << 8) + 7
    indexed = Image.fromarray(gray[..., 0] % 4, mode="P")
    indexed.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    turned = Image.Exif()
    turned[0x0112] = 6  # EXIF orientation: rotated by 90°
    return {
        "plain.png": lambda path: cv2.imwrite(path, color),
        "gray.png": lambda path: cv2.imwrite(path, gray),
        "gray_alpha.png": lambda path: Image.fromarray(np.dstack([gray, gray])).save(path),
        "alpha.png": lambda path: cv2.imwrite(path, picture(channels=4)),
        "deep.png": lambda path: cv2.imwrite(path, deep),
        "deep_gray.png": lambda path: cv2.imwrite(path, deep[..., 0]),
        "indexed.png": indexed.save,
        "flat.png": lambda path: cv2.imwrite(path, picture(1, 96)),
        "narrow.png": lambda path: cv2.imwrite(path, picture(64, 1)),
        "pixel.png": lambda path: cv2.imwrite(path, picture(1, 1)),
        "turned.png": lambda path: Image.fromarray(color).save(path, exif=turned),
    }


SIZES = {"flat.png": (1, 96), "narrow.png": (64, 1), "pixel.png": (1, 1)}


class Ground:
    """A folder with a data set and a config, on which the tools run."""

    def __init__(self, folder, head, names):
        self.folder, self.head = folder, head
        for name in ("images", "maps"):
            (folder / name).mkdir(parents=True)
        for name in names:
            images()[name](str(folder / "images" / name))
            label_map = np.ones((96, 64) if name == "turned.png" else SIZES.get(name, (64, 96)), np.uint8)
            cv2.imwrite(str(folder / "maps" / name), label_map)
        self.coco = dict(
            images=[
                dict(id=index, file_name=name, height=SIZES.get(name, (64, 96))[0], width=SIZES.get(name, (64, 96))[1])
                for index, name in enumerate(names)
            ],
            annotations=[mark(index) for index in range(len(names))],
            categories=[dict(id=1, name="box"), dict(id=2, name="disc")],
        )
        base = f"{CONFIGS}/{task(head)}/{head}_care_s1.py"
        data, rest = (COCO, DETECTION) if head in DETECTORS else (ADE, SEGMENTATION)
        text = COMMON.format(base=base, root=folder, data=data) + rest.format(root=folder) + HEAD_TEXTS[head]
        # MMEngine names its default scope by the config and the second, and keeps the scope that a name has.
        self.config = folder / f"{head}.py"
        self.config.write_text(text)

        self.image, self.label_map = folder / "images/plain.png", folder / "maps/plain.png"

    def checkpoint(self):
        """Write a checkpoint of the untrained model, and return its path."""
        cfg = Config.fromfile(self.config)
        init_default_scope(cfg.default_scope)
        path = self.folder / "untrained.pth"
        torch.save(dict(state_dict=revert_sync_batchnorm(MODELS.build(cfg.model)).state_dict()), path)
        return path

    def arguments(self, *options, checkpoint=()):
        for index, annotation in enumerate(self.coco["annotations"]):
            annotation.setdefault("id", index + 1)
        marks = self.folder / "marks.json"
        if not marks.exists():
            marks.write_text(json.dumps(self.coco))
        work_dir = ["--work-dir", str(self.folder / "work")]
        return [str(self.config), *map(str, checkpoint), *work_dir, "--cfg-options", *SMALL[task(self.head)], *options]

    def dataset(self, split="train"):
        cfg = Config.fromfile(self.config)
        self.arguments()
        init_default_scope(cfg.default_scope)
        return DATASETS.build(cfg[f"{split}_dataloader"].dataset)


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for launcher in LAUNCHERS.values():
        monkeypatch.delenv(launcher.rank, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")  # the tools set it; monkeypatch restores it


@pytest.fixture
def run(in_process):
    """Run a tool that must succeed on a data set."""

    def run(ground, tool, *options, checkpoint=(), extra=()):
        status, printed = in_process(tools[tool].main, tool, *ground.arguments(*options, checkpoint=checkpoint), *extra)
        assert status == 0, printed.out[-2000:] + printed.err

    return run


@pytest.fixture
def refuse(refusal):
    """Run a tool that must refuse its data, and return the message."""

    def refuse(ground, tool, *options):
        checkpoint = [ground.checkpoint()] if tool == "test" else []
        return refusal(tools[tool].main, tool, *ground.arguments(*options, checkpoint=checkpoint))

    return refuse


def losses(work_dir):
    lines = [json.loads(line) for path in work_dir.glob("*/vis_data/scalars.json") for line in path.open()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("head", HEADS)
def test_every_kind_of_image_is_trained_and_tested_on(tmp_path, run, head):
    ground = Ground(tmp_path / "data", head, [name for name in images() if head in DETECTORS or name != "pixel.png"])
    marks = ground.coco["annotations"]
    if head in DETECTORS:
        strips = {7: (10, 0, 30, 1), 8: (0, 10, 1, 30), 9: (0, 0, 1, 1)}
        for index, (x, y, width, height) in strips.items():
            corners = [[x, y, x + width, y, x + width, y + height, x, y + height]]
            marks[index] = mark(index, (x, y, width, height), segmentation=corners)
    run(ground, "train", "default_hooks.logger.interval=1")
    assert losses(ground.folder / "work")
    assert all(map(math.isfinite, losses(ground.folder / "work")))
    [checkpoint] = (ground.folder / "work").glob("*_[0-9].pth")
    out = ["--out", str(tmp_path / "out.pkl")] if head in DETECTORS else []
    run(ground, "test", checkpoint=[checkpoint], extra=out)
    if head in DETECTORS:
        assert len(pickle.loads((tmp_path / "out.pkl").read_bytes())) == len(images())
    else:
        assert any("mIoU" in path.read_text() for path in ground.folder.glob("work/*/*.json"))


def test_a_flipped_image_of_one_column(tmp_path, run):
    ground = Ground(tmp_path / "data", "semantic_fpn", ["narrow.png"] * 2)
    step = "train_dataloader.dataset.pipeline"
    cfg = Config.fromfile(ground.config)
    last = len(cfg.train_dataloader.dataset.pipeline) - 2  # the step before packing
    flips = [f"{step}.{last - 1}.prob=0.0", f"{step}.{last}.type=RandomFlip", f"{step}.{last}.prob=1.0"]
    one_column = [f"{step}.2.scale=(64,64)", f"{step}.2.ratio_range=(1.0,1.0)"]
    run(ground, "train", *flips, *one_column)
    assert all(map(math.isfinite, losses(ground.folder / "work")))


def cut(path):
    whole = cv2.imencode(".jpg", picture())[1].tobytes()
    path.write_bytes(whole[: len(whole) // 2])


UNREADABLE = {
    "text": (lambda path: path.write_text("no picture"), "cannot be decoded"),
    "cut JPEG": (cut, "cannot be decoded"),
    "cut PNG": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "cannot be decoded"),
    "empty file": (lambda path: path.write_bytes(b""), "empty file"),
    "too flat to be resized": (lambda path: cv2.imwrite(str(path), picture(1, 2000)), "2000×1 pixels"),
}


@pytest.mark.parametrize("tool", ["train", "test"])
@pytest.mark.parametrize("fault", UNREADABLE)
@pytest.mark.parametrize("head", ["retinanet", "semantic_fpn"])
def test_an_image_that_cannot_be_used_is_named(tmp_path, refuse, head, fault, tool):
    ground = Ground(tmp_path / "data", head, ["plain.png"])
    spoil, told = UNREADABLE[fault]
    spoil(ground.image)
    if fault == "too flat to be resized":
        cv2.imwrite(str(ground.label_map), np.ones((1, 2000), np.uint8))
    error = refuse(ground, tool)
    assert str(ground.image) in error
    assert told in error


@pytest.mark.parametrize("tool", ["train", "test"])
def test_an_image_that_is_listed_but_missing_is_named(tmp_path, refuse, tool):
    ground = Ground(tmp_path / "data", "mask_rcnn", ["plain.png", "gray.png"])
    ground.image.unlink()
    assert f"{ground.image} is missing" in refuse(ground, tool)


LABEL_MAPS = {
    "missing": (lambda path: path.unlink(), "is missing"),
    "text": (lambda path: path.write_text("no picture"), "cannot be decoded"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:30]), "cannot be decoded"),
    "other size": (lambda path: cv2.imwrite(str(path), np.ones((96, 64), np.uint8)), "64×96 pixels"),
    "colors": (lambda path: cv2.imwrite(str(path), picture()), "3 channels"),
    "unknown label": (lambda path: cv2.imwrite(str(path), np.full((64, 96), 151, np.uint8)), "the label 150"),
}


@pytest.mark.parametrize("fault", LABEL_MAPS)
@pytest.mark.parametrize(("head", "tool"), [("upernet", "train"), ("semantic_fpn", "test")])
def test_a_label_map_that_cannot_be_used_is_named(tmp_path, refuse, head, tool, fault):
    ground = Ground(tmp_path / "data", head, ["plain.png", "gray.png"])
    spoil, told = LABEL_MAPS[fault]
    spoil(ground.label_map)
    error = refuse(ground, tool)
    assert str(ground.label_map) in error
    assert told in error


def test_a_label_map_of_one_pixel_is_named(tmp_path, refuse):
    ground = Ground(tmp_path / "data", "semantic_fpn", ["pixel.png"])
    assert "maps/pixel.png is a single pixel" in refuse(ground, "train")


def without(key):
    return lambda coco: coco["annotations"][0].pop(key)


def put(**changes):
    return lambda coco: coco["annotations"][0].update(changes)


ANNOTATIONS = {
    "no area": (without("area"), 'annotations[0] (id 1) has no "area"'),
    "no bbox": (without("bbox"), 'annotations[0] (id 1) has no "bbox"'),
    "no category": (without("category_id"), 'annotations[0] (id 1) has no "category_id"'),
    "short bbox": (put(bbox=[1, 2, 3]), "the bbox [1, 2, 3]"),
    "no height": (lambda coco: coco["images"][0].pop("height"), 'images[0] (id 0) has no "height"'),
    "no categories": (lambda coco: coco.pop("categories"), 'no list "categories"'),
    "same id twice": (lambda coco: coco["annotations"].extend([mark(0, id=7), mark(0, id=7)]), "the id 7"),
    "other classes": (lambda coco: coco.update(categories=[dict(id=1, name="person")]), "no category box, disc"),
    "a class too few": (lambda coco: coco["categories"].pop(), "no category disc"),
    "no images": (lambda coco: coco.update(images=[], annotations=[]), "all of the 0 images"),
}


@pytest.mark.parametrize("fault", ANNOTATIONS)
def test_an_annotation_file_that_cannot_be_used_is_named(tmp_path, refuse, fault):
    ground = Ground(tmp_path / "data", "retinanet", ["plain.png"])
    spoil, told = ANNOTATIONS[fault]
    ground.arguments()  # assigns the ids
    (ground.folder / "marks.json").unlink()
    spoil(ground.coco)
    error = refuse(ground, "train")
    assert str(ground.folder / "marks.json") in error
    assert told in error


def test_a_detector_with_fewer_classes_than_the_data_is_refused(tmp_path, refuse):
    ground = Ground(tmp_path / "data", "retinanet", ["plain.png"])
    assert refuse(ground, "train", "model.bbox_head.num_classes=1") == (
        "the data set to train on has 2 classes (box, disc), but the model has 1: set num_classes=2 in its heads, or "
        "correct the dataset's metainfo=dict(classes=…)"
    )


@pytest.mark.parametrize(("text", "told"), [("{", "is not JSON"), ("[]", "holds a list")])
def test_an_annotation_file_of_another_format_is_named(tmp_path, refuse, text, told):
    ground = Ground(tmp_path / "data", "mask_rcnn", ["plain.png"])
    (ground.folder / "marks.json").write_text(text)
    error = refuse(ground, "test")
    assert str(ground.folder / "marks.json") in error
    assert told in error


@pytest.mark.parametrize("tool", ["train", "test"])
@pytest.mark.parametrize(
    ("segmentation", "told"),
    [([], "no segmentation"), (dict(size=[10, 20], counts=[100, 100]), "a mask of 20×10 pixels")],
)
def test_an_instance_without_a_mask_of_its_image_is_named(tmp_path, refuse, segmentation, told, tool):
    ground = Ground(tmp_path / "data", "mask_rcnn", ["plain.png"])
    ground.coco["annotations"][0]["segmentation"] = segmentation
    error = refuse(ground, tool)
    assert str(ground.image) in error
    assert told in error


def test_a_data_set_of_which_nothing_is_left_is_refused(tmp_path, refuse):
    ground = Ground(tmp_path / "detection", "retinanet", ["plain.png"])
    error = refuse(ground, "train", "train_dataloader.dataset.filter_cfg.min_size=65")
    assert "all of the 1 images" in error
    assert "min_size" in error
    ground = Ground(tmp_path / "segmentation", "semantic_fpn", ["plain.png"])
    error = refuse(ground, "train", "train_dataloader.dataset.img_suffix=.jpg")
    assert f"no image whose name ends in .jpg in {ground.folder}/images" in error


@pytest.mark.stack
@pytest.mark.parametrize(("head", "tool"), [("mask_rcnn", "train"), ("semantic_fpn", "test")])
def test_the_real_command_names_a_file_that_a_worker_process_cannot_read(tmp_path, head, tool):
    ground = Ground(tmp_path / "data", head, ["plain.png"])
    ground.image.write_text("no picture")
    checkpoint = [ground.checkpoint()] if tool == "test" else []
    arguments = ground.arguments(f"{tool}_dataloader.num_workers=1", checkpoint=checkpoint)
    done = run_tool(tool, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert re.fullmatch(rf"error: the image {ground.image} cannot be decoded.*", done.stderr.splitlines()[-1])


def test_odd_annotations_are_what_mmdetection_makes_of_them(tmp_path, run):
    ground = Ground(tmp_path / "data", "mask_rcnn", ["plain.png", "gray.png", "alpha.png", "deep.png"])
    crowd = dict(size=[64, 96], counts=[0, 64 * 20, 64 * 76])
    line = [[1, 2, 3, 4]]  # not a polygon: trained without a mask, and pycocotools cannot evaluate it
    ground.coco["annotations"] = [
        mark(0, (80, 50, 40, 40)),  # partly outside
        mark(0, (200, 10, 30, 30)),  # outside
        mark(0, (10, 10, 0, 30)),
        mark(0, (10, 10, -5, 30)),
        mark(0, (5, 5, 30, 30), area=0),
        mark(0, (6, 6, 30, 30), category_id=9),
        mark(0, (0, 0, 20, 64), iscrowd=1, segmentation=crowd),
        mark(0, (7, 7, 30, 30), segmentation=line),
        mark(1, (0, 0, 20, 64), iscrowd=1, segmentation=crowd),
        mark(2, (10, 10, 0, 0)),
        mark(77),  # without an image
    ]
    boxes = [
        [(mark["bbox"], mark["ignore_flag"]) for mark in item["instances"]]
        for item in map(ground.dataset("test").get_data_info, range(4))
    ]
    assert boxes == [
        [([80, 50, 120, 90], 0), ([0, 0, 20, 64], 1), ([7, 7, 37, 37], 0)],
        [([0, 0, 20, 64], 1)],
        [],
        [],
    ]
    assert len(ground.dataset("train")) == 3  # the config's filter_cfg removes the image without annotations
    run(ground, "train", "default_hooks.logger.interval=1", "train_dataloader.batch_size=1")
    assert len(losses(ground.folder / "work")) == 3
    assert all(map(math.isfinite, losses(ground.folder / "work")))
    ground.coco["annotations"] = [item for item in ground.coco["annotations"] if item["segmentation"] != line]
    (ground.folder / "marks.json").unlink()
    run(ground, "test", checkpoint=[ground.checkpoint()])
