"""tools/predict.py: equal to test.py, nothing overwritten, and a list of what failed."""

import io
import json
import os
import re
import shutil
import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import LargestFile, load_tool, run_tool, succeed
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

tool = load_tool("predict")


@pytest.fixture
def predict(in_process, tmp_path, monkeypatch):
    """Run the tool in an empty folder; return what it prints if it succeeds."""
    monkeypatch.chdir(tmp_path)

    def predict(*args):
        status, printed = in_process(tool.main, "predict.py", *args)
        assert status == 0, printed.err
        return printed

    return predict


@pytest.fixture
def refused(refusal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *args: refusal(tool.main, "predict.py", *args)


def files(folder="predictions"):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def evaluated(annotations, predictions):
    """Return the bbox mAP by pycocotools."""
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(predictions)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


# -- equal to test.py --------------------------------------------------------------------------------------------------


@pytest.mark.stack
def test_a_detectors_map_is_the_one_of_test_py(ground, tmp_path):
    args = ("detector.py", ground.checkpoint, "--sample", *ground.options)
    printed = succeed(run_tool("test", *args, cwd=ground.folder))
    wanted = float(re.search(r"coco/bbox_mAP: ([\d.]+)", printed)[1])
    assert 0.03 < wanted < 0.97
    out = tmp_path / "out"
    said = succeed(run_tool("predict", ground.pictures, "--model", ground.checkpoint, "--out", out, cwd=tmp_path))
    assert said.endswith(f"predicted 8 pictures: {out}\n")  # the successors print more before
    assert round(evaluated(ground.annotations, out / "predictions.json"), 3) == pytest.approx(wanted)

    names = sorted(path.name for path in ground.pictures.iterdir())
    assert files(out) == ["images.json", *(f"pictures/{name}" for name in names), "predictions.json"]
    for name in names:
        drawn, picture = cv2.imread(str(out / "pictures" / name)), cv2.imread(str(ground.pictures / name))
        assert drawn.shape == picture.shape


@pytest.mark.stack
def test_a_segmentors_miou_is_the_one_of_test_py(ground, segmentor, predict):
    pictures = sorted((ground.data / "ade/ADEChallengeData2016/images/validation").iterdir())[:6]
    few = ["--cfg-options", "test_dataloader.num_workers=0", "test_dataloader.persistent_workers=False"]
    printed = succeed(
        run_tool(
            "test", "segmentor.py", segmentor, "--sample", *few, "test_dataloader.dataset.indices=6", cwd=ground.folder
        )
    )
    wanted = float(re.search(r"mIoU: ([\d.]+)", printed)[1])
    assert wanted > 1
    predict(*pictures, "--model", segmentor)

    shared, together = np.zeros(5), np.zeros(5)
    for picture in pictures:
        found = cv2.imread(f"predictions/label_maps/{picture.stem}.png", cv2.IMREAD_UNCHANGED)
        path = ground.data / f"ade/ADEChallengeData2016/annotations/validation/{picture.stem}.png"
        truth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(int) - 1
        assert found.shape == truth.shape
        for label in range(5):
            ours, theirs = (found == label) & (truth >= 0), truth == label
            shared[label] += (ours & theirs).sum()
            together[label] += (ours | theirs).sum()
    assert round(100 * np.mean(shared[together > 0] / together[together > 0]), 2) == pytest.approx(wanted, abs=0.011)
    categories = {entry["category_id"] for entry in json.loads(Path("predictions/predictions.json").read_text())}
    assert categories <= {1, 2, 3, 4, 5}


# -- what is written ---------------------------------------------------------------------------------------------------


def test_the_files_belong_together(ground, predict, tmp_path):
    shutil.copy(min(ground.pictures.iterdir()), tmp_path / "straße.tif")
    shutil.copy(max(ground.pictures.iterdir()), tmp_path / "b.jpg")
    cv2.imwrite("straße.tif", cv2.imread(str(min(ground.pictures.iterdir()))))
    predict("straße.tif", "b.jpg", "--model", ground.checkpoint)
    assert files() == ["images.json", "pictures/b.jpg", "pictures/straße.tif.png", "predictions.json"]
    with redirect_stdout(io.StringIO()):
        images = COCO("predictions/images.json")
        results = images.loadRes("predictions/predictions.json")
    assert [(image["id"], image["file_name"]) for image in images.loadImgs([1, 2])] == [(1, "straße.tif"), (2, "b.jpg")]
    assert [category["name"] for category in images.loadCats([1, 2, 3, 4])] == ["disc", "triangle", "box", "star"]
    height, width = cv2.imread("b.jpg").shape[:2]
    assert (images.imgs[2]["height"], images.imgs[2]["width"]) == (height, width)
    assert len(results.getAnnIds([1])) > 0
    assert len(results.getAnnIds([2])) > 0


def test_an_annotation_file_numbers_images_and_categories(ground, predict, tmp_path):
    paths = sorted(ground.pictures.iterdir())[:2]
    images = [dict(id=70 + number, file_name=f"pictures/{path.name}") for number, path in enumerate(paths)]
    images.append(dict(id=9, file_name=f"elsewhere/{paths[0].name}"))
    categories = [dict(id=10 * number, name=name) for number, name in enumerate(("star", "disc", "box", "triangle"), 1)]
    Path("numbers.json").write_text(json.dumps(dict(images=images, categories=categories)))
    predict(*paths, "--model", ground.checkpoint, "--annotations", "numbers.json", "--out", "numbered")
    predict(*paths, "--model", ground.checkpoint, "--out", "plain")
    numbered, plain = (json.loads(Path(out, "predictions.json").read_text()) for out in ("numbered", "plain"))
    ids = {int(path.stem): 70 + number for number, path in enumerate(paths)}
    category_ids = {1: 20, 2: 40, 3: 30, 4: 10}
    assert len(plain) > 5
    for entry in plain:
        entry.update(image_id=ids[entry["image_id"]], category_id=category_ids[entry["category_id"]])
    assert numbered == plain


def write_video(path, frames):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (128, 96))
    for number in range(frames):
        writer.write(np.full((96, 128, 3), 10 * number, np.uint8))
    writer.release()


def test_videos_are_drawn_as_videos(ground, segmentor, predict, tmp_path):
    write_video(tmp_path / "one.avi", 7)
    write_video(tmp_path / "two.mp4", 5)
    predict("one.avi", min(ground.pictures.iterdir()), "two.mp4", "--model", segmentor)
    maps = [
        f"label_maps/{video}/{frame:06d}.png" for video, number in (("one", 7), ("two", 5)) for frame in range(number)
    ]
    name = min(ground.pictures.iterdir())
    maps.append(f"label_maps/{name.stem}.png")
    drawn = ["pictures/one.mp4", "pictures/two.mp4", f"pictures/{name.name}"]
    assert files() == sorted([*maps, *drawn, "images.json", "predictions.json"])
    for video, number in (("one", 7), ("two", 5)):
        capture = cv2.VideoCapture(f"predictions/pictures/{video}.mp4")
        assert capture.get(cv2.CAP_PROP_FPS) == 10
        frames = [capture.read() for _ in range(number + 1)]
        assert [is_read for is_read, _ in frames] == [True] * number + [False]
        assert frames[0][1].shape == (96, 128, 3)
    images = json.loads(Path("predictions/images.json").read_text())["images"]
    assert [image["id"] for image in images] == list(range(1, 14))
    assert [image.get("frame_id") for image in images] == [*range(7), None, *range(5)]


class Camera:
    """Stands in for OpenCV's camera: gives frames of noise, and Ctrl-C before the fourth."""

    def __init__(self, number):
        assert number == 0
        self.frames = np.random.RandomState(0).randint(0, 255, (9, 96, 128, 3), np.uint8)
        self.given = 0

    def isOpened(self):  # noqa: N802 (OpenCV's name)
        return True

    def read(self):
        self.given += 1
        if self.given == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return True, self.frames[self.given - 1]

    def release(self):
        pass


def test_a_camera_runs_until_ctrl_c(ground, predict, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert predict("0", "--model", ground.checkpoint).out == "predicted 4 pictures: predictions\n"
    finally:
        signal.signal(signal.SIGINT, before)
    assert files() == ["images.json", "pictures/camera.mp4", "predictions.json"]
    images = json.loads(Path("predictions/images.json").read_text())["images"]
    assert [(image["file_name"], image["frame_id"]) for image in images] == [("camera", number) for number in range(4)]


def test_the_threshold_is_for_drawings_only(ground, predict):
    path = min(ground.pictures.iterdir())
    predict(path, "--model", ground.checkpoint, "--score-thr", "1")
    drawn, picture = cv2.imread(f"predictions/pictures/{path.name}"), cv2.imread(str(path))
    assert np.abs(drawn.astype(int) - picture).mean() < 5
    assert len(json.loads(Path("predictions/predictions.json").read_text())) > 5


def test_a_config_beside_the_model(ground, predict):
    path = min(ground.pictures.iterdir())
    config = ground.folder / "work_dirs/detector/detector.py"
    predict(path, "--model", ground.checkpoint, "--config", config, "--batch-size", "1")
    assert files()[0] == "images.json"


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten_unless_asked(ground, predict, refused):
    path = min(ground.pictures.iterdir())
    Path("predictions/pictures").mkdir(parents=True)
    Path("predictions/pictures", path.name).write_text("mine")
    Path("predictions/notes.txt").write_text("mine")
    args = (path, "--model", ground.checkpoint)
    told = refused(*args)
    assert told == "the folder predictions is not empty: give another with --out, or add --overwrite"
    assert Path("predictions/pictures", path.name).read_text() == "mine"
    predict(*args, "--overwrite")
    assert cv2.imread(f"predictions/pictures/{path.name}") is not None
    assert Path("predictions/notes.txt").read_text() == "mine"


def test_a_picture_is_not_replaced_by_its_drawing(ground, refused):
    Path("predictions/pictures").mkdir(parents=True)
    shutil.copy(min(ground.pictures.iterdir()), "predictions/pictures/a.jpg")
    before = Path("predictions/pictures/a.jpg").read_bytes()
    told = refused("predictions/pictures", "--model", ground.checkpoint, "--overwrite")
    assert told == "the drawing of predictions/pictures/a.jpg would replace it: give another folder with --out"
    assert Path("predictions/pictures/a.jpg").read_bytes() == before


def test_two_pictures_of_one_name_are_refused(ground, refused):
    for folder in ("a", "b"):
        Path(folder).mkdir()
        shutil.copy(min(ground.pictures.iterdir()), Path(folder, "1.jpg"))
    assert refused("a", "b", "--model", ground.checkpoint) == (
        "a/1.jpg and b/1.jpg would both be written to predictions/pictures/1.jpg: predict them one after the other, "
        "each with its own --out"
    )


def test_a_batch_goes_on_past_bad_pictures(ground, refused, in_process, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    good = sorted(ground.pictures.iterdir())[:2]
    Path("bad.jpg").write_text("no picture")
    status, printed = in_process(
        tool.main, "predict.py", good[0], "bad.jpg", good[1], "gone.mp4", "--model", ground.checkpoint
    )
    assert status == 2
    assert printed.err.endswith(
        "error: 2 of 4 failed:\n  bad.jpg is not a picture in a known format: give another file\n"
        "  there is no file gone.mp4: check the path\n"
    )
    assert printed.out == "predicted 2 pictures: predictions\n"
    assert len(files()) == 4


def test_if_all_fail_nothing_is_written(ground, refused):
    assert refused("gone.jpg", "--model", ground.checkpoint) == "there is no file gone.jpg: check the path"
    assert files() == []


def test_a_full_disk_is_told_in_one_line_and_leaves_no_incomplete_file(ground, refused):
    with LargestFile(3000):
        told = refused(ground.pictures, "--model", ground.checkpoint)
    assert re.fullmatch(r"predictions/\S+( \([\d.]+ MiB\))? cannot be written: File too large", told)
    assert "predictions.json" not in files()
    assert not [name for name in files() if "partial" in name]


MISTAKES = {
    "no display": (["--show"], "there is no display to show pictures on: omit --show"),
    "an empty folder": (
        ["--sources", "empty"],
        "there is no picture in the folder empty: none of its files ends in ",
    ),
    "no camera": (["--sources", "93"], "the camera 93 cannot be opened: check that it is connected"),
    "no annotations": (["--annotations", "gone.json"], "--annotations gone.json cannot be read: No such file"),
    "other JSON": (["--annotations", "list.json"], "--annotations list.json is not a COCO annotation file, with "),
    "unlisted": (["--annotations", "none.json"], "none.json lists no images for "),
    "for a video": (["--sources", "a.mp4", "--annotations", "none.json"], "--annotations is for pictures: omit it"),
    "batch size": (["--batch-size", "0"], "batch_size must be at least 1, not 0"),
    "out is a file": (["--out", "list.json"], "the folder list.json cannot be created: File exists"),
    "a percentage": (["--score-thr", "30"], "--score-thr must be from 0 to 1, not 30"),
    "an empty path": (["--sources", ""], "SOURCE must not be empty"),
    "no model": (["--model", "gone.pth"], "there is no checkpoint gone.pth: check the path"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_sentence(ground, refused, name, monkeypatch):
    for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    Path("empty").mkdir()
    Path("list.json").write_text("[]")
    Path("none.json").write_text('{"images": [], "categories": []}')
    args, told = MISTAKES[name]
    source = min(ground.pictures.iterdir())
    if args[0] == "--sources":
        _, source, *args = args
    assert refused(source, "--model", ground.checkpoint, *args).startswith(told)


def test_categories_must_have_the_models_classes(ground, refused):
    path = min(ground.pictures.iterdir())
    Path("some.json").write_text(json.dumps(dict(images=[dict(id=1, file_name=path.name)], categories=[])))
    told = refused(path, "--model", ground.checkpoint, "--annotations", "some.json")
    assert told == "some.json has no category disc, which is a class of the model"


def test_without_supervision_nothing_is_begun(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    told = refused("a.jpg", "--model", "gone.pth")  # a file that is missing would be told first
    assert re.fullmatch(
        r"drawing needs the package supervision \(.+\): install it with `pip install supervision`", told
    )
    assert files() == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(ground, refused):
    told = refused(ground.pictures, "--model", ground.checkpoint, "--device", "cuda")
    assert told.startswith('the device "cuda" cannot be used (')
