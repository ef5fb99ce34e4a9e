"""The rows of a run: their figures, their CSV file, and no ratios across runs."""

from dataclasses import replace

import pytest

from mmcare import UserError
from mmcare.benchmark import read_csv, text_table, write_csv
from mmcare.benchmark.plots import draw_accuracy, draw_sizes
from mmcare.benchmark.table import speedups


def test_the_derived_figures_of_a_row(make_row):
    inference = make_row(batch=2, median=0.1, macs=4_000_000_000, ceiling=2e11)
    assert inference.throughput == pytest.approx(20)
    assert inference.share == pytest.approx(2 * 4e9 * 2 / 0.1 / 2e11)
    assert replace(inference, mode="training").share == pytest.approx(3 * inference.share)


def test_rows_survive_the_file(tmp_path, make_row):
    rows = [
        make_row(),
        make_row(form="eager", mode="training", kept=12345, difference=1.5e-7, median=1 / 3, machine='"a", b'),
    ]
    write_csv(rows, tmp_path / "new" / "rows.csv")
    assert read_csv(tmp_path / "new" / "rows.csv") == rows
    with pytest.raises(UserError, match="rows.csv exists: move it away, or give another name"):
        write_csv(rows[:1], tmp_path / "new" / "rows.csv")
    assert read_csv(tmp_path / "new" / "rows.csv") == rows
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["rows.csv"]


def test_speed_is_relative_to_the_plain_form_of_the_same_network_and_setting(make_row):
    rows = [
        make_row(),
        make_row(form="eager", median=0.05),
        make_row(form="eager", median=0.05, height=1024),
        make_row(form="eager", median=0.05, mode="training"),
        make_row(form="eager", median=0.05, subject="swin-t"),
    ]
    assert speedups(rows) == [1.0, 2.0, None, None, None]
    assert speedups(rows, ("swin-t", "eager")) == [0.5, 1.0, None, None, 1.0]
    with pytest.raises(UserError, match="^the baseline swin-t in the form plain was not measured: choose"):
        speedups(rows, ("swin-t", "plain"))


def test_no_ratio_of_two_runs(make_row):
    apart = [make_row(), make_row(form="eager", median=0.05, run="two")]
    sentence = (
        r"^mmcare.CARE:s1 \(eager, backbone, inference\) at 512×512 was measured in the run two and mmcare.CARE:s1 "
        r"\(plain, backbone, inference\) at 512×512 in the run one, and times of different runs are not comparable"
    )
    with pytest.raises(UserError, match=sentence):
        text_table(apart)
    # Runs that each have a baseline may share a table.
    together = [*apart, make_row(run="two", median=0.2)]
    assert speedups(together) == [1.0, 4.0, 1.0]
    with pytest.raises(
        UserError, match="^the plot of accuracy over time compares rows of one run, but these are from the runs"
    ):
        draw_accuracy(together)
    with pytest.raises(UserError, match="^the plot over sizes compares rows of one run"):
        draw_sizes(together)
