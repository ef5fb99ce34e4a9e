"""LiteRT files against MMDetection's and MMSegmentation's own predictions."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_onnx import assert_same

from mmcare.errors import UserError
from mmcare.runtime import open_file

SHAPE = (90, 128)


# The sizes of the maps are odd, and several images take another way through the converter than the one of
# test_runtimes_agree.py.
@pytest.mark.parametrize(("family", "head"), [("casvit", "retinanet"), ("care", "semantic_fpn")])
def test_a_file_equals_the_model(exported, pictures, capfd, family, head):
    model = exported(family, head)
    path = model.export("fixed.tflite", target="litert", shape=SHAPE, batch=2)
    written = capfd.readouterr()
    assert written.out == "" and "LiteRT" not in written.err and "WARNING" not in written.err
    file = open_file(path, threads=1)
    images = pictures(2, *SHAPE)
    found = {name: torch.from_numpy(value) for name, value in file.run(images.numpy().astype(np.float32)).items()}
    assert_same(SimpleNamespace(**found, names=list(found)), model.predict(images), SHAPE)
    assert file.takes == (2, *SHAPE)
    assert file.certificate.operators["CONV_2D"] > 10


def test_a_file_of_all_sizes_is_refused(exported):
    model = exported("care", "semantic_fpn")
    with pytest.raises(UserError) as refusal:
        model.export("dynamic.tflite", target="litert", dynamic=True)
    assert str(refusal.value) == "litert files take images of one size: give --shape and --batch instead of --dynamic"
    assert not (model.folder / "dynamic.tflite").exists()
