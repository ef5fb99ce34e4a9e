"""Curves from MMEngine's logs: of resumed runs, of a killed run, and of epoch- and iteration-based training."""

import json

import pytest
from helpers import load_tool, run_tool, succeed

from mmcare.files import write_picture
from mmcare.runs import draw_curves, read_curves, summarize
from mmcare.runs.curves import smooth

PNG = b"\x89PNG\r\n\x1a\n"


def train(step, loss, epoch=None):
    record = dict(lr=1e-4, data_time=0.1, loss=loss, time=0.2, iter=step, step=step)
    return record if epoch is None else {**record, "epoch": epoch}


def val(step, **metrics):
    return dict(metrics, data_time=0.1, time=0.2, step=step)


def write_run(work_dir, time, records, resume=False, ending=""):
    folder = work_dir / time / "vis_data"
    folder.mkdir(parents=True)
    (folder / "scalars.json").write_text("".join(json.dumps(record) + "\n" for record in records) + ending)
    (folder / "config.py").write_text(f"load_from = None\nresume = {resume}\nwork_dir = 'x'\n")


def epoch(number, loss, **metrics):
    """Return two training records, at iterations 2·number - 1 and 2·number, and one validation record."""
    steps = (2 * number - 1, 2 * number)
    return [*(train(step, loss, epoch=number) for step in steps), val(number, **metrics)]


@pytest.mark.stack
def test_table_and_picture(tmp_path):
    records = [
        *epoch(1, 3.0, **{"coco/bbox_mAP": 0.1, "coco/bbox_mAP_s": -1.0}),
        *epoch(2, 2.0, **{"coco/bbox_mAP": 0.3, "coco/bbox_mAP_s": -1.0}),
        *epoch(3, 1.0, **{"coco/bbox_mAP": 0.2, "coco/bbox_mAP_s": -1.0}),
    ]
    write_run(tmp_path / "run", "20260101_000000", records)
    table = succeed(run_tool("analyze_logs", "run", cwd=tmp_path))
    assert ["coco/bbox_mAP", "0.3", "2", "0.2"] in [line.split() for line in table.splitlines()]
    assert "bbox_mAP_s" not in table  # -1: there are no objects of this size
    assert (tmp_path / "run/curves.png").read_bytes().startswith(PNG)

    succeed(run_tool("analyze_logs", "run", "--out", "new/curve.png", cwd=tmp_path))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["curve.png"]


def test_resumed_runs_are_joined_and_replace_what_they_repeat(tmp_path):
    write_run(tmp_path, "20260101_000000", epoch(1, 99.0, mAP=0.99))  # another training that was not resumed
    write_run(
        tmp_path, "20260102_000000", [*epoch(1, 3.0, mAP=0.1), *epoch(2, 50.0, mAP=0.5), *epoch(3, 50.0, mAP=0.5)]
    )
    write_run(tmp_path, "20260103_000000", epoch(2, 2.0, mAP=0.2), resume=True)
    write_run(tmp_path, "20260104_000000", [])  # a test run
    curves = read_curves(tmp_path)
    assert curves.loss == {1: 3.0, 2: 3.0, 3: 2.0, 4: 2.0}
    assert curves.metric("mAP") == {1: 0.1, 2: 0.2}
    assert curves.unit == "epoch"


def test_the_newest_training_is_not_joined_with_what_it_did_not_resume(tmp_path):
    write_run(tmp_path, "20260101_000000", [train(10, 3.0), train(20, 3.0), val(20, mIoU=10.0)])
    write_run(tmp_path, "20260102_000000", [train(50, 2.0), val(50, mIoU=20.0)])
    curves = read_curves(tmp_path)
    assert curves.loss == {50: 2.0}
    assert curves.metric("mIoU") == {50: 20.0}


def test_iteration_based_training(tmp_path):
    write_run(tmp_path, "20260101_000000", [train(50, 2.0), train(100, 1.5), val(100, mIoU=20.0), train(150, 9.0)])
    write_run(tmp_path, "20260102_000000", [train(150, 1.0), val(200, mIoU=30.0)], resume=True)
    curves = read_curves(tmp_path)
    assert curves.unit == "iteration"
    assert curves.loss == {50: 2.0, 100: 1.5, 150: 1.0}
    assert curves.metric("mIoU") == {100: 20.0, 200: 30.0}


def test_half_a_last_line_is_left_out(tmp_path):
    write_run(tmp_path, "20260101_000000", epoch(1, 3.0, mAP=0.1), ending='{"lr": 1e-4, "lo')
    assert read_curves(tmp_path).loss == {1: 3.0, 2: 3.0}


def test_a_loss_that_is_not_finite_is_told_and_drawn_around(tmp_path):
    write_run(tmp_path, "20260101_000000", [train(1, 2.0), train(2, float("nan")), train(3, 1.0)])
    curves = read_curves(tmp_path)
    assert "not a finite number from iteration 2" in summarize(curves)
    assert "There is no validation yet." in summarize(curves)
    assert smooth([2.0, float("nan"), 1.0]) == [2.0, 2.0, 1.0]
    write_picture(draw_curves(curves, "title"), tmp_path / "curve.svg")
    assert "<svg" in (tmp_path / "curve.svg").read_text()


def test_smoothing_is_a_weighted_mean_of_the_past():
    values = [1.0] * 50 + [2.0] * 50
    smoothed = smooth(values)
    assert smoothed[:50] == pytest.approx([1.0] * 50)
    assert smoothed[50:] == sorted(smoothed[50:])
    assert 1.0 < smoothed[50] < 1.5
    assert smoothed[-1] == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["."], "no log of a training"),
        (["nowhere"], "no log of a training"),
        (["run", "--out", "curve.txt"], ".png"),
        (["damaged"], "line 2 of"),
        (["run", "--out", "occupied/curve.png"], "cannot be written"),
        ([], "work_dir"),
    ],
)
def test_mistakes_are_told_in_a_sentence(tmp_path, monkeypatch, refusal, args, told):
    write_run(tmp_path / "run", "20260101_000000", epoch(1, 3.0))
    write_run(tmp_path / "damaged", "20260101_000000", epoch(1, 3.0))
    log = tmp_path / "damaged/20260101_000000/vis_data/scalars.json"
    log.write_text(log.read_text().replace('"lr"', "lr").replace("lr", '"lr"', 1))
    (tmp_path / "occupied").write_text("a file")
    monkeypatch.chdir(tmp_path)
    assert told in refusal(load_tool("analyze_logs").main, "analyze_logs", *args)
