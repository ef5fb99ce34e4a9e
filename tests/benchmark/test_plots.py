"""The plots show the measurements and the published accuracy."""

import re

import pytest
import yaml
from helpers import ROOT

from mmcare import UserError
from mmcare.benchmark.accuracy import BOX_AP, TOP1
from mmcare.benchmark.plots import draw_accuracy, draw_sizes, exponent


def test_the_exponent_is_the_slope(make_row):
    pixels = [256**2, 512**2, 1024**2]
    assert exponent(pixels, [3 * count**1.5 for count in pixels]) == pytest.approx(1.5)
    rows = [make_row(height=side, width=side, median=1e-7 * side**2, peak=side**3) for side in (256, 512, 1024)]
    time, memory = draw_sizes(rows).axes
    assert [text.get_text() for text in time.get_legend().get_texts()] == ["mmcare.CARE:s1, plain: exponent 1.00"]
    assert [text.get_text() for text in memory.get_legend().get_texts()] == ["mmcare.CARE:s1, plain: exponent 1.50"]


def test_accuracy_is_what_the_authors_report_at_the_time_that_was_measured(make_row):
    detector = dict(subject="configs/detection/retinanet_casvit_m.py", part="whole", height=800, width=1333)
    by_name = dict(detector, subject="detection/retinanet_casvit_s", median=0.08)
    peer = dict(detector, subject="retinanet_care_s1.py@pvtv2-b1", median=0.3)
    unknown = dict(detector, subject="semantic_fpn_care_s1.py@pvtv2-b1")
    rows = [make_row(), make_row(subject="mmcare.CARE:s0", median=0.05), make_row(subject="resnet50")]
    rows += [make_row(**settings) for settings in (detector, by_name, peer, unknown)]
    top1, box_ap = draw_accuracy(rows).axes
    (line,) = top1.get_lines()
    assert list(zip(*line.get_data(), strict=True)) == [(50.0, 78.4), (100.0, 80.1)]
    lines = [list(zip(*line.get_data(), strict=True)) for line in box_ap.get_lines()]
    assert lines == [[(80.0, 38.6), (100.0, 40.9)], [(300.0, 41.2)]]
    with pytest.raises(UserError, match="^no accuracy is known for these subjects"):
        draw_accuracy([make_row(subject="resnet50")])


def test_the_accuracies_are_those_of_the_readme_and_the_metafiles():
    table = re.findall(
        r"^\| (CARE|CAS-ViT) (\w+) \|.*\| ([\d.]+)(?: / [\d.]+)? \|$", (ROOT / "README.md").read_text(), re.M
    )
    assert {f"mmcare.{family.replace('-', '')}:{arch}": float(value) for family, arch, value in table} == TOP1
    models = yaml.safe_load((ROOT / "configs/metafile_casvit.yml").read_text())["Models"]
    reported = {
        model["Name"].removeprefix("retinanet_"): model["Results"][0]["Metrics"]["box AP"]
        for model in models
        if model["Name"].startswith("retinanet")
    }
    assert reported.items() <= BOX_AP.items()
    assert set(BOX_AP) - set(reported) == {"resnet50", "pvtv2-b1"}
