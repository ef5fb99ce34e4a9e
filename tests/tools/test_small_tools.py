"""tools/browse_dataset.py and tools/print_config.py: pictures with annotations, and complete configs."""

import sys

import cv2
import numpy as np
import pytest
from helpers import CONFIGS, load_tool, run_tool, succeed
from mmengine.config import Config

from mmcare.data.sample import SEMANTIC_PALETTE, overlay_sample, prepare

DETECTION = CONFIGS / "detection/mask_rcnn_care_s1.py"
SEGMENTATION = CONFIGS / "segmentation/upernet_casvit_xs.py"
browse_dataset, print_config = load_tool("browse_dataset"), load_tool("print_config")


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """Return a folder with the sample data in the default place."""
    folder = tmp_path_factory.mktemp("ground")
    prepare(folder / "data/sample")
    return folder


@pytest.fixture(autouse=True)
def _in_empty_folder_without_a_screen(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for screen in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(screen, raising=False)


# -- browse_dataset.py -------------------------------------------------------------------------------------------------


@pytest.mark.stack
def test_boxes_and_masks_are_drawn_on_the_training_images(ground):
    options = ["--sample", "--not-show", "--output-dir", "boxes/new", "--number", 3]
    succeed(run_tool("browse_dataset", DETECTION, *options, cwd=ground))
    drawn = sorted((ground / "boxes/new").iterdir())
    assert [path.name for path in drawn] == ["000000000001.jpg", "000000000002.jpg", "000000000003.jpg"]
    for path in drawn:
        picture = cv2.imread(str(path)).astype(int)
        plain = cv2.imread(str(next(ground.glob(f"data/sample/*/coco/train2017/{path.name}"))))
        plain = cv2.resize(plain, picture.shape[1::-1]).astype(int)
        # Training images may be mirrored. Swapped colour channels would change nearly all of the picture.
        changed = min((abs(picture - plain[:, ::step]).max(axis=2) > 60).mean() for step in (1, -1))
        assert 0.01 < changed < 0.5


@pytest.mark.stack
def test_label_maps_are_drawn_on_the_training_images(ground):
    options = ["--sample", "--not-show", "--output-dir", "labels", "--number", 2]
    succeed(run_tool("browse_dataset", SEGMENTATION, *options, "--cfg-options", "visualizer.alpha=1.0", cwd=ground))
    drawn = sorted((ground / "labels").iterdir())
    assert [path.name for path in drawn] == ["ADE_train_00000001.jpg", "ADE_train_00000002.jpg"]
    for path in drawn:
        pixels = cv2.imread(str(path))[:, :, ::-1].astype(int)
        distance = np.stack([abs(pixels - np.array(colour)).max(axis=2) for colour in SEMANTIC_PALETTE])
        # An opaque label map has mostly its own colours, except for JPEG artefacts at borders and the names of classes.
        assert (distance.min(axis=0) < 30).mean() > 0.6


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([DETECTION, "--sample"], "there is no display to show pictures on: write them with --not-show --output-dir"),
        ([DETECTION, "--sample", "--not-show"], "--not-show without --output-dir leaves nothing to do"),
        ([DETECTION, "--number", "0"], "--number must be at least 1, not 0"),
        (["nix.py", "--not-show", "--output-dir", "x"], "there is no config nix.py"),
        ([DETECTION, "--not-show", "--output-dir", "/dev/null/x"], "the folder /dev/null/x cannot be created"),
        ([CONFIGS / "_base_/runtime/detection.py", "--not-show", "--output-dir", "x"], f"{CONFIGS}/_base_/runtime/"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a screen is taken for granted")
def test_a_mistake_in_browsing_is_told(refusal, args, message):
    assert refusal(browse_dataset.main, "browse_dataset", *args).startswith(message)


def test_browsing_asks_for_no_weights_and_no_validation_data(in_process):
    status, printed = in_process(browse_dataset.main, "browse", DETECTION, "--not-show", "--output-dir", "x")
    assert status == 2
    assert printed.err.startswith("error: files that this run needs are missing:\n  data/coco/annotations/")
    assert "train2017" in printed.err
    assert "val2017" not in printed.err
    assert "checkpoints/" not in printed.err


def test_a_config_that_does_not_fit_what_it_names_is_told(ground, monkeypatch, refusal):
    monkeypatch.chdir(ground)
    options = ["--sample", "--not-show", "--output-dir", "x"]
    wrong = ["--cfg-options", "train_dataloader.dataset.pipeline.0.type=Load"]
    told = refusal(browse_dataset.main, "browse", DETECTION, *options, *wrong)
    assert told.startswith("the config's train_dataloader.dataset.pipeline.0 has type='Load'")


def test_data_that_cannot_be_shown_is_told(ground, monkeypatch, refusal):
    monkeypatch.chdir(ground)
    options = ["--sample", "--not-show", "--output-dir", "x", "--cfg-options"]
    small = "train_dataloader.dataset.filter_cfg.min_size=9999"
    told = refusal(browse_dataset.main, "browse", DETECTION, *options, small)
    assert told.startswith("all of the ")
    assert "are filtered out: the config's filter_cfg" in told
    image = next(ground.glob("data/sample/*/coco/train2017/000000000001.jpg"))
    whole = image.read_bytes()
    image.write_bytes(whole[:300])
    try:
        assert image.name in refusal(browse_dataset.main, "browse", DETECTION, *options, "train_cfg.max_epochs=1")
    finally:
        image.write_bytes(whole)


# -- print_config.py ---------------------------------------------------------------------------------------------------


def test_a_config_is_printed_as_a_run_has_it(ground):
    options = ["--sample", "--save-path", "saved/whole.py", "--cfg-options", "train_dataloader.batch_size=3"]
    printed = succeed(run_tool("print_config", SEGMENTATION, *options, cwd=ground))
    saved = Config.fromfile(ground / "saved/whole.py")
    assert printed.strip() == saved.pretty_text.strip()
    expected = Config.fromfile(SEGMENTATION)
    overlay_sample(expected, next((ground / "data/sample").iterdir()).relative_to(ground))
    expected.train_dataloader.batch_size = 3
    assert saved.to_dict() == expected.to_dict()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            [DETECTION, "--save-path", "x.txt"],
            "--save-path can be .py, .json, .yml, .yaml: give a name with one of these endings",
        ),
        ([DETECTION, "--save-path", "/dev/null/x.py"], "/dev/null/x.py cannot be written"),
        ([DETECTION, "--cfg-options", "a"], "--cfg-options takes pairs like model.backbone.arch=s1, not 'a'"),
        (["nix.py"], "there is no config nix.py"),
        ([DETECTION, "--launcher", "none"], "unrecognized arguments: --launcher none"),
        ([DETECTION, "--work-dir", "x"], "unrecognized arguments: --work-dir x"),
    ],
)
def test_a_mistake_in_printing_is_told(refusal, args, message):
    assert refusal(print_config.main, "print_config", *args).startswith(message)


@pytest.mark.parametrize("suffix", [".json", ".yml"])
def test_other_formats_hold_the_same(in_process, tmp_path, suffix):
    status, printed = in_process(print_config.main, "print", DETECTION, "--save-path", tmp_path / f"whole{suffix}")
    assert status == 0
    saved = Config.fromfile(tmp_path / f"whole{suffix}")
    assert saved.model.roi_head == Config.fromfile(DETECTION).model.roi_head
    assert "RoIAlign" in printed.out
