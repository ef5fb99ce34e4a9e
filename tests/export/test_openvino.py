"""OpenVINO files against MMDetection's and MMSegmentation's own predictions."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_onnx import assert_same

from mmcare.runtime import FileError
from mmcare.runtime.sessions import open_session


def compute(path, images):
    """Run a file on images (B, 3, H, W) in float32, and return its outputs by name."""
    values = open_session(path, threads=1, precision=None).run(images.numpy().astype(np.float32))
    return SimpleNamespace(**{name: torch.from_numpy(value) for name, value in values.items()}, names=list(values))


def test_a_dynamic_file_equals_the_model_at_any_size_and_number_of_images(exported, pictures):
    model = exported("care", "mask_rcnn")
    path = model.export("dynamic.xml", target="openvino", dynamic=True)
    for batch, height, width in ((1, 64, 64), (2, 97, 130)):
        images = pictures(batch, height, width)
        assert_same(compute(path, images), model.predict(images), (height, width))


def test_signals_can_be_handled_after_files_were_closed(exported):
    path = exported("casvit", "retinanet").export("signals.xml", target="openvino", part="backbone", shape=(64, 64))
    code = (
        "import faulthandler, os, signal, sys\n"
        "faulthandler.enable()\n"  # has a stack of its own, which OpenVINO restores
        "from mmcare.runtime import open_file\n"
        "files = [open_file(path) for path in 2 * sys.argv[1:]]\n"
        "del files[0], files[0]\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled'))\n"
        "os.kill(os.getpid(), signal.SIGUSR1)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n")


def test_a_precision_that_openvino_has_not_is_told(tmp_path):
    with pytest.raises(FileError) as caught:
        open_session(tmp_path / "a.xml", None, "f8")
    assert str(caught.value) == "OpenVINO has no precision 'f8': give one of f32, bf16, f16"
