"""Exported files as rows of tools/benchmark.py."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers import DETECTOR, load_tool
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmcare.benchmark import read_csv, text_table, timing, write_csv
from mmcare.benchmark.table import speedups
from mmcare.export import certification, export


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a folder with a tiny detector and a file of its backbone."""
    folder = tmp_path_factory.mktemp("exported")
    config = folder / "detector.py"
    config.write_text(DETECTOR + "model['backbone'] = {**model['backbone'], 'init_cfg': None}\n")
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    torch.save({"state_dict": model.state_dict()}, folder / "detector.pth")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(certification, "ROUNDS", (1, 1))
        file = export(str(config), folder / "detector.pth", folder / "a.onnx", part="backbone", shape=(64, 64))
    return SimpleNamespace(folder=folder, file=file)


@pytest.fixture
def tool(monkeypatch, in_process, exported):
    monkeypatch.chdir(exported.folder)
    monkeypatch.setitem(timing.PRODUCT, "cpu", 64)
    return partial(in_process, load_tool("benchmark").main, "benchmark.py")


def test_a_file_is_a_row_beside_the_plain_form_of_its_network(tool, exported, tmp_path):
    out = tmp_path / "rows.csv"
    options = ["--forms", "plain", "--shape", 64, "--threads", 1, "--repeats", 2, "--warmup", 0, "--out", out]
    status, said = tool("detector.py", "a.onnx", *options)
    assert status == 0, said.err
    rows = {(row.subject, row.part, row.form): row for row in read_csv(out)}
    file, plain = rows["a.onnx", "backbone", "onnx"], rows["detector.py", "backbone", "plain"]
    assert file.network == "detector.py"
    assert (file.macs, file.parameters) == (plain.macs, plain.parameters)
    assert file.median > 0 and file.peak >= 0 and "1 thread," in file.machine
    assert 0 < file.difference < 1e-4
    (printed,) = (line for line in said.out.splitlines() if line.startswith("a.onnx"))
    assert printed.split()[-1] == f"{plain.median / file.median:.2f}×"


def test_openvino_computes_a_file_in_bf16_too(tool, exported, tmp_path):
    checkpoint, out = exported.folder / "detector.pth", tmp_path / "rows.csv"
    export("detector.py", checkpoint, exported.folder / "a.xml", target="openvino", part="backbone", shape=(64, 64))
    options = ["--forms", "plain", "bf16", "--shape", 64, "--threads", 1, "--repeats", 1, "--warmup", 0, "--out", out]
    status, said = tool("a.xml", "a.onnx", *options)
    assert status == 0, said.err
    differences = {(row.subject, row.form): row.difference for row in read_csv(out)}
    assert list(differences) == [("a.xml", "openvino"), ("a.xml", "openvino bf16"), ("a.onnx", "onnx")]
    assert differences["a.xml", "openvino"] < 1e-4 < differences["a.xml", "openvino bf16"] < 0.05


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--train"], "a.onnx is an exported file, which runs on the CPU and is not trained: omit it"),
        (["--batch", 2], "a.onnx takes 1 image at a time, not 2: give --batch 1"),
        (["--shape", 32], "a.onnx takes images of 64×64 only, not of 32×32: give them with --shape"),
        (["--profile"], "--profile profiles torch's operators, and a.onnx is an exported file: omit it"),
        (["--baseline", "b.onnx", "onnx"], "the baseline b.onnx onnx is not among the subjects and forms: add"),
    ],
)
def test_what_a_file_is_not_measured_for_is_told(tool, args, message):
    status, said = tool("a.onnx", *args)
    assert status == 2
    assert said.err.startswith(f"error: {message}")


def test_a_model_with_its_decoding_is_compared_with_the_network_without(make_row):
    plain = make_row(subject="c", part="whole")
    file = make_row(subject="a.onnx", part="model", form="onnx", network="c", median=0.05)
    other = make_row(subject="b.xml", part="model", form="openvino", median=0.025, parameters=None, macs=None)
    assert speedups([plain, file, other]) == [1.0, 2.0, None]
    assert speedups([plain, file, other], ("a.onnx", "onnx")) == [None, 1.0, 2.0]
    assert other.share is None
    assert "part model: with its decoding" in text_table([plain, file, other])


def test_rows_of_earlier_releases_are_read(tmp_path, make_row):
    path = tmp_path / "rows.csv"
    write_csv([make_row()], path)
    lines = [line.rpartition(",")[0] for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines))
    assert read_csv(path) == [make_row()]
