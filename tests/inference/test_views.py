"""An image is looked at as the model gets it, and a point in the file is found there."""

import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from helpers import DETECTOR, SEGMENTOR
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

import mmcare
from mmcare.inference import read_backbone, read_network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a config and a checkpoint of a tiny detector and segmentor, and a picture of 90×70."""
    folder = tmp_path_factory.mktemp("views")
    for name, text in (("detector", DETECTOR), ("segmentor", SEGMENTOR)):
        (folder / f"{name}.py").write_text(text)
        cfg = Config.fromfile(folder / f"{name}.py")
        init_default_scope(cfg.default_scope)
        torch.save({"state_dict": MODELS.build(cfg.model).state_dict()}, folder / f"{name}.pth")
    torch.save(mmcare.create_backbone("care_s0").state_dict(), folder / "care_s0.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "picture.png"), pixels)
    return folder


def network(folder, name, **options):
    return read_network(str(folder / f"{name}.pth"), str(folder / f"{name}.py"), options)


def seen(infer, folder, name):
    """Return what the backbone of a whole model gets in mmdet's or mmseg's inference."""
    cfg = Config.fromfile(folder / f"{name}.py")
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.eval()
    model.cfg = cfg
    model.dataset_meta = {}
    inputs = []
    model.backbone.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    infer(model, str(folder / "picture.png"))
    return inputs[0][0]


@pytest.mark.stack
def test_a_detectors_backbone_gets_the_same(folder):
    from mmdet.apis import inference_detector

    view = network(folder, "detector").view(folder / "picture.png", (45, 35))
    assert torch.equal(view.image, seen(inference_detector, folder, "detector"))
    # 90×70 is resized to 1029×800 and padded to 1056×800.
    assert view.image.shape == (3, 800, 1056)
    assert view.picture.shape == (800, 1029, 3)
    assert view.point == pytest.approx((45 * 1029 / 90, 400))


@pytest.mark.stack
def test_a_segmentors_backbone_gets_the_same(folder):
    from mmseg.apis import inference_model

    view = network(folder, "segmentor").view(folder / "picture.png", (9, 7))
    assert torch.equal(view.image, seen(inference_model, folder, "segmentor"))
    # 90×70 is resized to 658×512, and the width rounded up to a multiple of 32.
    assert view.image.shape == (3, 512, 672)
    assert view.picture.shape == (512, 672, 3)
    assert view.point == pytest.approx((67.2, 51.2))


def test_a_picture_is_in_rgb_and_lies_on_the_image(folder):
    view = network(folder, "detector").view(folder / "picture.png")
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    assert np.allclose(view.image[:, :, :1029].permute(1, 2, 0), (view.picture - mean) / std, atol=1e-5)
    assert not view.image[:, :, 1029:].any()


def test_padding_of_a_pipeline_is_not_taken_for_the_image(folder):
    text = (
        DETECTOR
        + """
square = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(180, 180), keep_ratio=True),
    dict(type="Pad", size=(192, 192), pad_val=dict(img=(114, 114, 114))),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
test_dataloader = dict(dataset=dict(pipeline=square))
"""
    )
    (folder / "padded.py").write_text(text)
    view = read_network(str(folder / "detector.pth"), str(folder / "padded.py")).view(folder / "picture.png", (80, 69))
    assert view.image.shape == (3, 192, 192)
    assert view.picture.shape == (140, 180, 3)
    assert view.point == (160, 138)


def test_a_point_is_in_the_image_as_it_is_shown(folder):
    turned = Image.new("RGB", (60, 40))
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90°: 40 wide, 60 high
    turned.save(folder / "turned.jpg", exif=exif)
    net = network(folder, "detector")
    assert net.view(folder / "turned.jpg", (20, 59)).point == pytest.approx((400, 1180))
    assert net.view(folder / "turned.jpg").point == pytest.approx((400, 600))
    message = r"the point \(41, 30\) is outside .*turned\.jpg, which is 40 pixels wide and 60 high"
    with pytest.raises(mmcare.UserError, match=message):
        net.view(folder / "turned.jpg", (41, 30))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_pictures_of_all_kinds_are_taken(folder, mode):
    file = folder / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
    Image.new("RGB", (64, 64), (200, 100, 50)).convert(mode).save(file)
    assert network(folder, "detector").view(file).picture.shape == (800, 800, 3)


def test_a_backbone_alone_gets_images_as_a_detector_does(folder):
    alone = read_backbone(str(folder / "care_s0.pth"), "care_s0")
    assert alone.name == "CARE s0"
    assert not alone.backbone.training
    view = alone.view(folder / "picture.png", (45, 35))
    same = network(folder, "detector").view(folder / "picture.png", (45, 35))
    assert torch.equal(view.image, same.image)
    assert np.array_equal(view.picture, same.picture)
    assert view.point == same.point


def bomb(width, height):
    """Return a PNG file of a claimed size, with a few bytes of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(99)))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def narrow(folder):
    cv2.imwrite(str(folder / "narrow.png"), np.zeros((4000, 1, 3), np.uint8))
    return (folder / "narrow.png").read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nix.jpg", lambda _: None, "{} cannot be read: No such file or directory"),
        ("notes.jpg", lambda _: b"notes", "{} is not a picture in a known format: give another file"),
        ("empty.png", lambda _: b"", "{} is not a picture in a known format"),
        ("bomb.png", lambda _: bomb(60000, 60000), "{} may be a decompression bomb and was not decoded: "),
        (
            "cut.png",
            lambda folder: (folder / "picture.png").read_bytes()[:5000],
            "{} cannot be decoded, as it is dam",
        ),
        ("narrow.png", narrow, "{}, of 1×4000 pixels, fails in the pipeline: "),
    ],
)
def test_what_is_no_picture_is_refused(folder, name, content, message):
    content = content(folder)
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(mmcare.UserError) as refused:
        network(folder, "detector").view(folder / name)
    assert str(refused.value).startswith(message.format(folder / name))
    assert "\n" not in str(refused.value)


def test_a_folder_is_no_picture(folder):
    with pytest.raises(mmcare.UserError, match="cannot be read: Is a directory"):
        network(folder, "detector").view(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model.backbone": dict(type="ResNet", depth=18, _delete_=True)},
            "the backbone of .*detector.py is ResNet: only CARE and CAS-ViT can be visualized",
        ),
        ({"model.backbone.arch": "s0"}, "does not fit CARE s0"),
        ({"model.backbone": None}, "the model of .*detector.py has no backbone"),
        (
            {"test_dataloader.dataset.pipeline": [], "test_pipeline": []},
            "the test pipeline of .*detector.py does not start with LoadImageFromFile",
        ),
        (
            {"test_dataloader.dataset.pipeline.1.type": "Size"},
            "the config's test_dataloader.dataset.pipeline.1 has t",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder, options, message):
    with pytest.raises(mmcare.UserError, match=message):
        network(folder, "detector", **options)


@pytest.mark.parametrize(
    ("name", "checkpoint", "message"),
    [
        ("care_s7", "care_s0.pth", "^mmcare has no backbone 'care_s7': did you mean "),
        ("resnet", "care_s0.pth", "^mmcare has no backbone 'resnet': choose one of care_s0, care_s1, "),
        ("care_s1", "care_s0.pth", "does not fit CARE s1"),
        ("care_s0", "nix.pth", "^there is no checkpoint .*nix.pth"),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused(folder, name, checkpoint, message):
    with pytest.raises(mmcare.UserError, match=message):
        read_backbone(str(folder / checkpoint), name)
