"""tools/benchmark.py: the plain networks are the authors', what is counted is exact, and no ratio crosses two runs."""

import csv
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import helpers as reference
import torch
import yaml
from mmengine.registry import MODELS
from helpers import relative_error
from helpers import DETECTOR
from torch import nn

import mmcare
from mmcare import UserError
from mmcare.benchmark import measure, run, subjects, trials
from mmcare.benchmark.accuracy import BOX_AP, TOP1
from mmcare.benchmark.memory import kept_for_backward, peak_memory
from mmcare.benchmark.plain import plain
from mmcare.benchmark.plots import draw_accuracy, draw_sizes, exponent
from mmcare.benchmark.processes import ask, new_process
from mmcare.benchmark.profiling import Kind, profile, profile_table
from mmcare.benchmark.table import Row, read_csv, speedups, text_table, write_csv
from mmcare.fast.convolutions import _FUSED_TYPES, Expansion

ROOT = Path(__file__).parent.parent.parent
TOOL = runpy.run_path(str(ROOT / "tools/benchmark.py"))
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def tool(monkeypatch, in_process, tmp_path):
    """Runs the tool in this process and an empty folder; returns its exit status and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(measure.PRODUCT, "cpu", 64)  # the machine's true ceiling matters to nobody here
    monkeypatch.setattr("mmcare.benchmark.memory.limit_memory", lambda: None)  # of the process that runs all tests
    return partial(in_process, TOOL["main"], "benchmark.py")


def row(**changes):
    settings = dict(subject="mmcare.CARE:s1", part="backbone", form="plain", mode="inference", batch=1, height=512)
    counts = dict(width=512, parameters=7_548_328, macs=5_000_000_000, repeats=5, peak=2**20, kept=None)
    times = dict(median=0.1, p10=0.09, p90=0.12, ceiling=2e11, difference=None)
    return Row(**{**dict(run="one", machine="a machine"), **settings, **counts, **times, **changes})


def steps(subject, forms, batch, shape, training):
    """What a run measures of a subject, in this process."""
    return [subjects.Step(case, subject) for case in subjects.plan([subject], forms, batch, [shape], "cpu", training)]


# -- the plain networks --------------------------------------------------------------------------------------------


@pytest.mark.stack
@pytest.mark.parametrize(("family", "arch"), reference.ARCHS)
def test_the_plain_network_gives_our_outputs_and_gradients(family, arch):
    ours = MODELS.build(dict(type=f"mmcare.{family}", arch=arch))
    ours.load_state_dict(reference.backbone_weights(family, arch), strict=False)
    opponent = plain(ours)
    assert isinstance(opponent, nn.Module) and not isinstance(opponent, mmcare.CARE | mmcare.CASViT)
    images = [reference.image().requires_grad_() for _ in range(2)]
    networks = [network.eval() for network in (ours, opponent)]
    outputs = [network(image) for network, image in zip(networks, images, strict=True)]
    for output, wanted, authors in zip(outputs[1], outputs[0], reference.expected(family, arch), strict=True):
        assert relative_error(output, wanted) < 1e-6
        assert relative_error(output, authors) < 1e-5
    for maps in outputs:
        sum(output.square().mean() for output in maps).backward()
    assert relative_error(images[1].grad, images[0].grad) < 1e-5
    gradients = [{name: value.grad for name, value in network.named_parameters()} for network in networks]
    assert gradients[0].keys() == gradients[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients[0].values())
    for name, gradient in gradients[1].items():
        assert torch.allclose(gradient, gradients[0][name], rtol=1e-4, atol=1e-6 * largest), name


def test_a_detectors_plain_form_has_a_plain_backbone(tmp_path):
    (tmp_path / "detector.py").write_text(DETECTOR)
    subject = subjects.resolve(str(tmp_path / "detector.py"))
    model = subjects.prepare(subject, ["plain"], "cpu", training=False)
    assert type(model.backbone).__name__ == "PlainCARE"
    assert isinstance(subject.model.backbone, mmcare.CARE)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for output, wanted in zip(model.backbone(images), subject.model.backbone(images), strict=True):
            assert relative_error(output, wanted) < 1e-6


# -- subjects and forms --------------------------------------------------------------------------------------------


@pytest.mark.stack
@pytest.mark.parametrize(
    ("name", "parameters", "gmacs"),
    # Million parameters of the backbones, and GMACs at 224²: 4.1, 4.4, 2.0 and 0.3 in their papers, with the classifier
    [("resnet50", 23.51, 4.09), ("swin-t", 27.52, 4.5), ("pvtv2-b1", 13.50, 2.1), ("mobilenetv2", 2.22, 0.30)],
)
def test_the_peers_are_what_their_papers_say(name, parameters, gmacs):
    subject = subjects.resolve(name)
    measured, macs = subject.cost("backbone", 224, 224)
    assert measured / 1e6 == pytest.approx(parameters, abs=0.005)
    assert macs / 1e9 == pytest.approx(gmacs, rel=0.03)
    (step,) = steps(subject, ["plain", "channels-last"], 1, (64, 96), training=False)
    assert [tuple(output.shape[2:]) for output in step.forward()] == [(16, 24), (8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize(("peer", "widths"), [("swin-t", [96, 192, 384, 768]), ("mobilenetv2", [24, 32, 96, 1280])])
def test_a_peer_in_a_config(peer, widths, tmp_path):
    (tmp_path / "detector.py").write_text(DETECTOR)
    own, other = (subjects.resolve(f"{tmp_path}/detector.py{ending}") for ending in ("", f"@{peer}"))
    alone = subjects.resolve(peer)
    assert other.cost("backbone", 64, 96) == alone.cost("backbone", 64, 96)
    assert list(other.model.neck.in_channels) == widths
    heads = [sum(value.numel() for value in subject.model.bbox_head.parameters()) for subject in (own, other)]
    assert heads[0] == heads[1]
    whole, backbone = steps(other, ["eager"], 2, (64, 96), training=True)
    whole()
    assert not any(module.training for module in whole.model.modules() if isinstance(module, nn.BatchNorm2d))
    assert (whole.case.part, backbone.case.part) == ("whole", "backbone")
    assert [tuple(output.shape[:2]) for output in whole.forward()[:1]] == [(2, 9 * 80)]
    assert len(backbone.forward()) == 4


def test_a_peer_gives_the_maps_that_the_config_takes():
    subject = subjects.resolve(f"{ROOT}/configs/detection/retinanet_casvit_m.py@mobilenetv2")
    assert list(subject.model.neck.in_channels) == [32, 96, 1280]
    assert [feature.shape[1:] for feature in subject.model.backbone(torch.rand(1, 3, 64, 64))] == [
        (32, 8, 8),
        (96, 4, 4),
        (1280, 2, 2),
    ]


def test_arguments_of_a_backbone_in_its_name():
    assert subjects.resolve("mmcare.CARE:s0,with_cp=True").model.with_cp is True
    assert subjects.resolve("mmdet.ResNet:depth=18,style=caffe").model.style == "caffe"
    with pytest.raises(UserError, match=r"^mmcare.CARE:s0,2 has '2' where KEY=VALUE is wanted: give such as mmcare"):
        subjects.resolve("mmcare.CARE:s0,2")


def test_the_steps_of_a_form(monkeypatch):
    calls = []
    monkeypatch.setattr(mmcare, "reparameterize", lambda model: calls.append(model) or model, raising=False)
    subject = subjects.resolve("mmcare.CASViT:xs")
    form = "bf16+channels-last+reparameterized"
    (step,) = steps(subject, [form], 1, (32, 32), training=False)
    assert step.steps == ("reparameterized", "channels-last", "bf16")
    assert len(calls) == 1 and calls[0] is not subject.model
    assert step.images.is_contiguous(memory_format=torch.channels_last)
    assert {output.dtype for output in step.forward()} == {torch.bfloat16}
    assert next(subject.model.parameters()).dtype == torch.float32
    (step,) = steps(subject, ["bf16"], 1, (32, 32), training=True)
    assert next(step.model.parameters()).dtype == torch.float32
    step()


def test_a_wrong_form_shows_in_the_difference(monkeypatch):
    def wrong(model):
        model.stages[0].blocks[0].first_interaction.norm = nn.Identity()
        return model

    monkeypatch.setattr(mmcare, "reparameterize", wrong, raising=False)
    forms = ["reparameterized", "eager", "plain", "eager"]
    plain_form, wrong_form, eager = steps(subjects.resolve("mmcare.CARE:s0"), forms, 1, (32, 32), training=False)
    assert [step.case.form for step in (plain_form, wrong_form, eager)] == ["plain", "reparameterized", "eager"]
    findings, reference = measure.examine(plain_form, None)
    assert findings.difference is None
    assert measure.examine(eager, reference)[0].difference < 1e-6
    assert measure.examine(wrong_form, reference)[0].difference > 1e-3


class Detector(nn.Module):
    """The least that passes for one."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, images, mode):
        assert mode == "tensor"
        return (self.backbone(images).square(),)


def test_compiled_for_every_size_whatever_the_limit():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # of what other tests have compiled
    subject = subjects.Subject("three layers", Detector().eval(), (32, 32))
    with torch._dynamo.config.patch(recompile_limit=1, accumulated_recompile_limit=1):
        for shape in ((32, 32), (48, 32)):
            made = steps(subject, ["eager", "compiled"], 1, shape, training=False)
            assert [step.case.part for step in made] == ["whole"] * 2 + ["backbone"] * 2
            for eager, compiled in (made[:2], made[2:]):
                _, reference = measure.examine(eager, None)
                assert measure.examine(compiled, reference)[0].difference < 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4
    if torch.backends.mkldnn.is_available():
        packed = torch._dynamo.utils.counters["inductor"]["mkldnn_conv_weight_pack_matcher_count"]
        assert packed == 4, "the weights were not frozen into the graphs"


def test_the_memory_budget_is_kept_by_the_compiler():
    torch._dynamo.reset()
    layers = [layer for _ in range(4) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.GELU())]
    subject = subjects.Subject("four convolutions", nn.Sequential(nn.Conv2d(3, 8, 1), *layers).eval(), (32, 32))
    made = steps(subject, ["compiled", "compiled+memory-budget"], 1, (32, 32), training=True)
    kept, within_budget = (measure.examine(step, None)[0].kept for step in made)
    assert 0 < within_budget < 0.5 * kept


# -- memory --------------------------------------------------------------------------------------------------------


class Squares(nn.Module):
    """A linear layer without bias, 4 → 8, squared twice: keeps the input, and two maps of which one is a view."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 8, bias=False)

    def forward(self, x):
        hidden = self.linear(x)
        return hidden.square() + hidden.view(-1, 8).square()


def test_what_is_kept_is_counted_to_the_byte():
    model, images = Squares(), torch.rand(16, 4, requires_grad=True)  # so that the weights are kept as well
    assert kept_for_backward(lambda: model(images), model) == 4 * (16 * 4 + 16 * 8)
    assert kept_for_backward(lambda: model(images[:8]), model) == 4 * (16 * 4 + 8 * 8)  # the storage is kept as a whole
    with torch.no_grad():
        assert kept_for_backward(lambda: model(images), model) == 0


@pytest.mark.stack
def test_the_peak_of_a_call_is_counted_to_the_byte():
    side = 256
    before = torch.ones(side)

    def call():
        first = before.repeat(side)  # one map
        second = first + first  # two
        del first
        return second + second  # two again

    assert peak_memory(call, "cpu") == 2 * 4 * side * side


def test_memory_grows_with_the_batch_and_recomputing_saves_it():
    plain_form, recomputing = "mmcare.CARE:s0", "mmcare.CARE:s0,with_cp=True"

    def find(name, batch, training):
        (step,) = steps(subjects.resolve(name), ["eager"], batch, (64, 64), training)
        return measure.examine(step, None)[0]

    small, large = (find(plain_form, batch, training=False) for batch in (1, 2))
    assert small.kept is None
    assert large.peak == pytest.approx(2 * small.peak, rel=0.15)
    small, large = (find(plain_form, batch, training=True) for batch in (1, 2))
    assert large.kept == pytest.approx(2 * small.kept, rel=0.05)
    assert large.peak - small.peak > 0.5 * small.kept  # the weights' gradients stay the same
    saving = find(recomputing, 2, training=True)
    assert saving.kept < 0.5 * large.kept
    assert saving.peak < large.peak


# -- timing --------------------------------------------------------------------------------------------------------


def test_rounds_are_interleaved():
    called = []

    def clock(name):
        called.append(name)
        return float(len(called))

    rounds = []
    times = measure.interleaved([partial(clock, name) for name in "abc"], 4, 2, lambda: rounds.append(len(called)))
    assert rounds == [9, 12, 15, 18]
    orders = [tuple(called[start : start + 3]) for start in range(0, 18, 3)]
    assert all(sorted(order) == list("abc") for order in orders)
    assert len(set(orders)) > 1
    assert sorted(sum(times, [])) == list(range(7, 19))  # those of the first two rounds are left out
    assert all(called[int(at) - 1] == name for name, own in zip("abc", times, strict=True) for at in own)


def test_what_is_timed_comes_after_an_untimed_call(monkeypatch):
    called, now = [], [0.0]

    def call():
        called.append(call)
        now[0] += len(called)

    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    assert measure.timed_again(call, "cpu") == 2.0
    assert len(called) == 2


def test_each_case_has_a_process_of_its_own(monkeypatch):
    made = []
    monkeypatch.setattr(run, "new_process", lambda device: made.append(new_process(device)) or made[-1])
    subject = subjects.resolve("mobilenetv2")
    cases = subjects.plan([subject], ["eager", "channels-last"], 1, [(32, 32)], "cpu", training=False)
    rows = run.run(cases, [subject], repeats=1, warmup=0)
    assert [row.form for row in rows] == ["eager", "channels-last"]
    assert rows[0].difference is None and rows[1].difference < 1e-5
    assert len(made) == 2


def test_processes_and_their_end(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    case = subjects.plan([subjects.resolve("mobilenetv2")], ["eager"], 1, [(32, 32)], "cpu", training=False)[0]
    with new_process("cpu") as first, new_process("cpu") as second:
        found = {ask(process, case, os.getpid) for process in (first, second)}
        assert len(found | {os.getpid()}) == 3
        assert ask(first, case, threads) == 3
        with pytest.raises(UserError, match="^there is nothing called nix to measure"):
            ask(first, case, subjects.resolve, "nix")
        with pytest.raises(UserError, match=r"^the process that measured mobilenetv2 \(eager\) at 32×32 was ended"):
            ask(first, case, os.kill, ask(first, case, os.getpid), signal.SIGKILL)
        assert ask(second, case, os.getpid) in found
    assert not any(is_running(pid) for pid in found)


def threads():
    return torch.get_num_threads()


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_benchmark_leaves_no_process(tmp_path):
    code = """
import os, time
from mmcare.benchmark.processes import ask, new_process

if __name__ == "__main__":
    processes = [new_process("cpu") for _ in range(2)]
    print(*(ask(process, "a case", os.getpid) for process in processes), flush=True)
    ask(processes[0], "a case", time.sleep, 60)
"""
    (tmp_path / "benchmark.py").write_text(code)
    running = subprocess.Popen([sys.executable, tmp_path / "benchmark.py"], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in running.stdout.readline().split()]
    assert len(pids) == 2 and all(map(is_running, pids))
    running.kill()
    running.wait()
    running.stdout.close()
    deadline = time.monotonic() + 30
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, pids))


# -- the table -----------------------------------------------------------------------------------------------------


def test_the_derived_figures_of_a_row():
    inference = row(batch=2, median=0.1, macs=4_000_000_000, ceiling=2e11)
    assert inference.throughput == pytest.approx(20)
    assert inference.share == pytest.approx(2 * 4e9 * 2 / 0.1 / 2e11)
    assert replace(inference, mode="training").share == pytest.approx(3 * inference.share)


def test_rows_survive_the_file(tmp_path):
    rows = [row(), row(form="eager", mode="training", kept=12345, difference=1.5e-7, median=1 / 3, machine='"a", b')]
    write_csv(rows, tmp_path / "new" / "rows.csv")
    assert read_csv(tmp_path / "new" / "rows.csv") == rows
    with pytest.raises(UserError, match="rows.csv exists: move it away, or give another name"):
        write_csv(rows[:1], tmp_path / "new" / "rows.csv")
    assert read_csv(tmp_path / "new" / "rows.csv") == rows
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["rows.csv"]


def test_speed_is_relative_to_the_plain_form_of_the_same_network_and_setting():
    rows = [
        row(),
        row(form="eager", median=0.05),
        row(form="eager", median=0.05, height=1024),
        row(form="eager", median=0.05, mode="training"),
        row(form="eager", median=0.05, subject="swin-t"),
    ]
    assert speedups(rows) == [1.0, 2.0, None, None, None]
    assert speedups(rows, ("swin-t", "eager")) == [0.5, 1.0, None, None, 1.0]
    with pytest.raises(
        UserError, match="^the baseline swin-t in the form plain is not among what was measured: choose"
    ):
        speedups(rows, ("swin-t", "plain"))


def test_no_ratio_of_two_runs():
    apart = [row(), row(form="eager", median=0.05, run="two")]
    sentence = (
        r"^mmcare.CARE:s1 \(eager, backbone, inference\) at 512×512 was measured in the run two and mmcare.CARE:s1 "
        r"\(plain, backbone, inference\) at 512×512 in the run one, and a ratio of two runs is not printed"
    )
    with pytest.raises(UserError, match=sentence):
        text_table(apart)
    # Each with a baseline of its own may stand in one table.
    together = [*apart, row(run="two", median=0.2)]
    assert speedups(together) == [1.0, 4.0, 1.0]
    with pytest.raises(
        UserError, match="^the plot of accuracy over time compares its points, and these are of the runs"
    ):
        draw_accuracy(together)
    with pytest.raises(UserError, match="^the plot over sizes compares its points"):
        draw_sizes(together)


# -- plots ---------------------------------------------------------------------------------------------------------


def test_the_exponent_is_the_slope():
    pixels = [256**2, 512**2, 1024**2]
    assert exponent(pixels, [3 * count**1.5 for count in pixels]) == pytest.approx(1.5)
    rows = [row(height=side, width=side, median=1e-7 * side**2, peak=side**3) for side in (256, 512, 1024)]
    time, memory = draw_sizes(rows).axes
    assert [text.get_text() for text in time.get_legend().get_texts()] == ["mmcare.CARE:s1, plain: exponent 1.00"]
    assert [text.get_text() for text in memory.get_legend().get_texts()] == ["mmcare.CARE:s1, plain: exponent 1.50"]


def test_accuracy_is_what_the_authors_report_at_the_time_that_was_measured():
    detector = dict(subject="configs/detection/retinanet_casvit_m.py", part="whole", height=800, width=1333)
    peer = dict(detector, subject="retinanet_care_s1.py@pvtv2-b1", median=0.3)
    unknown = dict(detector, subject="semantic_fpn_care_s1.py@pvtv2-b1")
    rows = [row(), row(subject="mmcare.CARE:s0", median=0.05), row(subject="resnet50")]
    rows += [row(**settings) for settings in (detector, peer, unknown)]
    top1, box_ap = draw_accuracy(rows).axes
    (line,) = top1.get_lines()
    assert list(zip(*line.get_data(), strict=True)) == [(50.0, 78.4), (100.0, 80.1)]
    lines = [list(zip(*line.get_data(), strict=True)) for line in box_ap.get_lines()]
    assert lines == [[(100.0, 40.9)], [(300.0, 41.2)]]
    with pytest.raises(UserError, match="^no accuracy is known of what was measured"):
        draw_accuracy([row(subject="resnet50")])


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


# -- the profile ---------------------------------------------------------------------------------------------------


def test_the_profile_counts_operations_and_bytes():
    convolution, depthwise = nn.Conv2d(8, 16, 1, bias=False), nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
    images = torch.rand(1, 8, 32, 32)

    def step():
        with torch.inference_mode():
            torch.nn.functional.gelu(depthwise(convolution(images))).flatten(2)

    kinds = {kind.name: kind for kind in profile(step, "cpu", repeats=2)}
    maps = 16 * 32 * 32
    assert kinds["convolution 1×1"].flops == 2 * 8 * maps
    assert kinds["convolution 1×1"].moved == 4 * (8 * 32 * 32 + 8 * 16 + maps)
    assert kinds["depth-wise convolution 3×3"].flops == 2 * 9 * maps
    assert (kinds["gelu"].calls, kinds["gelu"].flops, kinds["gelu"].moved) == (1, 0, 4 * 2 * maps)
    assert kinds["view"].moved == 0
    assert set(kinds) == {"convolution 1×1", "depth-wise convolution 3×3", "gelu", "view"}


@pytest.mark.skipif(not _FUSED_TYPES, reason="torch has no fused convolutions on this machine")
def test_the_profile_counts_what_convolutions_do_beside():
    convolutions = [nn.Conv2d(8, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 8, 1)]
    branch = Expansion(*zip(convolutions, (True, False, False), strict=True)).requires_grad_(False)
    images = torch.rand(1, 8, 16, 16).contiguous(memory_format=torch.channels_last)
    kinds = {kind.name: kind for kind in profile(lambda: branch(images, to=images.clone()), "cpu", repeats=2)}
    assert kinds["convolution 1×1 + GELU"].flops == kinds["convolution 1×1 + sum"].flops == 2 * 8 * 32 * 256
    assert kinds["depth-wise convolution 3×3"].flops == 2 * 9 * 32 * 256
    assert kinds["convolution 1×1 + GELU"].moved == 4 * (8 * 256 + 8 * 32 + 32 + 32 * 256)


def test_the_profile_says_how_far_from_the_limit():
    kinds = [Kind("convolution 1×1", 2, 0.03, 10**10, 10**8), Kind("gelu", 1, 0.01, 0, 10**8), Kind("view", 3, 1e-6)]
    text = profile_table(kinds, ceiling=1e12, bandwidth=2e10)
    lines = [re.split(r"\s{2,}", line) for line in text.splitlines()]
    assert lines[1] == ["convolution 1×1", "30.00 ms", "75.0%", "2", "10.000", "100.00", "100.0", "compute", "33%"]
    assert lines[2] == ["gelu", "10.00 ms", "25.0%", "1", "0.000", "100.00", "0.0", "memory", "50%"]
    assert lines[4][:2] == ["all", "40.00 ms"] and lines[4][-1] == "37%"


def test_the_ways_of_a_trial_compute_the_same():
    with torch.inference_mode():
        for subject, ways in trials.trials():
            found = [way() for way in ways.values()]
            first, *others = (maps if isinstance(maps, tuple) else (maps,) for maps in found)
            assert others
            for other in others:
                assert all(relative_error(a, b) < 1e-5 for a, b in zip(other, first, strict=True)), subject


# -- the command line ----------------------------------------------------------------------------------------------


def test_one_run_one_table(tool, tmp_path):
    names = ["mmcare.CARE:s0", "mobilenetv2"]
    options = ["--forms", "eager", "plain", "--sizes", 32, 64, "--repeats", 2, "--out", "rows.csv", "--plots", "plots"]
    status, said = tool(*names, *options)
    assert status == 0, said.err
    with open(tmp_path / "rows.csv", newline="") as file:
        records = list(csv.DictReader(file))
    wanted = {(names[0], form, side) for form in ("plain", "eager") for side in ("32", "64")}
    wanted |= {("mobilenetv2", "eager", "32"), ("mobilenetv2", "eager", "64")}
    assert {(record["subject"], record["form"], record["height"]) for record in records} == wanted
    assert len({record["run"] for record in records}) == 1
    medians = {(record["subject"], record["form"], record["height"]): float(record["median"]) for record in records}
    printed = [line.split() for line in said.out.splitlines() if line.split()[:1] in [[name] for name in names]]
    assert len(printed) == len(records)
    records.sort(key=lambda record: record["height"])  # the table has what may be compared together
    for cells, record in zip(printed, records, strict=True):
        key = record["subject"], record["form"], record["height"]
        if key[0] == "mobilenetv2":
            assert not cells[-1].endswith("×")
        else:
            assert cells[-1] == f"{medians[key[0], 'plain', key[2]] / medians[key]:.2f}×"
    assert (tmp_path / "plots/accuracy.png").read_bytes().startswith(PNG)
    assert (tmp_path / "plots/sizes.png").read_bytes().startswith(PNG)
    assert "examining mmcare.CARE:s0 (plain) at 32×32" in said.err
    assert "2/2" in said.err

    status, said = tool(*names, "--shape", 32, "--out", "rows.csv")
    assert status == 2
    assert said.err == "error: rows.csv exists: move it away, or give another name\n"

    status, said = tool("--compare", "rows.csv", "--baseline", "mobilenetv2", "eager")
    assert status == 0
    assert "speed: times as fast as mobilenetv2 eager" in said.out


def test_two_runs_are_not_compared(tool):
    for form in ("plain", "eager"):
        status, _ = tool("mmcare.CARE:s0", "--forms", form, "--shape", 32, "--repeats", 1, "--out", f"{form}.csv")
        assert status == 0
    status, said = tool("--compare", "plain.csv", "eager.csv")
    assert status == 2
    assert re.fullmatch(r"error: mmcare.CARE:s0 \(eager.* a ratio of two runs is not printed: .*\n", said.err)
    assert "×\n" not in said.out


def test_from_a_shell(tmp_path):
    (tmp_path / "detector.py").write_text(DETECTOR)
    command = [sys.executable, ROOT / "tools/benchmark.py", "detector.py", "--train", "--forms", "plain", "eager"]
    options = ["--shape", "64", "--repeats", "1", "--warmup", "0", "--threads", "1", "--batch", "2"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "work_dirs/benchmark").glob("*.csv")
    rows = {(row.part, row.form): row for row in read_csv(path)}
    assert f"rows: {path.relative_to(tmp_path)}" in done.stdout
    assert set(rows) == {(part, form) for part in ("whole", "backbone") for form in ("plain", "eager")}
    assert all(row.mode == "training" and row.batch == 2 and "1 thread," in row.machine for row in rows.values())
    whole, backbone = (rows[part, "plain"] for part in ("whole", "backbone"))
    assert whole.macs > backbone.macs and whole.kept > backbone.kept > 0 and whole.parameters > backbone.parameters
    assert rows["whole", "eager"].difference < 1e-5


def test_profile(tool):
    status, said = tool("mmcare.CASViT:xs", "--profile", "--forms", "plain", "--shape", 32, "--repeats", 1)
    assert status == 0, said.err
    assert said.out.startswith("mmcare.CASViT:xs (plain) at 32×32, batch 1\n")
    first, *kinds, total, limit, _ = (line.split() for line in said.out.splitlines()[1:])
    assert first[0] == "operator"
    flops = sum(float(cells[cells.index("ms") + 3]) for cells in kinds)
    # 2.85 GMACs at 512²; each is two operations
    assert flops == pytest.approx(2 * 2.85 * (32 / 512) ** 2, rel=0.05)
    assert total[0] == "all"
    assert limit[0] == "limit:"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give either what to measure, such as mmcare.CARE:s1, or --compare"),
        (["resnet51"], "there is nothing called resnet51 to measure: give a config (a .py file), a backbone such as"),
        (["mmcare.CARE:s9"], "CARE has no arch 's9'"),
        (["nix.py"], "there is no config nix.py"),
        (["detector.py@resnet51"], "detector.py@resnet51 asks for the backbone 'resnet51': those to put into a config"),
        (
            [f"{ROOT}/configs/detection/mask_rcnn_care_s1.py"],
            f"{ROOT}/configs/detection/mask_rcnn_care_s1.py has two st",
        ),
        (["resnet50", "resnet50"], "resnet50 is given twice"),
        (["resnet50", "--forms", "fast"], "there is no form 'fast': give eager, or one or more of plain, reparam"),
        (["resnet50", "--forms", "plain"], "none of the forms plain is one of resnet50's: it is not ours, give eager"),
        (
            ["resnet50", "--forms", "plain+reparameterized"],
            "there is no form 'plain+reparameterized': a network is either",
        ),
        (["resnet50", "--forms", "reparameterized", "--train"], "the form 'reparameterized' is for inference"),
        (["resnet50", "--forms", "cuda-graph"], "the form 'cuda-graph' is not possible: cuda-graph records"),
        (["resnet50", "--forms", "compiled+memory-budget"], "the form 'compiled+memory-budget' is not possible"),
        (["resnet50", "--forms", "memory-budget", "--train"], "the form 'memory-budget' is not possible: memory"),
        (["resnet50", "--forms", "compiled", "--profile"], "compiled has no operators of its own to profile"),
        (["mmcare.CARE:s0", "--shape", "16"], "CARE takes images of shape (B, 3, H, W) with H and W of at least 32"),
        (["mmcare.CARE:s0", "--shape", "1", "2", "3"], "--shape takes one or two sides of an image"),
        (["mmcare.CARE:s0", "--sizes", "64", "64"], "--sizes takes sides of images, in pixels, each once, not 64 64"),
        (
            ["mmcare.CARE:s0", "--forms", "eager", "--shape", "400000"],
            "mmcare.CARE:s0 (eager) at 400000×400000 needs more memory than",
        ),
        (["mmcare.CARE:s0", "--repeats", "0"], "--repeats is at least 1, not 0"),
        (
            ["mmcare.CARE:s0", "--baseline", "resnet50", "eager"],
            "the baseline resnet50 eager is not among the subjects",
        ),
        (["mmcare.CARE:s0", "--profile", "--out", "a.csv"], "--out has no use with --profile"),
        (["--compare", "nix.csv"], "nix.csv cannot be read: No such file or directory"),
        (["--compare", "other.csv"], "other.csv is not a file that tools/benchmark.py has written"),
        (["--compare", "empty.csv"], "empty.csv has no measurement in it: give another file"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(tool, tmp_path, args, message):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty.csv").write_text("")
    status, said = tool(*args)
    assert status == 2
    *progress, sentence = said.err.splitlines()
    assert sentence.startswith(f"error: {message}")
    assert all(line.startswith("preparing") for line in progress)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu(tool):
    status, said = tool("resnet50", "--device", "cuda")
    assert (status, said.err) == (2, "error: --device cuda needs a GPU, and this machine has none that torch can use\n")
