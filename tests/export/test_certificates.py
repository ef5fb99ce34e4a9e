"""What an export measures and certifies, and exported files in tools/test.py."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from ground import KEPT, RESIZED, write_ground
from helpers import CONFIGS, ROOT, load_tool

from mmcare import UserError
from mmcare.export import certification
from mmcare.runs import Evaluation, load_config
from mmcare.runtime import ExportedFile, draw_probe, open_file

FILES = {
    "retinanet": ("care", "certified.onnx", dict(dynamic=True)),
    "mask_rcnn": ("casvit", "certified.onnx", dict(shape=(128, 128), batch=2)),
    "semantic_fpn": ("care", "certified.xml", dict(target="openvino", dynamic=True)),
}
"""A file for each kind of result: its family, its name, and the options of its export."""


@pytest.fixture(scope="module")
def measured(exported):
    """Return a function from a head to a model with test data, its file and the certificate of that."""
    made = {}

    def measured(head):
        if head not in made:
            family, name, options = FILES[head]
            model = exported(family, head)
            config = write_ground(model, model.folder / "ground", RESIZED if head == "retinanet" else KEPT)
            file = model.export(name, config=config, metric=True, **options)
            made[head] = SimpleNamespace(model=model, config=config, file=file, certificate=open_file(file).certificate)
        return made[head]

    return measured


@pytest.fixture
def tool(own_process, in_process, monkeypatch, tmp_path):
    """Run tools/test.py in this process; return its exit status and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "0")
    return partial(in_process, load_tool("test").main, "test.py", "--work-dir", "tested")


# -- the metric --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", FILES)
def test_a_file_scores_what_the_model_scores(measured, tool, tmp_path, head):
    given = measured(head)
    metric = given.certificate.measured.metric
    assert metric.images == 4
    assert 0.15 < metric.pytorch < 1
    assert abs(metric.file - metric.pytorch) <= 0.002
    status, printed = tool(given.config, given.file)
    assert status == 0, printed.err[-2000:]
    (written,) = tmp_path.glob("tested/*/*.json")
    scale = 100 if metric.name == "mIoU" else 1
    assert json.loads(written.read_text())[metric.name] == pytest.approx(scale * metric.file, abs=scale * 1e-4)


def test_the_metric_of_the_model_is_that_of_its_checkpoint(measured, tool, tmp_path):
    given = measured("retinanet")
    status, printed = tool(given.config, given.model.checkpoint, "--out", "found.pkl", "--show-dir", "drawn")
    assert status == 0, printed.err[-2000:]
    (written,) = tmp_path.glob("tested/*/*.json")
    assert json.loads(written.read_text())["coco/bbox_mAP"] == given.certificate.measured.metric.pytorch


def test_what_tools_test_writes_it_writes_for_files(measured, tool, tmp_path):
    given = measured("mask_rcnn")
    assert tool(given.config, given.file, "--out", "found.pkl", "--show-dir", "drawn")[0] == 0
    assert (tmp_path / "found.pkl").stat().st_size
    assert len(list(tmp_path.glob("tested/*/drawn/*.png"))) == 4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--tta"], "--tta is for a model in PyTorch, and FILE is an exported file: omit it"),
        (["--reparameterize"], "--reparameterize is for a model in PyTorch, and FILE is an exported file: omit it"),
        (["--launcher", "pytorch"], "FILE is an exported file, which one process tests: omit --launcher"),
        (
            ["--cfg-options", "model.test_cfg.score_thr=0.3"],
            "FILE was exported with model.test_cfg.score_thr=0.05, and CONFIG has 0.3: give the config and options "
            "that it was exported with",
        ),
        (
            ["--cfg-options", "model.backbone.type=mmcare.CASViT"],
            "FILE was exported with model.backbone.type='mmcare.CARE', and CONFIG has 'mmcare.CASViT': give the config "
            "and options that it was exported with",
        ),
    ],
)
def test_what_does_not_fit_a_file_is_told(measured, tool, args, message):
    given = measured("retinanet")
    status, printed = tool(given.config, given.file, *args)
    assert status == 2, printed.err
    message = message.replace("FILE", str(given.file)).replace("CONFIG", str(given.config))
    assert printed.err.splitlines()[-1] == f"error: {message}"


def test_a_file_for_another_task_is_told(measured, tool):
    given, config = measured("retinanet"), CONFIGS / "segmentation/upernet_care_s1.py"
    assert tool(config, given.file)[1].err == (
        f"error: {given.file} is for detection, and {config} for segmentation: give the file's own config\n"
    )


# -- the certificate ---------------------------------------------------------------------------------------------------


def test_a_certificate_says_what_a_file_is(measured):
    given = measured("retinanet")
    certificate = given.certificate
    assert (certificate.format, certificate.part, certificate.task) == ("onnx", "model", "detection")
    assert certificate.classes == tuple("01234")
    assert certificate.input.shape == (None, 3, None, None)
    assert certificate.normalization.mean == pytest.approx((123.675, 116.28, 103.53))
    assert (certificate.resizing.scale, certificate.resizing.keep_ratio) == ((128, 96), True)
    assert [(output.name, output.shape, output.dtype) for output in certificate.outputs] == [
        ("dets", (None, 150, 5), "float32"),
        ("labels", (None, 150), "int64"),
    ]
    assert certificate.thresholds["score_thr"] == 0.05
    assert certificate.config["backbone"]["type"] == "mmcare.CARE"
    assert certificate.operators["NonMaxSuppression"] == 1
    assert {"mmcare", "torch", "mmdet", "onnx"} <= set(certificate.versions)
    state = given.model.model.state_dict()
    assert certificate.weights_sha256 == certification.weights_hash(given.model.model)
    state["neck.fpn_convs.0.conv.bias"][0] += 1
    assert certificate.weights_sha256 != certification.weights_hash(given.model.model)
    state["neck.fpn_convs.0.conv.bias"][0] -= 1
    assert 0 < certificate.measured.errors["dets"].largest < 2e-4
    latency = certificate.measured.latency
    assert latency.shape == (1, 3, 96, 128) and latency.threads == torch.get_num_threads()
    assert latency.pytorch_ms > 0 and latency.file_ms > 0
    assert any(picture["scores"] for picture in certificate.measured.probe["detections"])


def test_the_sizes_of_a_fixed_file_and_its_masks(measured):
    certificate = measured("mask_rcnn").certificate
    assert certificate.input.shape == (2, 3, 128, 128)
    shapes = {output.name: (output.shape, output.dtype) for output in certificate.outputs}
    assert shapes["masks"] == ((2, 12, 128, 128), "bool")
    assert shapes["mask_probs"] == ((2, 12, 28, 28), "float32")
    assert set(certificate.measured.errors) == {"dets", "masks", "mask_probs"}
    assert certificate.measured.metric.name == "coco/segm_mAP"


def test_a_file_with_a_sidecar(measured):
    given = measured("semantic_fpn")
    names = {path.name for path in given.file.parent.glob("certified.*")}
    assert names == {"certified.bin", "certified.xml", "certified.xml.json"}
    assert set(given.certificate.sha256) == {"certified.bin", "certified.xml"}
    assert set(given.certificate.measured.errors) == {"output", "scores"}


# -- what is not written -----------------------------------------------------------------------------------------------


def test_a_file_whose_outputs_are_far_from_the_models_is_not_written(exported, monkeypatch, tmp_path):
    run = ExportedFile.run
    wrong = {"c2": 1.1}
    monkeypatch.setattr(
        ExportedFile,
        "run",
        lambda self, images: {name: wrong.get(name, 1) * found for name, found in run(self, images).items()},
    )
    message = (
        r"^the file's c2 is 1\.0e-01 from the trained model's, and at most 2e-04 is allowed, so it was not written"
    )
    with pytest.raises(UserError, match=message):
        exported("care", "retinanet").export(tmp_path / "new.onnx", part="backbone", shape=(64, 64))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def undecided(exported, monkeypatch, tmp_path):
    """Return a function that exports a model in whose first pictures rounding decides; it returns the file."""

    def undecided(pictures):
        def run(prepared, images):
            outputs = certification_run(prepared, images)
            drawn = [
                number for number in range(pictures) if abs(images - draw_probe(number, images.shape)).max() < 0.01
            ]
            if drawn and (images != draw_probe(drawn[0], images.shape)).any():
                outputs["dets"] = outputs["dets"] + 0.01 * (outputs["labels"] >= 0)[..., None]
            return outputs

        certification_run = certification.run
        monkeypatch.setattr(certification, "run", run)
        return exported("care", "retinanet").export(tmp_path / "new.onnx", shape=(64, 64))

    return undecided


def test_pictures_in_which_rounding_decides_are_not_compared(undecided):
    assert open_file(undecided(pictures=2)).certificate.measured.probe["seed"] == 2


def test_a_model_of_which_rounding_decides_all_results_is_not_written(undecided, tmp_path):
    with pytest.raises(UserError, match="^the trained model finds something else in drawn pictures when they change"):
        undecided(pictures=100)
    assert not list(tmp_path.iterdir())


def test_a_file_whose_metric_is_far_from_the_models_is_told(measured, monkeypatch):
    given = measured("semantic_fpn")
    monkeypatch.setitem(certification.METRIC_TOLERANCES, None, -1)
    message = (
        r"^the file's mIoU is 0\.\d+ on 2 images, where the trained model has 0\.\d+, and at most -1 between them is"
    )
    with pytest.raises(UserError, match=message):
        evaluation = Evaluation(load_config(str(given.config)), most=2)
        certification.compare_metrics(open_file(given.file), given.model, evaluation, None)


def test_an_image_that_does_not_fit_a_file_is_told(measured, tool):
    given = measured("mask_rcnn")
    status, printed = tool(
        given.config, given.file, "--cfg-options", "test_dataloader.dataset.pipeline.1.scale=(192,160)"
    )
    assert status == 2
    assert printed.err.splitlines()[-1] == (
        f"error: an image of 144×192 does not fit {given.file}, which takes 128×128: export with --shape 192 or larger "
        "sides, or where the format has it with --dynamic"
    )


def test_that_test_images_do_not_fit_is_told_before_the_conversion(measured, in_process, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = measured("semantic_fpn")
    options = ["--shape", 64, "-o", "a.onnx"]
    status, printed = in_process(load_tool("export").main, "export.py", given.config, given.model.checkpoint, *options)
    assert (status, printed.err) == (
        2,
        "error: an image of 96×128 does not fit a.onnx, which takes 64×64: export with --shape 128 or larger sides, or "
        "where the format has it with --dynamic\n",
    )
    assert not list(tmp_path.iterdir())


def test_missing_data_is_told_with_the_ways_around(exported, refusal, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model = exported("care", "retinanet")
    assert refusal(load_tool("export").main, "export.py", model.config, model.checkpoint) == (
        "the file's metric is measured on the config's test data, and data/coco/annotations/instances_val2017.json is "
        "missing: add it, use other data with --data FOLDER or generated data with --sample, or measure none with "
        "--no-metric"
    )
    assert not list(tmp_path.iterdir())


def test_data_of_other_classes_is_told(measured, tool, in_process, tmp_path):
    given, config = measured("semantic_fpn"), tmp_path / "other.py"
    classes = "('0', '1', '2', '4', '3')"
    config.write_text(
        f"_base_ = ['{given.config}']\ntest_dataloader = dict(dataset=dict(metainfo=dict(classes={classes})))\n"
    )
    advice = "give data with the same classes in the same order"
    assert tool(config, given.file)[1].err.splitlines()[-1] == (
        f"error: {given.file} has the classes 0, 1, 2, 3, 4, and the test data 0, 1, 2, 4, 3: {advice}"
    )
    export = load_tool("export").main
    told = in_process(export, "export.py", config, given.model.checkpoint, "-o", "a.onnx")[1].err.splitlines()[-1]
    advice += ", or --no-metric"
    assert told == f"error: the checkpoint has the classes 0, 1, 2, 3, 4, and the test data 0, 1, 2, 4, 3: {advice}"
    assert not (tmp_path / "a.onnx").exists()


def test_a_killed_export_leaves_nothing(exported, tmp_path):
    model, file = exported("care", "retinanet"), tmp_path / "out/a.onnx"
    file.parent.mkdir()
    file.write_text("older")
    options = ["--part", "backbone", "--shape", "64", "-o", str(file), "--overwrite"]
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path / "temporary")}
    command = [sys.executable, str(ROOT / "tools/export.py"), str(model.config), str(model.checkpoint), *options]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert any(line == "timing both\n" for line in process.stderr)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in file.parent.iterdir()] == ["a.onnx"]
    assert file.read_text() == "older"
