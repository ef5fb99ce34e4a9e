"""tools/export.py: its options, its files and its refusals."""

import subprocess
import sys
from functools import partial

import onnx
import pytest
import torch
from helpers import LargestFile, load_tool, relative_error


@pytest.fixture
def model(exported):
    return exported("care", "retinanet")


@pytest.fixture
def refused(refusal, monkeypatch, tmp_path, model):
    """Run the tool with the tiny RetinaNet, which must refuse the options; return the message."""
    monkeypatch.chdir(tmp_path)
    return partial(refusal, load_tool("export").main, "export.py", model.config, model.checkpoint, "--no-metric")


def test_a_backbone_is_exported_with_the_normalization(in_process, monkeypatch, tmp_path, model, run, pictures):
    monkeypatch.chdir(tmp_path)
    tool = partial(in_process, load_tool("export").main, "export.py", model.config, model.checkpoint)
    status, printed = tool("--part", "backbone", "--shape", 64, 96)
    assert status == 0
    assert printed.err.splitlines() == [
        "converting the backbone to onnx",
        "comparing the file with the trained model at 64×96",
        "timing both",
    ]
    assert printed.out.startswith("work_dirs/export/retinanet_backbone.onnx (")
    images = pictures(1, 64, 96)
    found = run("work_dirs/export/retinanet_backbone.onnx", images)
    assert found.names == ["c2", "c3", "c4", "c5"]
    mean, std = (torch.tensor(values)[:, None, None] for values in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    with torch.no_grad():
        maps = model.model.backbone((images - mean) / std)
    for name, wanted in zip(found.names, maps, strict=True):
        assert relative_error(getattr(found, name), wanted) < 1e-5


def test_a_network_is_exported_without_decoding(exported, run, pictures):
    model = exported("casvit", "upernet")
    images = pictures(2, 64, 96)
    found = run(model.export("network.onnx", part="network", shape=(64, 96), batch=2), images)
    assert found.names == ["logits"]
    data = model.model.data_preprocessor({"inputs": list(images.flip(1)), "data_samples": [None, None]})
    with torch.no_grad():
        wanted = model.model.decode_head(model.model.extract_feat(data["inputs"]))
    assert relative_error(found.logits, wanted) < 1e-5


def test_a_file_has_standard_operators_only_and_nothing_of_this_machine(model):
    path = model.export("standard.onnx", shape=(64, 64), opset=18)
    file = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in file.opset_import] == [("", 18)]
    assert not file.functions
    assert {node.domain for node in file.graph.node} == {""}
    assert [node.op_type for node in file.graph.node].count("NonMaxSuppression") == 1
    assert b"site-packages" not in path.read_bytes() and str(model.folder).encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "onx"], "there is no format 'onx': did you mean onnx?"),
        (["--part", "head"], "there is no part 'head': give one of model, network, backbone"),
        (["--opset", "11"], "onnx files have an opset from 18 to 21, not 11"),
        (["-o", "model.pt"], "model.pt does not end in .onnx: give another name with -o"),
        (["--batch", "0"], "a file takes at least 1 image at a time, not 0: give another --batch"),
        (["--shape", "16"], "images of 16×16 are too small: give --shape with sides of 32 or more"),
        (
            ["--dynamic", "--batch", "2"],
            "a dynamic file takes any number and size of images: omit --shape and --batch, or --dynamic",
        ),
        (
            ["--cfg-options", "model.test_cfg.max_per_img=-1"],
            "test_cfg.max_per_img is -1, but an exported file returns a fixed number of boxes: set it to that number",
        ),
        (
            ["--cfg-options", "model.test_cfg.nms_pre=-1"],
            "test_cfg.nms_pre is -1, with which MMDetection leaves out a candidate of each level: set it to the "
            "largest number of candidates",
        ),
        (
            ["--cfg-options", "model.test_cfg.nms.type=soft_nms"],
            "test_cfg has nms of the type 'soft_nms', which no exported file computes: set it to \"nms\"",
        ),
    ],
)
def test_what_cannot_be_exported_is_told(refused, options, message, tmp_path):
    assert refused(*options) == message
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_told(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert refused() == 'exporting to onnx needs onnxscript: install what it needs with `pip install "mmcare[onnx]"`'


def test_nothing_heavy_is_imported_before_that():
    code = (
        "import sys; sys.modules['onnx'] = None; sys.argv = ['export.py', 'a.py', 'b.pth']\n"
        "from mmcare.cli.commands import export\n"
        "try: export.main()\n"
        "except Exception as error: print(error, *sys.modules, sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    message, *modules = done.stdout.splitlines()
    assert message.startswith("exporting to onnx needs onnx: ")
    assert not {"torch", "mmengine", "numpy", "onnxscript"} & set(modules)


def test_a_file_is_replaced_only_on_demand(refused, tmp_path):
    (tmp_path / "a.onnx").write_text("mine")
    assert refused("-o", "a.onnx") == "a.onnx exists: add --overwrite to replace it, or give another name with -o"
    assert (tmp_path / "a.onnx").read_text() == "mine"


def test_a_full_disk_leaves_no_file(refused, tmp_path):
    with LargestFile(10_000):
        message = refused("--part", "backbone", "--shape", "64", "-o", "a.onnx")
    assert "a.onnx (" in message and message.endswith("cannot be written: File too large")
    assert not list(tmp_path.iterdir())
