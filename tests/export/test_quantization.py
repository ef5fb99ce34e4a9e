"""Smaller numbers: --quantize fp16 and int8."""

import json
import time
from functools import partial

import numpy as np
import onnx
import pytest
import torch
from helpers import load_tool, relative_error
from PIL import Image

from mmcare.export.quantization import onnx_int8
from mmcare.export.quantization.agreement import agreement
from mmcare.export.quantization.search import search
from mmcare.export.quantization.speed import compare_speed
from mmcare.runtime import open_file, openvino_core


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    """Return a folder of three pictures of different sizes."""
    folder = tmp_path_factory.mktemp("calibration")
    generator = np.random.RandomState(0)
    for number, size in enumerate(((96, 64), (64, 96), (120, 80))):
        picture = Image.fromarray(generator.randint(0, 256, (6, 6, 3), dtype=np.uint8))
        picture.resize(size, Image.Resampling.NEAREST).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def refused(refusal, monkeypatch, tmp_path, exported):
    model = exported("care", "retinanet")
    monkeypatch.chdir(tmp_path)
    return partial(refusal, load_tool("export").main, "export.py", model.config, model.checkpoint, "--no-metric")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quantize", "int4"], "there are no onnx files with 'int4': did you mean int8?"),
        (
            ["--quantize", "int8"],
            "int8 needs pictures like those to be predicted, to take the ranges of numbers from: add --calibration "
            "with a folder of them",
        ),
        (
            ["--quantize", "fp16", "--calibration", "pictures"],
            "fp16 takes no ranges from pictures: omit --calibration",
        ),
        (["--calibration", "pictures"], "--calibration has pictures for --quantize int8: add that, or omit them"),
        (
            ["--quantize", "int8", "--calibration", "pictures"],
            "--calibration pictures is not a folder: give a folder of pictures like those to be predicted",
        ),
    ],
)
def test_calibration_pictures_belong_to_int8(refused, options, message, tmp_path):
    assert refused(*options) == message
    assert not list(tmp_path.iterdir())


def test_a_damaged_calibration_picture_is_told(refused, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_text("none")
    message = refused("--quantize", "int8", "--calibration", "pictures")
    assert message == "pictures/a.png is not a picture in a known format: give another file"


def test_fp16_halves_the_weights_alone(exported, pictures):
    model = exported("casvit", "retinanet")
    export = partial(model.export, part="backbone", shape=(64, 96))
    images = pictures(1, 64, 96).numpy().astype(np.float32)
    whole = export("whole.onnx")
    wanted = open_file(whole, threads=1).run(images)
    halves = [export("half.onnx", quantize="fp16"), export("half.xml", target="openvino", quantize="fp16")]
    for path in halves:
        half = open_file(path, threads=1)
        assert half.certificate.quantization == {"kind": "fp16", "numbers": "weights"}
        found = half.run(images)
        errors = [relative_error(torch.from_numpy(found[name]), torch.from_numpy(wanted[name])) for name in wanted]
        assert 1e-5 < max(errors) < 2e-3
    kinds = {tensor.data_type for tensor in onnx.load(halves[0]).graph.initializer if len(tensor.dims) == 4}
    assert kinds == {onnx.TensorProto.FLOAT16}
    weights = sum(value.numel() for name, value in model.model.backbone.named_parameters() if value.dim() == 4)
    assert halves[1].with_suffix(".bin").stat().st_size < 3 * weights < whole.stat().st_size


def test_an_int8_onnx_file_rounds_convolutions_alone_and_is_written_if_slower(
    exported, calibration, in_process, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(onnx_int8, "compare_speed", lambda run: ({"float32_ms": 1.0, "int8_ms": 2.0}, "it is slower"))
    model = exported("care", "retinanet")
    status, printed = in_process(
        load_tool("export").main,
        "export.py",
        model.config,
        model.checkpoint,
        *("--no-metric", "--part", "network", "--shape", "64", "96"),
        *("--quantize", "int8", "--calibration", calibration, "--max-images", "2"),
    )
    assert status == 3
    assert printed.err.endswith("warning: it is slower\n")
    path = tmp_path / "work_dirs/export/retinanet_network_int8.onnx"
    assert path.with_name("retinanet_network_int8_sensitivity.png").stat().st_size > 1000
    record = open_file(path).certificate.quantization
    assert record["batches"] == 2
    blocks = record["sensitivity"]
    assert {"backbone.stem", "backbone.stages.2.blocks.0", "neck.fpn_convs", "bbox_head.cls_convs"} <= blocks.keys()
    assert list(blocks.values()) == sorted(blocks.values(), reverse=True) and min(blocks.values()) > 0
    assert set(record["float_layers"]) < blocks.keys()
    assert record["held"]["written"]["agreement"] > 1 - 0.018
    graph = onnx.load(path).graph
    nodes = {name: node for node in graph.node for name in node.output}
    small = [node.input[1] for node in graph.node if node.op_type == "Conv" and node.input[1] in nodes]
    assert small and not any(part in name for name in small for part in (".near_", "interaction.conv", "retina"))
    returned = [nodes[output.name].op_type for output in graph.output]
    assert set(returned) == {"Conv"}


def test_an_int8_openvino_file_agrees_with_the_float32_one(exported, calibration, pictures):
    model = exported("care", "semantic_fpn")
    options = dict(target="openvino", shape=(64, 96), quantize="int8", calibration=calibration)
    with pytest.warns() as caught:  # on a small model it may be slower
        path = model.export("int8.xml", **options)
    file = open_file(path, threads=1)
    record = file.certificate.quantization
    assert record["kind"] == "int8" and record["batches"] == 3
    assert record["held"]["written"]["agreement"] > 1 - 0.018
    assert {"backbone.stem", "neck.fpn_convs", "decode_head.conv_seg"} <= record["sensitivity"].keys()
    slower = record["latency"]["int8_ms"] >= record["latency"]["float32_ms"]
    assert any("is not faster in int8" in str(warning.message) for warning in caught) == slower
    ops = openvino_core().read_model(path).get_ops()
    assert "FakeQuantize" in {op.get_type_name() for op in ops}
    images = pictures(1, 64, 96)
    found = file.run(images.numpy().astype(np.float32))
    wanted = model.predict(images)[0].pred_sem_seg.data
    assert (found["output"] == wanted.numpy()).mean() > 0.9


class Trials:
    """Blocks whose error is known: the map is 1 plus the errors of the blocks in int8."""

    def __init__(self, errors):
        self.errors, self.groups = errors, tuple(errors)

    def run(self, floats):
        value = np.array([1 + sum(error for group, error in self.errors.items() if group not in floats)])
        return [({"map": value}, {"map": value})]

    def content(self, floats):
        return json.dumps(sorted(floats)).encode()


def test_the_fewest_blocks_stay_in_float():
    found = search(Trials({"a": 0.005, "b": 0.1, "c": 0.012, "d": 0.03}), metric=None)
    assert found.floats == ("b", "d")
    assert list(found.errors) == ["b", "d", "c", "a"]
    assert found.errors == pytest.approx({"a": 0.005, "b": 0.1, "c": 0.012, "d": 0.03})
    assert found.scores["int8"]["agreement"] == pytest.approx(1 - 0.147)
    assert found.scores["written"]["agreement"] == pytest.approx(1 - 0.017)


def test_a_block_becomes_int8_again_if_the_metric_does_not_need_it():
    def metric(content):
        return {"mAP": 0.5 if "c" in json.loads(content) else 0.45, "mIoU": 0.7}

    found = search(Trials({"a": 0.1, "b": 0.3, "c": 0.2}), metric)
    assert found.floats == ("c",)
    assert found.scores == {
        "float32": {"mAP": 0.5, "mIoU": 0.7},
        "int8": {"mAP": 0.45, "mIoU": 0.7},
        "written": {"mAP": 0.5, "mIoU": 0.7},
    }


def test_agreement_of_detections_counts_partners_by_score():
    boxes = np.array([[[0, 0, 10, 10, 0.9], [20, 20, 30, 30, 0.3], [0, 0, 0, 0, 0]]], dtype=np.float32)
    labels = np.array([[1, 2, -1]])
    moved = boxes + np.array([1, 0, 1, 0, 0], dtype=np.float32)
    same = {"dets": boxes, "labels": labels}
    assert agreement([same], [same]) == 1
    assert agreement([same], [{"dets": moved, "labels": labels}]) == 1
    assert agreement([same], [{"dets": boxes, "labels": np.array([[1, 0, -1]])}]) == pytest.approx(0.75)
    assert agreement([same], [{"dets": boxes, "labels": np.array([[-1, -1, -1]])}]) == 0


def test_a_slower_file_is_told_with_both_times():
    record, warning = compare_speed({"float32": lambda: None, "int8": lambda: time.sleep(0.005)})
    assert record["int8_ms"] >= 5 > record["float32_ms"]
    assert warning.startswith(
        f"the file is not faster in int8 on this machine, where it takes {record['int8_ms']:.1f} ms"
    )
    record, warning = compare_speed({"float32": lambda: time.sleep(0.005), "int8": lambda: None})
    assert warning is None
