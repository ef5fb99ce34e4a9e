"""ExecuTorch files; test_runtimes_agree.py compares them with the model."""

import copy
import struct
import subprocess
import sys
import warnings
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from helpers import relative_error

from mmcare import runtime
from mmcare.errors import UserError
from mmcare.export import SlowerWarning
from mmcare.export.preparation import prepare

SHAPE = (64, 96)


@pytest.fixture(scope="module")
def file(exported):
    """Return the file of a tiny backbone."""
    return exported("casvit", "semantic_fpn").export("fixed.pte", target="executorch", part="backbone", shape=SHAPE)


def certify(path, content, made, **changes):
    """Write a file with a certificate that fits it; return its path."""
    for name, each in runtime.attach_certificate(replace(made, **changes), {path.name: content}, path.name).items():
        path.with_name(name).write_bytes(each)
    return path


def without_segments(content):
    """Return a file whose weights and programs of XNNPACK are zeros."""
    (start,) = struct.unpack_from("<Q", content, 24)
    return content[:start] + bytes(len(content) - start)


def test_the_backbone_is_one_program_of_xnnpack(file):
    operators = runtime.open_file(file).certificate.operators
    assert operators["XnnpackBackend"] == 1
    assert not {name for name in operators if "split" in name}
    assert b"site-packages" not in file.read_bytes()


def test_a_file_prints_nothing_when_it_runs(file, capfd):
    runtime.open_file(file, threads=1).run(np.zeros((1, 3, *SHAPE), np.float32))
    assert capfd.readouterr() == ("", "")


def test_int8_convolutions_are_near_those_of_the_model(exported, pictures, tmp_path):
    model = exported("casvit", "retinanet")  # whose head has the same weights for all levels
    for number in range(3):
        picture = pictures(number + 1, *SHAPE)[number].permute(1, 2, 0).numpy()
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture[..., ::-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlowerWarning)
        path = model.export(
            "int8.pte", target="executorch", part="network", shape=SHAPE, quantize="int8", calibration=tmp_path
        )
    file = runtime.open_file(path, threads=1)
    images = pictures(1, *SHAPE)
    found = file.run(images.numpy().astype(np.float32))
    network = prepare(copy.deepcopy(model.model), model.task, part="network", shape=SHAPE)
    with torch.no_grad():
        maps = dict(zip(network.outputs, network.module(images.float()), strict=True))
    errors = {name: relative_error(torch.from_numpy(value), maps[name]) for name, value in found.items()}
    assert 1e-3 < max(error for name, error in errors.items() if name.startswith("cls_score")) < 0.05
    assert max(errors.values()) < 0.2  # the untrained boxes are near zero
    record = file.certificate.quantization
    assert record["kind"] == "int8" and record["batches"] == 3
    assert {"backbone.stages.2.blocks.0", "bbox_head.cls_convs"} <= record["sensitivity"].keys()


def test_a_damaged_file_is_refused(file, tmp_path):
    content, made = file.read_bytes(), runtime.open_file(file).certificate
    paths = [
        certify(tmp_path / "version.pte", content[:4] + b"ET00" + content[8:], made),
        certify(tmp_path / "zeros.pte", without_segments(content), made),
    ]
    code = (
        "import sys; from mmcare import runtime\n"
        "for path in sys.argv[1:]:\n"
        "    try: runtime.open_file(path)\n"
        "    except runtime.FileError as error: print(error)"
    )
    # In a process of its own, as the runtime may read or write where it should not.
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    version, zeros = done.stdout.splitlines()
    assert version.startswith(f"{paths[0]} cannot be opened by ExecuTorch: ")
    assert "Program identifier 'ET00' != expected 'ET12'" in version
    assert zeros.startswith(f"{paths[1]} cannot be opened by ExecuTorch: ")
    assert "XNNPACK Delegate Serialization Format version identifier ''" in zeros


def test_a_certificate_of_another_file_is_refused(file, tmp_path):
    made = runtime.open_file(file).certificate
    path = certify(tmp_path / "a.pte", file.read_bytes(), made, outputs=made.outputs[:1])
    with pytest.raises(runtime.FileError, match=r"a\.pte has 1 input and 4 outputs, not the 1 and 1 of its certif"):
        runtime.open_file(path)
    path = certify(path, file.read_bytes(), made, input=runtime.Input("input", (1, 3, 64, 64)))
    with pytest.raises(runtime.FileError, match=r"a\.pte takes images \(1, 3, 64, 96\), not \(1, 3, 64, 64\)"):
        runtime.open_file(path).run(np.zeros((1, 3, 64, 64), np.float32))


def test_another_precision_is_refused(file):
    with pytest.raises(runtime.FileError, match="in the precision of the file: omit the precision"):
        runtime.open_file(file, precision="bf16")


def test_a_file_for_all_sizes_is_refused(exported):
    with pytest.raises(UserError, match="executorch files take images of one size: give --shape and --batch"):
        exported("casvit", "semantic_fpn").export("dynamic.pte", target="executorch", dynamic=True)
