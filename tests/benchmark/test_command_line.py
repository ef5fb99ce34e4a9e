"""tools/benchmark.py: one table for each run, and one sentence for each user error."""

import csv
import re
import subprocess
import sys
from functools import partial

import pytest
import torch
from helpers import CONFIGS, DETECTOR, ROOT, load_tool, run_tool, succeed

from mmcare.benchmark import PEERS, read_csv, timing, write_csv

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def tool(monkeypatch, in_process, tmp_path):
    """Run the tool in this process and an empty folder; return its exit status and its output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(timing.PRODUCT, "cpu", 64)  # the machine's true ceiling does not matter here
    return partial(in_process, load_tool("benchmark").main, "benchmark.py")


def test_one_run_one_table(tool, tmp_path):
    names = ["mmcare.CARE:s0", "mobilenetv2"]
    options = "--forms eager plain --sizes 32 64 --repeats 2 --warmup 0 --out rows.csv --plots plots"
    status, said = tool(*names, *options.split())
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
    records.sort(key=lambda record: record["height"])  # the table groups comparable rows
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
    assert "speed: relative to mobilenetv2 eager" in said.out


def test_a_peer_that_cannot_be_computed_in_half_precision(tool):
    status, said = tool("swin-t", "--forms", "bf16", "--shape", 64, "--repeats", 1, "--warmup", 0)
    assert status == 2
    said = said.err.splitlines()[-1]
    assert said.startswith("error: swin-t (bf16) at 64×64 cannot be computed in that precision (")
    assert said.endswith("): leave one of the two out")


def test_two_runs_are_not_compared(tool, tmp_path, make_row):
    write_csv([make_row()], tmp_path / "plain.csv")
    write_csv([make_row(form="eager", run="two")], tmp_path / "eager.csv")
    status, said = tool("--compare", "plain.csv", "eager.csv")
    assert status == 2
    assert re.fullmatch(r"error: mmcare.CARE:s1 \(eager.* times of different runs are not comparable: .*\n", said.err)
    assert not said.out


@pytest.mark.parametrize("name", ["benchmark", "get_flops"])
def test_help_needs_none_of_the_stack(name):
    code = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(['torch', 'mmengine', 'mmcv', 'mmdet']));"
        "sys.argv = [sys.argv[1], '--help']; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, ROOT / f"tools/{name}.py"]
    said = succeed(subprocess.run(command, capture_output=True, text=True))
    assert all(peer in said for peer in PEERS)


def test_from_a_shell(tmp_path):
    (tmp_path / "detector.py").write_text(DETECTOR)
    options = ["--shape", 64, "--repeats", 1, "--warmup", 0, "--threads", 1, "--batch", 2]
    said = succeed(run_tool("benchmark", "detector.py", "--train", "--forms", "plain", "eager", *options, cwd=tmp_path))
    (path,) = (tmp_path / "work_dirs/benchmark").glob("*.csv")
    rows = {(row.part, row.form): row for row in read_csv(path)}
    assert f"rows: {path.relative_to(tmp_path)}" in said
    assert set(rows) == {(part, form) for part in ("whole", "backbone") for form in ("plain", "eager")}
    assert all(row.mode == "training" and row.batch == 2 and "1 thread," in row.machine for row in rows.values())
    whole, backbone = (rows[part, "plain"] for part in ("whole", "backbone"))
    assert whole.macs > backbone.macs and whole.kept > backbone.kept > 0 and whole.parameters > backbone.parameters
    assert rows["whole", "eager"].difference < 1e-5


def test_profile(tool):
    status, said = tool("mmcare.CASViT:xs", "--profile", "--forms", "plain", "--shape", 32, "--repeats", 1)
    assert status == 0, said.err
    assert said.out.startswith("mmcare.CASViT:xs (plain) at 32×32, batch 1\n")
    first, _, *kinds, total, limit, _ = (line.split() for line in said.out.splitlines()[1:])
    assert first[0] == "operator"
    flops = sum(float(cells[cells.index("ms") + 3]) for cells in kinds)
    # 2.85 GMACs at 512², two operations each
    assert flops == pytest.approx(2 * 2.85 * (32 / 512) ** 2, rel=0.05)
    assert total[0] == "all"
    assert limit[0] == "limit:"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give either subjects, such as mmcare.CARE:s1, or --compare"),
        (
            ["resnet51"],
            "resnet51 is neither a config nor a backbone: give the file or name of a config, a backbone such as ",
        ),
        (["mmcare.CARE:s9"], "CARE has no arch 's9'"),
        (["nix.py"], "there is no config nix.py"),
        (
            ["detector.py@resnet51"],
            "detector.py@resnet51 names the unknown backbone 'resnet51': choose one of resnet50",
        ),
        ([f"{CONFIGS}/detection/mask_rcnn_care_s1.py"], f"{CONFIGS}/detection/mask_rcnn_care_s1.py has two stages"),
        (["resnet50", "resnet50"], "resnet50 is given twice"),
        (["resnet50", "--forms", "fast"], "there is no form 'fast': give eager, or one or more of plain, reparam"),
        (["resnet50", "--forms", "plain"], "resnet50 is not an mmcare model, so it has none of the forms plain: give"),
        (
            ["resnet50", "--forms", "plain+reparameterized"],
            "there is no form 'plain+reparameterized': a network is either",
        ),
        (["resnet50", "--forms", "reparameterized", "--train"], "the form 'reparameterized' is for inference"),
        (["resnet50", "--forms", "cuda-graph"], "the form 'cuda-graph' is not available: cuda-graph excludes"),
        (["resnet50", "--forms", "compiled+memory-budget"], "the form 'compiled+memory-budget' is not available"),
        (["resnet50", "--forms", "memory-budget", "--train"], "the form 'memory-budget' is not available: memory"),
        (
            ["resnet50", "--forms", "keep-freed-memory", "--device", "cuda"],
            "the form 'keep-freed-memory' is not available: keep-freed-memory is process-wide, and on --device cuda",
        ),
        (["resnet50", "--forms", "compiled", "--profile"], "compiled runs as one graph, without operators to profile"),
        (["mmcare.CARE:s0", "--shape", "16"], "CARE takes images of shape (B, 3, H, W) with H and W of at least 32"),
        (["mmcare.CARE:s0", "--shape", "1", "2", "3"], "--shape takes one or two sides of an image"),
        (["mmcare.CARE:s0", "--sizes", "64", "64"], "--sizes takes different image sides in pixels, not 64 64"),
        (
            ["mmcare.CARE:s0", "--forms", "eager", "--shape", "400000"],
            "mmcare.CARE:s0 (eager) at 400000×400000 needs more memory than",
        ),
        (["mmcare.CARE:s0", "--repeats", "0"], "--repeats must be at least 1, not 0"),
        (
            ["mmcare.CARE:s0", "--baseline", "resnet50", "eager"],
            "the baseline resnet50 eager is not among the subjects",
        ),
        (["mmcare.CARE:s0", "--profile", "--out", "a.csv"], "--out has no effect with --profile"),
        (["--compare", "nix.csv"], "nix.csv cannot be read: No such file or directory"),
        (["--compare", "other.csv"], "other.csv was not written by the benchmark"),
        (["--compare", "empty.csv"], "empty.csv has no measurements: give another file"),
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
    assert (status, said.err) == (2, "error: --device cuda needs a GPU, and torch finds none on this machine\n")
