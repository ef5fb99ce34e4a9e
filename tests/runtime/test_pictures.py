"""Pictures are prepared as by mmcv, MMDetection and MMSegmentation, without them."""

import struct

import cv2
import mmcv
import numpy as np
import pytest
from exported_files import certificate, doubling
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import TRANSFORMS, DefaultScope
from PIL import Image

from mmcare.runtime import FileError, Input, Model, Resizing
from mmcare.runtime.pictures import prepare, read_picture
from mmcare.runtime.resizing import resize

MEAN = (123.675, 116.28, 103.53)


def noise(height, width, channels=(3,)):
    return np.random.default_rng(height * width).integers(0, 256, (height, width, *channels), np.uint8)


def made(scale=None, keep_ratio=True, multiple=None, shape=(None, 3, None, None)):
    return certificate(resizing=Resizing(scale, keep_ratio, multiple), input=Input("input", shape))


side = st.integers(1, 60)


@pytest.mark.stack
@settings(max_examples=150, deadline=None)
@given(side, side, st.integers(1, 130), st.integers(1, 130), st.sampled_from([(), (3,)]))
def test_interpolation_is_opencvs_to_the_last_bit(height, width, new_height, new_width, channels):
    picture = noise(height, width, channels)
    wanted = cv2.resize(picture, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resize(picture, new_width, new_height), wanted)


@pytest.mark.stack
@settings(max_examples=60, deadline=None)
@given(
    st.integers(20, 90), st.integers(20, 90), st.integers(20, 200), st.integers(20, 200), st.booleans(), st.booleans()
)
def test_a_picture_is_what_the_pipeline_makes_of_it(height, width, long, short, keep_ratio, multiple):
    steps = [dict(type="Resize", scale=(long, short), keep_ratio=keep_ratio)]
    if multiple:
        steps.append(dict(type="mmseg.ResizeToMultiple", size_divisor=32))
    picture = noise(height, width)
    with DefaultScope.overwrite_default_scope("mmseg" if multiple else "mmdet"):
        results = {"img": picture, "img_shape": picture.shape[:2], "ori_shape": picture.shape[:2]}
        for step in steps:
            results = TRANSFORMS.build(step)(results)
    found = prepare(picture, made((long, short), keep_ratio, 32 if multiple else None))
    np.testing.assert_array_equal(found.image, results["img"].transpose(2, 0, 1))
    assert (found.image.dtype, found.size, found.inner) == (np.float32, (height, width), results["img"].shape[:2])


@pytest.mark.stack
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_photo_is_read_as_by_mmcv(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    Image.fromarray(noise(24, 40)).resize((320, 192), Image.Resampling.BICUBIC).save(path, exif=exif, quality=95)
    np.testing.assert_array_equal(read_picture(path), mmcv.imread(str(path))[..., ::-1])


@pytest.mark.stack
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "I;16"])
def test_pictures_of_all_kinds_are_read_as_by_mmcv(tmp_path, mode):
    path = tmp_path / "a.png"
    if mode == "I;16":
        Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (20, 30), np.uint16)).save(path)
    else:
        Image.fromarray(noise(20, 30, (4,))).convert(mode).save(path)
    np.testing.assert_array_equal(read_picture(path), mmcv.imread(str(path))[..., ::-1])


def test_arrays_and_pil_images_are_rgb():
    picture = noise(20, 30)
    np.testing.assert_array_equal(read_picture(picture), picture)
    np.testing.assert_array_equal(read_picture(Image.fromarray(picture)), picture)
    np.testing.assert_array_equal(read_picture(picture[..., 0]), np.repeat(picture[..., :1], 3, -1))


def test_a_picture_is_padded_with_the_mean_colour():
    picture = noise(30, 40)
    found = prepare(picture, made(shape=(1, 3, 32, 64)))
    np.testing.assert_array_equal(found.image[:, :30, :40], picture.transpose(2, 0, 1))
    padding = np.concatenate((found.image[:, 30:].reshape(3, -1), found.image[:, :, 40:].reshape(3, -1)), 1)
    np.testing.assert_array_equal(padding, np.repeat(np.float32(MEAN)[:, None], padding.shape[1], 1))
    assert (found.inner, found.size) == ((30, 40), (30, 40))


def test_a_picture_that_does_not_fit_is_refused_unless_it_may_be_made_smaller():
    picture = noise(30, 40)
    fixed = made((128, 96), shape=(1, 3, 64, 64))
    with pytest.raises(FileError) as caught:
        prepare(picture, fixed)
    assert str(caught.value) == (
        "the picture, of 40×30 pixels, has 128×96 in the test pipeline, but the file takes 64×64: let it be made "
        "smaller with --fit (fit=True), or export the model with --dynamic"
    )
    found = prepare(picture, fixed, fit=True)
    assert (found.image.shape, found.inner) == ((3, 64, 64), (48, 64))
    np.testing.assert_array_equal(found.image[:, :48], resize(picture, 64, 48).transpose(2, 0, 1))


def test_pictures_that_cannot_be_read_are_told(tmp_path):
    files = {
        "text.png": b"hello",
        "cut.png": b"",
        "bomb.bmp": b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0),
    }
    whole = tmp_path / "whole.png"
    Image.fromarray(noise(60, 60)).save(whole)
    files["cut.png"] = whole.read_bytes()[:2000]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)

    def refused(name):
        with pytest.raises(FileError) as caught:
            read_picture(tmp_path / name)
        return str(caught.value).removeprefix(f"{tmp_path / name} ")

    assert refused("text.png") == "is not a picture in a known format: give another file"
    assert refused("cut.png") == "cannot be decoded, as it is damaged or not a picture: replace it"
    assert refused("none.png") == "cannot be read: No such file or directory"
    assert refused("bomb.bmp").startswith(
        "may be a decompression bomb and was not decoded: Image size (2500000000 pixels)"
    )
    with pytest.raises(FileError, match=r"is an array \(2, 2, 4\) of uint8: give uint8 \(H, W, 3\)"):
        read_picture(np.zeros((2, 2, 4), np.uint8))
    with pytest.raises(FileError, match="of 900×1 pixels, is too narrow to be resized"):
        prepare(noise(1, 900), made((100, 100)))


def test_a_file_of_a_part_finds_nothing(write):
    path = write(doubling(), certificate())
    with pytest.raises(FileError, match="has the backbone of a model only, which finds nothing: export all of it"):
        Model(path)
