"""mmcare.Predictor: the same results for the same picture however it is given, equal to OpenMMLab's own."""

import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import CONFIGS, TINY
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from pycocotools.mask import decode

import mmcare
from mmcare.checkpoints import read_checkpoint
from mmcare.cli.commands import publish_model

MASK_RCNN = f"""
_base_ = ["{CONFIGS}/detection/mask_rcnn_care_s1.py"]
model = dict(
    backbone=dict(arch=dict({TINY}, _delete_=True)),
    neck=dict(in_channels=[32, 32, 64, 128], out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32),
        mask_roi_extractor=dict(out_channels=32),
        mask_head=dict(in_channels=32, num_convs=1),
    ),
)
"""


def some(pictures, number=3):
    return sorted(map(str, pictures.iterdir()))[:number]


def assert_same(found, wanted, tolerance=1e-3):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.size == other.size
        assert one.labels.tolist() == other.labels.tolist()
        np.testing.assert_allclose(one.boxes, other.boxes, atol=tolerance)
        np.testing.assert_allclose(one.scores, other.scores, atol=tolerance)


# -- equal to OpenMMLab's ----------------------------------------------------------------------------------------------


@pytest.mark.stack
def test_a_detector_finds_what_mmdets_own_call_finds(ground, detector, tmp_path):
    from mmdet.apis import inference_detector
    from mmdet.registry import MODELS

    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(some(ground.pictures)[0]).resize((150, 90)).save(turned, exif=exif)
    paths = [*some(ground.pictures), str(turned)]

    cfg = Config.fromfile(ground.folder / "work_dirs/detector/detector.py")
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(cfg.model)
    mmcare.load_checkpoint(model, ground.checkpoint)
    model.cfg = cfg
    for fast in (False, True):
        predictor = mmcare.Predictor(cfg, ground.checkpoint, fast=fast)
        assert (predictor.model.state_dict().keys() == model.state_dict().keys()) is not fast
        results = list(predictor(paths))
        for path, result in zip(paths, results, strict=True):
            with DefaultScope.overwrite_default_scope("mmdet"):
                wanted = inference_detector(model.eval(), path).pred_instances.numpy()
            assert result.source == path
            np.testing.assert_allclose(result.boxes, wanted.bboxes, atol=2e-3)
            np.testing.assert_allclose(result.scores, wanted.scores, atol=1e-4)
            assert result.labels.tolist() == wanted.labels.tolist()
            assert len(result.boxes) > 3
    assert results[-1].size == (150, 90)


@pytest.mark.stack
def test_a_segmentor_gives_the_label_map_of_mmsegs_own_call(ground, segmentor):
    from mmseg.apis import inference_model

    predictor = mmcare.Predictor(segmentor)
    assert predictor.task == "segmentation"
    paths = some(ground.pictures)
    predictor.model.cfg = Config.fromstring(read_checkpoint(segmentor)["meta"]["cfg"], ".py")
    for result in predictor(paths):
        with DefaultScope.overwrite_default_scope("mmseg"):
            wanted = inference_model(predictor.model, result.source).pred_sem_seg.data[0].numpy()
        assert result.label_map.dtype == np.uint8
        assert np.array_equal(result.label_map, wanted)
        assert result.label_map.shape == result.size
        assert (len(result.boxes), result.masks) == (0, None)
        labels = np.unique(wanted)
        assert len(labels) > 1
        found = result.to_supervision()
        assert found.class_id.tolist() == labels.tolist()
        coco = result.to_coco(image_id=7)
        assert [entry["category_id"] for entry in coco] == (labels + 1).tolist()
        for label, entry, mask in zip(labels, coco, found.mask, strict=True):
            assert np.array_equal(mask, wanted == label)
            assert np.array_equal(decode(entry["segmentation"]), wanted == label)
        drawn = result.draw()
        assert (drawn != cv2.imread(result.source)).any(axis=2).mean() > 0.9


def test_masks(ground, untrained):
    predictor = mmcare.Predictor(untrained("mask_rcnn", MASK_RCNN))
    (result,) = predictor(some(ground.pictures)[0])
    assert result.masks.shape == (len(result.boxes), *result.size)
    assert len(result.boxes) > 3
    assert result.masks.dtype == bool
    for mask, entry in zip(result.masks, result.to_coco(), strict=True):
        assert np.array_equal(decode(json.loads(json.dumps(entry))["segmentation"]), mask)
    assert np.array_equal(result.to_supervision().mask, result.masks)
    assert (result.draw(0) != cv2.imread(result.source)).any()


# -- what may be given -------------------------------------------------------------------------------------------------


@pytest.mark.stack
def test_a_picture_is_the_same_however_it_is_given(ground, detector):
    paths = some(ground.pictures)
    wanted = list(detector(paths))
    arrays = [cv2.imread(path) for path in paths]
    pils = [Image.open(path) for path in paths]
    for images in (
        map(Path, paths),
        arrays,
        pils,
        iter([paths[0], arrays[1], [pils[2]]]),
        [np.dstack([array, array[..., :1]]) for array in arrays],
    ):
        results = list(detector(images))
        assert_same(results, wanted)
        assert [result.index for result in results] == [0, 1, 2]
    assert_same(list(detector(arrays[0])), wanted[:1])
    assert_same(list(detector(pils[0])), wanted[:1])
    assert_same(list(detector(np.stack([arrays[0]] * 2))), [wanted[0]] * 2)
    assert_same(list(detector(ground.pictures)), list(detector(sorted(ground.pictures.iterdir()))))
    gray = arrays[0][..., 0]
    assert_same(list(detector(gray)), list(detector(np.dstack([gray] * 3))))


def test_turned_and_transparent_pil_images(ground, detector, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(some(ground.pictures)[0]).save(tmp_path / "turned.png", exif=exif)
    assert_same(list(detector(Image.open(tmp_path / "turned.png"))), list(detector(tmp_path / "turned.png")))
    clear = Image.open(some(ground.pictures)[0]).convert("RGBA")
    assert_same(list(detector(clear)), list(detector(clear.convert("RGB"))))


def write_video(path, frames):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (128, 96))
    for number in range(frames):
        writer.write(np.full((96, 128, 3), 20 * number, np.uint8))
    writer.release()
    return path


def test_a_video_gives_its_frames(detector, tmp_path):
    path = write_video(tmp_path / "clip.mp4", 11)
    results = list(detector(path, batch_size=4))
    assert [result.frame for result in results] == list(range(11))
    assert {result.source for result in results} == {str(path)}
    assert [result.draw(2).mean() for result in results] == pytest.approx([20 * number for number in range(11)], abs=6)


def test_a_folders_pictures_are_sorted_by_their_numbers(ground, detector, tmp_path):
    for name in ("b10.jpg", "b9.JPG", "a.png", ".hidden.jpg", "notes.txt"):
        cv2.imwrite(str(tmp_path / name.replace(".txt", ".png")), np.zeros((40, 40, 3), np.uint8))
        (tmp_path / "notes.png").rename(tmp_path / name) if name == "notes.txt" else None
    assert [Path(result.source).name for result in detector(tmp_path)] == ["a.png", "b9.JPG", "b10.jpg"]


# -- batches and processes ---------------------------------------------------------------------------------------------


@pytest.mark.stack
def test_results_come_in_order_and_do_not_depend_on_batches_or_processes(ground, detector):
    paths = some(ground.pictures, 8)
    large = cv2.resize(cv2.imread(paths[0]), (200, 96))
    images = [*paths, large, *paths[::-1]]
    wanted = [result for image in images for result in detector(image)]
    assert len({result.size for result in wanted}) > 3
    for batch_size, workers in ((1, 0), (3, 1), (5, 2)):
        results = list(detector(images, batch_size, workers))
        assert [result.index for result in results] == list(range(17))
        assert_same(results, wanted)


def test_equal_pictures_are_computed_together(detector, monkeypatch):
    sizes = []
    compute = detector.model.test_step
    monkeypatch.setattr(detector.model, "test_step", lambda data: (sizes.append(len(data["inputs"])), compute(data))[1])
    one, other = np.zeros((96, 128, 3), np.uint8), np.zeros((128, 96, 3), np.uint8)
    assert len(list(detector([one, other] * 5, batch_size=4))) == 10
    assert sorted(sizes) == [1, 1, 4, 4]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_endless_iterator_is_read_as_it_is_needed(detector, workers):
    taken = itertools.count()
    images = (next(taken) and None or np.zeros((96, 128, 3), np.uint8) for _ in itertools.count())
    results = detector(images, batch_size=2, workers=workers)
    assert [next(results).index for _ in range(5)] == list(range(5))
    results.close()
    assert next(taken) < 16


def test_one_shape_does_not_wait_forever_for_its_batch(detector):
    square, wide = np.zeros((96, 96, 3), np.uint8), np.zeros((96, 128, 3), np.uint8)
    taken = itertools.count()
    results = detector(((wide if next(taken) else square) for _ in range(60)), batch_size=4)
    assert next(results).size == (96, 96)
    assert next(taken) < 30


# -- results -----------------------------------------------------------------------------------------------------------


def test_what_a_result_says(ground, detector):
    (result,) = detector(some(ground.pictures)[1])
    assert result.names == [detector.classes[label] for label in result.labels]
    assert repr(result).startswith(f"<Prediction of {result.source}, {result.size[1]}×{result.size[0]}: ")
    assert repr(result).count(result.names[0]) == 1
    with pytest.raises(AttributeError):
        result.index = 3
    entries = json.loads(json.dumps(result.to_coco(12, dict(zip(detector.classes, (10, 20, 30, 40), strict=True)))))
    assert len(entries) == len(result.boxes)
    for entry, (x1, y1, x2, y2), score, label in zip(entries, result.boxes, result.scores, result.labels, strict=True):
        assert entry["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-4)
        assert entry["score"] == pytest.approx(score)
        assert (entry["image_id"], entry["category_id"]) == (12, 10 * (label + 1))
    found = result.to_supervision()
    assert np.array_equal(found.xyxy, result.boxes)
    assert found["class_name"].tolist() == result.names


def test_a_drawing_has_the_detections_above_the_threshold(ground, detector):
    (result,) = detector(some(ground.pictures)[1])
    picture = cv2.imread(result.source)
    assert np.array_equal(result.draw(score_thr=1.1), picture)
    threshold = float(result.scores[1] + result.scores[0]) / 2
    drawn = result.draw(score_thr=threshold)
    assert (drawn.shape, drawn.dtype) == (picture.shape, np.uint8)
    x1, y1, x2, y2 = result.boxes[0].round().astype(int)
    middle = np.abs(drawn.astype(int) - picture)[(y1 + y2) // 2]
    assert middle[max(x1 - 1, 0) : x1 + 2].max() > 20  # its left side is drawn, and none of the others
    assert (result.draw(0) != drawn).any()
    (of_array,) = detector(picture)
    assert np.array_equal(of_array.draw(threshold), drawn)
    assert np.array_equal(picture, cv2.imread(result.source))


# -- from which files --------------------------------------------------------------------------------------------------


@pytest.mark.stack
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_release_alone_is_enough(ground, detector, in_process, tmp_path, monkeypatch, ending):
    monkeypatch.chdir(tmp_path)
    status, printed = in_process(publish_model.main, "publish_model.py", ground.checkpoint, f"out.{ending}")
    assert status == 0, printed.err
    (release,) = tmp_path.glob(f"out-*.{ending}")
    released = mmcare.Predictor(str(release))
    assert (released.classes, released.task) == (detector.classes, "detection")
    assert_same(list(released(ground.pictures)), list(detector(ground.pictures)), 1e-6)


def test_a_config_by_file_or_name(ground, detector):
    file = ground.folder / "work_dirs/detector/detector.py"
    paths = some(ground.pictures)
    assert_same(list(mmcare.Predictor(str(file), ground.checkpoint)(paths)), list(detector(paths)))
    with pytest.raises(mmcare.UserError, match="does not fit the RetinaNet of this config"):
        mmcare.Predictor("detection/retinanet_care_s1", ground.checkpoint)


def test_classes_come_from_the_config_if_the_checkpoint_has_none(ground, detector, tmp_path):
    content = read_checkpoint(ground.checkpoint)
    torch.save({"state_dict": content["state_dict"]}, tmp_path / "bare.pth")
    cfg = Config.fromfile(ground.folder / "work_dirs/detector/detector.py")
    assert mmcare.Predictor(cfg, tmp_path / "bare.pth").classes == detector.classes
    cfg.test_dataloader.dataset.pop("metainfo")
    with pytest.raises(mmcare.UserError, match="names 80 classes, but the model has 4"):
        mmcare.Predictor(cfg, tmp_path / "bare.pth")
    cfg.test_dataloader.dataset.type = "mmdet.BaseDetDataset"
    with pytest.raises(mmcare.UserError, match=r"bare\.pth does not name its classes: give a config whose"):
        mmcare.Predictor(cfg, tmp_path / "bare.pth")


def test_weights_must_all_be_there(ground, tmp_path):
    content = read_checkpoint(ground.checkpoint)
    content["state_dict"].pop("bbox_head.retina_cls.weight")
    torch.save(content, tmp_path / "less.pth")
    with pytest.raises(mmcare.UserError, match="lacks 1 of the model's weights: bbox_head.retina_cls.weight"):
        mmcare.Predictor(tmp_path / "less.pth")


# -- bad input ---------------------------------------------------------------------------------------------------------


def png_of(width, height):
    """Return a PNG file whose header announces a size."""
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BAD = {
    "gone.jpg": (None, "there is no file {}: check the path"),
    "text.jpg": (b"hello", "{} is not a picture in a known format: give another file"),
    "empty.png": (b"", "{} is not a picture in a known format: give another file"),
    "cut.png": (png_of(40, 40), "{} cannot be decoded, as it is damaged or not a picture: replace it"),
    "bomb.png": (
        png_of(50_000, 50_000),
        "{} may be a decompression bomb and was not decoded: Image size (2500000000 pixels) exceeds limit of 178956970 "
        "pixels; scale it down",
    ),
    "gone.mp4": (None, "there is no file {}: check the path"),
    "text.mp4": (b"hello", "{} cannot be opened: it is damaged or not a video"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_picture_is_told_in_one_sentence_and_the_others_are_predicted(detector, ground, tmp_path, name, workers):
    content, told = BAD[name]
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    told = told.format(path)
    if not workers:
        with pytest.raises(mmcare.UserError) as refused:
            list(detector(path))
        assert str(refused.value) == told
    faults = []
    first, last = some(ground.pictures, 2)
    results = list(detector([first, str(path), last], workers=workers, on_error=lambda *fault: faults.append(fault)))
    assert [(source, str(error)) for source, error in faults] == [(str(path), told)]
    assert [(result.source, result.index) for result in results] == [(first, 0), (last, 2)]


def test_a_video_without_frames(detector, tmp_path):
    path = tmp_path / "clip.avi"
    header = write_video(tmp_path / "whole.avi", 3).read_bytes()
    path.write_bytes(header[: header.index(b"movi") + 4])
    with pytest.raises(mmcare.UserError, match=r"clip\.avi has no frame that can be decoded"):
        list(detector(path))


def test_a_picture_that_is_too_narrow_for_the_pipeline(detector):
    with pytest.raises(mmcare.UserError, match="picture 0, of 2000×1 pixels, fails in the pipeline: "):
        list(detector(np.zeros((1, 2000, 3), np.uint8)))


REFUSED = {
    "an empty folder": (lambda folder: folder, "there is no picture in the folder "),
    "a number that is no picture": (lambda _: [1.5], "a float is not a picture: give paths"),
    "a tensor": (lambda _: torch.zeros(3, 4, 4), "a Tensor is not a picture: give paths"),
    "floats": (lambda _: np.zeros((4, 4, 3)), r"an array of float64 and shape \(4, 4, 3\) is not a picture"),
    "five channels": (lambda _: np.zeros((4, 4, 5), np.uint8), "an array of 5 channels is not a picture"),
    "no camera": (lambda _: 93, "the camera 93 cannot be opened: check that it is connected"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_a_picture_is_refused(detector, tmp_path, name):
    give, told = REFUSED[name]
    with pytest.raises(mmcare.UserError, match=told):
        list(detector(give(tmp_path)))


def test_mistakes_of_the_arguments(ground, detector):
    with pytest.raises(mmcare.UserError, match="batch_size must be at least 1, not 0"):
        detector([], batch_size=0)
    with pytest.raises(mmcare.UserError, match="give a checkpoint too, on the command line as --model"):
        mmcare.Predictor("detection/retinanet_care_s1")
    with pytest.raises(mmcare.UserError, match=r"epoch_6\.pth is not a config: give a file that ends in \.py"):
        mmcare.Predictor(ground.checkpoint, ground.checkpoint)
    with pytest.raises(mmcare.UserError, match=r"there is no checkpoint gone\.pth"):
        mmcare.Predictor("gone.pth")
    with pytest.raises(mmcare.UserError, match='the device "disk" cannot be used'):
        mmcare.Predictor(ground.checkpoint, device="disk")
    if not torch.cuda.is_available():
        with pytest.raises(mmcare.UserError, match='the device "cuda" cannot be used .*: give "cpu", or fix the GPU'):
            mmcare.Predictor(ground.checkpoint, device="cuda")
