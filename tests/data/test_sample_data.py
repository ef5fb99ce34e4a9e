"""The sample data: correct annotations, the same bytes for the same seed, and no incomplete data set."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mmcare.data.sample import (
    CLASSES,
    OTHER_CLASSES,
    PALETTE,
    SEMANTIC_CLASSES,
    SEMANTIC_PALETTE,
    Recipe,
    generate,
    prepare,
    scene,
)
from mmcare.errors import UserError

TINY = Recipe(train_images=6, val_images=3)
SLOW = Recipe(train_images=400, val_images=2)  # takes seconds, long enough to interrupt it
PREPARE = "import sys; from mmcare.data.sample import Recipe, prepare; print(prepare(sys.argv[1], {recipe}))"


def start_prepare(root: Path, recipe: Recipe) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PREPARE.format(recipe=recipe), str(root)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for a minute"
        time.sleep(0.005)


def entries(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def load(folder: Path, split: str) -> tuple[COCO, list[tuple[np.ndarray, np.ndarray]]]:
    """Return the split's COCO annotations, and the image and the label map of each of its images."""
    coco = COCO(str(folder / f"coco/annotations/instances_{split}2017.json"))
    ade = folder / "ade/ADEChallengeData2016"
    ade_split = {"train": "training", "val": "validation"}[split]
    pictures = []
    for number, image in enumerate(coco.loadImgs(sorted(coco.getImgIds())), start=1):
        jpeg = (folder / f"coco/{split}2017" / image["file_name"]).read_bytes()
        assert jpeg == (ade / f"images/{ade_split}/ADE_{split}_{number:08d}.jpg").read_bytes()
        labels = cv2.imread(str(ade / f"annotations/{ade_split}/ADE_{split}_{number:08d}.png"), cv2.IMREAD_UNCHANGED)
        pictures.append((cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), labels))
    return coco, pictures


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("sample"), Recipe(train_images=40, val_images=20))


def test_layout_is_that_of_coco_and_ade20k(tmp_path: Path) -> None:
    folder = prepare(tmp_path, TINY)
    assert folder.parent == tmp_path
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {file for file in files if not file.startswith("classification/")} == {
        ".mmcare-sample.json",
        *(f"coco/annotations/instances_{split}2017.json" for split in ("train", "val")),
        *(f"coco/train2017/{i:012d}.jpg" for i in range(1, 7)),
        *(f"coco/val2017/{i:012d}.jpg" for i in range(1, 4)),
        *(f"ade/ADEChallengeData2016/images/training/ADE_train_{i:08d}.jpg" for i in range(1, 7)),
        *(f"ade/ADEChallengeData2016/images/validation/ADE_val_{i:08d}.jpg" for i in range(1, 4)),
        *(f"ade/ADEChallengeData2016/annotations/training/ADE_train_{i:08d}.png" for i in range(1, 7)),
        *(f"ade/ADEChallengeData2016/annotations/validation/ADE_val_{i:08d}.png" for i in range(1, 4)),
    }


@pytest.mark.parametrize("split", ["train", "val"])
def test_each_object_is_cut_out_into_the_folder_of_its_class(dataset: Path, split: str) -> None:
    coco, pictures = load(dataset, split)
    expected = {}
    for image_id, (image, _) in zip(sorted(coco.getImgIds()), pictures, strict=True):
        name = Path(coco.imgs[image_id]["file_name"]).stem
        for number, annotation in enumerate(coco.imgToAnns[image_id], start=1):
            x, y, width, height = annotation["bbox"]
            side = round(1.25 * max(width, height))
            left, top = ((2 * start + length - side) / 2 for start, length in ((x, width), (y, height)))
            left, top = (
                min(max(start, 0), max(limit - side, 0))
                for start, limit in zip((left, top), image.shape[1::-1], strict=True)
            )
            kind = coco.cats[annotation["category_id"]]["name"]
            expected[f"{kind}/{name}_{number}.jpg"] = image[int(top) : int(top) + side, int(left) : int(left) + side]
    folder = dataset / "classification" / split
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg")} == set(expected)
    assert {path.name for path in folder.iterdir()} == set(CLASSES)
    for name, part in expected.items():
        crop = cv2.imread(str(folder / name))
        assert crop.shape == part.shape
        assert np.abs(crop.astype(int) - part.astype(int)).mean() < 6  # JPEG, twice


def test_names_and_colours_belong_together() -> None:
    assert list(SEMANTIC_CLASSES) == ["ground", *CLASSES]
    assert len(PALETTE) == len(set(PALETTE)) == len(CLASSES)
    assert len(SEMANTIC_PALETTE) == len(set(SEMANTIC_PALETTE)) == len(SEMANTIC_CLASSES)


@pytest.mark.parametrize("split", ["train", "val"])
def test_annotations_are_well_formed(dataset: Path, split: str) -> None:
    content = json.loads((dataset / f"coco/annotations/instances_{split}2017.json").read_text())
    assert [(category["id"], category["name"]) for category in content["categories"]] == list(enumerate(CLASSES, 1))
    image_ids = {image["id"] for image in content["images"]}
    assert len(image_ids) == len(content["images"])
    assert len({annotation["id"] for annotation in content["annotations"]}) == len(content["annotations"])
    assert {annotation["image_id"] for annotation in content["annotations"]} < image_ids
    assert {annotation["category_id"] for annotation in content["annotations"]} == {1, 2, 3, 4}
    assert {annotation["iscrowd"] for annotation in content["annotations"]} == {0}


def test_other_shapes_are_drawn_where_they_are_asked_for(tmp_path: Path) -> None:
    """Of each shape, the share of its box that it fills tells it from the others."""
    folder = prepare(tmp_path, Recipe(classes=OTHER_CLASSES, train_images=2, val_images=40, rotation=(0, 0)))
    coco, _ = load(folder, "val")
    assert [category["name"] for category in coco.cats.values()] == list(OTHER_CLASSES)
    shares: dict[str, list[float]] = {name: [] for name in OTHER_CLASSES}
    for mark in coco.anns.values():
        shares[OTHER_CLASSES[mark["category_id"] - 1]].append(mark["area"] / np.prod(mark["bbox"][2:]))
    filled = {name: np.median(values) for name, values in shares.items()}
    expected = dict(cross=0.51, arrow=0.44, hexagon=0.75, crescent=0.55)
    assert filled == pytest.approx(expected, abs=0.05)


def test_ids_differ_between_the_splits(dataset: Path) -> None:
    train, val = load(dataset, "train")[0], load(dataset, "val")[0]
    assert not set(train.imgs) & set(val.imgs)
    assert not set(train.anns) & set(val.anns)


@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_boxes_and_label_maps_agree(dataset: Path, split: str) -> None:
    coco, pictures = load(dataset, split)
    for image_id, (image, labels) in zip(sorted(coco.imgs), pictures, strict=True):
        info = coco.imgs[image_id]
        assert image.shape == (info["height"], info["width"], 3)
        assert labels.shape == image.shape[:2]
        assert labels.dtype == np.uint8
        from_masks = np.zeros_like(labels)
        for annotation in coco.imgToAnns[image_id]:
            mask = coco.annToMask(annotation).astype(bool)
            assert not from_masks[mask].any(), "only what is visible is annotated, so no two masks overlap"
            from_masks[mask] = annotation["category_id"] + 1
            assert annotation["area"] == mask.sum()
            assert annotation["bbox"] == list(coco_mask.toBbox(coco.annToRLE(annotation)))
            for polygon in annotation["segmentation"]:
                x, y = np.array(polygon).reshape(-1, 2).T
                assert len(x) >= 4
                assert 0 <= x.min() < x.max() <= info["width"]
                assert 0 <= y.min() < y.max() <= info["height"]
        assert np.array_equal(from_masks, np.where(labels > 1, labels, 0))


def test_the_set_is_varied(dataset: Path) -> None:
    for split in ("train", "val"):
        coco, pictures = load(dataset, split)
        counts = [len(coco.imgToAnns[image_id]) for image_id in coco.imgs]
        assert max(counts) == Recipe().objects[1]
        assert counts.count(0) == len(counts) // Recipe().empty_every
        sizes = {labels.shape for _, labels in pictures}
        assert len(sizes) > len(pictures) / 2
        assert {side for size in sizes for side in size} <= set(range(80, 129))
        sides = [max(annotation["bbox"][2:]) for annotation in coco.anns.values()]
        assert min(sides) < 20
        assert max(sides) > 50
        unlabelled = np.mean([(labels == 0).mean() for _, labels in pictures])
        assert 0.002 < unlabelled < 0.1
        if split == "train":
            assert any(len(annotation["segmentation"]) > 1 for annotation in coco.anns.values())
        assert min(image.std() for image, _ in pictures) > 8, "no flat backgrounds"


def test_colour_hints_at_the_class_but_does_not_tell_it(dataset: Path) -> None:
    coco, pictures = load(dataset, "train")
    colours, classes = [], []
    for image_id, (image, _) in zip(sorted(coco.imgs), pictures, strict=True):
        for annotation in coco.imgToAnns[image_id]:
            colours.append(image[coco.annToMask(annotation) > 0].mean(axis=0))
            classes.append(annotation["category_id"])
    colours, classes = np.array(colours), np.array(classes)
    means = np.array([colours[classes == kind].mean(axis=0) for kind in sorted(set(classes))])
    guesses = 1 + np.linalg.norm(colours[:, None] - means, axis=2).argmin(axis=1)
    assert 0.5 < (guesses == classes).mean() < 0.95


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), index=st.integers(0, 9), classes=st.sampled_from([CLASSES, OTHER_CLASSES]))
def test_every_object_stays_recognizable(seed: int, index: int, classes: tuple[str, ...]) -> None:
    recipe = Recipe(seed=seed, train_images=10, classes=classes)
    drawn = scene.draw_scene(recipe, "train", index)
    assert (1 <= len(drawn.objects) <= 6) if index < 9 else not drawn.objects
    lab = cv2.cvtColor(drawn.image.astype(np.float32) / 255, cv2.COLOR_BGR2LAB)
    for item in drawn.objects:
        assert item.mask.sum() >= recipe.min_visible_pixels
        described = generate.describe_mask(item.mask)
        decoded = coco_mask.decode(coco_mask.frPyObjects(described["segmentation"], *item.mask.shape)).any(axis=2)
        assert np.array_equal(decoded, item.mask)
        ring = cv2.dilate(item.mask.astype(np.uint8), np.ones((9, 9))) > item.mask
        differences = np.linalg.norm(lab[item.mask][:, None] - lab[ring][None], axis=2)
        assert np.median(differences) > 12


def without_holes(mask: np.ndarray) -> np.ndarray:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros(mask.shape, np.uint8), contours, -1, 1, cv2.FILLED).astype(bool)


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))).filter(np.any).map(without_holes))
def test_any_mask_is_described_exactly(mask: np.ndarray) -> None:
    described = generate.describe_mask(mask)
    decoded = coco_mask.merge(coco_mask.frPyObjects(described["segmentation"], *mask.shape))
    assert np.array_equal(coco_mask.decode(decoded), mask)
    assert described["area"] == coco_mask.area(decoded)
    assert described["bbox"] == list(coco_mask.toBbox(decoded))
    shoelace = 0.0
    for polygon in described["segmentation"]:
        x, y = np.array(polygon).reshape(-1, 2).T
        shoelace += abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
    assert described["area"] == shoelace


def test_two_processes_make_the_same_bytes(tmp_path: Path) -> None:
    processes = [start_prepare(tmp_path / name, TINY) for name in ("a", "b")]
    folders = [Path(process.communicate(timeout=120)[0].strip()) for process in processes]
    assert folders[0].name == folders[1].name
    assert digest(folders[0]) == digest(folders[1])


def test_another_seed_makes_other_images(tmp_path: Path) -> None:
    first = digest(prepare(tmp_path / "a", TINY))
    second = digest(prepare(tmp_path / "b", Recipe(seed=1, train_images=6, val_images=3)))
    assert {name for name in first if "classification" not in name} == {
        name for name in second if "classification" not in name
    }
    assert not {first[name] for name in first if name.endswith(".jpg")} & set(second.values())


def test_what_is_there_is_not_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepare(tmp_path, TINY)
    assert str(folder) in capsys.readouterr().err
    before = folder.stat().st_mtime_ns
    assert prepare(tmp_path, TINY) == folder
    assert folder.stat().st_mtime_ns == before
    assert not capsys.readouterr().err


def test_a_set_with_a_file_missing_is_made_again(tmp_path: Path) -> None:
    folder = prepare(tmp_path, TINY)
    complete = digest(folder)
    (folder / "coco/train2017/000000000003.jpg").unlink()
    assert digest(prepare(tmp_path, TINY)) == complete
    assert entries(tmp_path) == [folder.name]


def test_a_changed_recipe_replaces_the_set_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    elsewhere = prepare(tmp_path / "elsewhere", TINY)
    (tmp_path / "link").symlink_to(elsewhere)
    old = prepare(tmp_path, TINY)
    new = prepare(tmp_path, Recipe(train_images=5, val_images=3))
    assert new != old
    assert entries(tmp_path) == sorted(["elsewhere", "link", "mine", new.name])
    assert (tmp_path / "mine/notes.txt").read_text() == "keep"
    assert elsewhere.is_dir()


def test_changed_code_makes_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = generate.fingerprint(TINY)
    package = tmp_path / "sample"
    package.mkdir()
    for name in ("generate.py", "scene.py"):
        (package / name).write_bytes(Path(generate.__file__).with_name(name).read_bytes())
    monkeypatch.setattr(generate, "__file__", str(package / "generate.py"))
    assert generate.fingerprint(TINY) == before
    for name in ("generate.py", "scene.py"):
        with (package / name).open("a") as file:
            file.write("# changed\n")
        changed = generate.fingerprint(TINY)
        assert changed != before
        before = changed


@pytest.mark.parametrize("written", [0, 40, 200])
def test_killed_while_making(tmp_path: Path, written: int) -> None:
    process = start_prepare(tmp_path, SLOW)
    wait_until(lambda: any(tmp_path.iterdir()) and sum(path.is_file() for path in tmp_path.rglob("*")) >= written)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(entries(tmp_path)) == 1
    assert entries(tmp_path)[0].startswith(".making-")
    folder = prepare(tmp_path, TINY)
    assert entries(tmp_path) == [folder.name]


def test_a_living_process_keeps_its_unfinished_folder(tmp_path: Path) -> None:
    process = start_prepare(tmp_path, SLOW)
    wait_until(lambda: any(tmp_path.iterdir()))
    (unfinished,) = tmp_path.iterdir()
    folder = prepare(tmp_path, TINY)
    assert set(entries(tmp_path)) == {unfinished.name, folder.name}
    process.kill()
    process.communicate()


def test_an_unfinished_folder_of_another_machine_goes_by_age(tmp_path: Path) -> None:
    unfinished = tmp_path / f".making-elsewhere-1-{'0' * 32}"
    unfinished.mkdir()
    folder = prepare(tmp_path, TINY)
    assert set(entries(tmp_path)) == {unfinished.name, folder.name}
    long_ago = time.time() - 2 * 3600
    os.utime(unfinished, (long_ago, long_ago))
    prepare(tmp_path, TINY)
    assert entries(tmp_path) == [folder.name]


def test_two_processes_at_once(tmp_path: Path) -> None:
    processes = [start_prepare(tmp_path, Recipe(train_images=40, val_images=3)) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    folders = {output.strip() for output, _ in outputs}
    assert folders == {str(tmp_path / name) for name in entries(tmp_path)}
    assert len(folders) == 1


@pytest.mark.parametrize("moment", ["while writing", "at the last moment"])
def test_the_slower_of_two_takes_the_faster_ones_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    module, name = {"while writing": (generate, "draw_scene"), "at the last moment": (os, "rename")}[moment]
    original = getattr(module, name)
    inodes: list[int] = []

    def overtaken(*args: Any) -> Any:
        monkeypatch.setattr(module, name, original)
        inodes.append(prepare(tmp_path, TINY).stat().st_ino)
        return original(*args)

    monkeypatch.setattr(module, name, overtaken)
    folder = prepare(tmp_path, TINY)
    assert inodes == [folder.stat().st_ino]
    assert entries(tmp_path) == [folder.name]


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        prepare(tmp_path, TINY)
    assert not entries(tmp_path)


def test_root_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to .*file.below.* give a writable folder"):
        prepare(tmp_path / "file" / "below", TINY)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_root_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        prepare(tmp_path, TINY)


def test_something_else_under_the_name(tmp_path: Path) -> None:
    taken = tmp_path / generate.fingerprint(TINY)
    taken.mkdir()
    (taken / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match="is not a sample data set that mmcare made"):
        prepare(tmp_path, TINY)
    assert entries(tmp_path) == [taken.name]
    assert entries(taken) == ["notes.txt"]


def test_command_line(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    command = [sys.executable, "-m", "mmcare.sample", "--root", str(tmp_path / "data"), "--contact-sheet", str(sheet)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    folder = Path(done.stdout.strip())
    assert len(list((folder / "coco/train2017").iterdir())) == Recipe().train_images
    assert cv2.imread(str(sheet)).std() > 20

    command[-1] = str(sheet / "sheet.png")  # in a folder that is a file
    failed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert re.fullmatch(rf"error: {command[-1]} .* cannot be written: .*\n", failed.stderr)
