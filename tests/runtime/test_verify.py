"""``mmcare verify``: a file beside its certificate, without torch."""

import subprocess
import sys
from dataclasses import replace

import pytest
from exported_files import certificate, doubling
from helpers import ROOT, load_tool

from mmcare import runtime

SHAPE = (1, 3, 32, 48)


def computed(images):
    return {"c2": 2 * images, "c3": images.max((2, 3))}


def measured(**changes):
    """Return the certificate of the doubling model, as measured."""
    made = runtime.Measured(
        metric=runtime.Metric("coco/bbox_mAP", "COCO", 100, 0.5301, 0.5302),
        errors={name: runtime.OutputError(1e-7, 1e-5) for name in ("c2", "c3")},
        latency=runtime.Latency(SHAPE, 1, 12.5, 3.25),
        probe=runtime.record_probe(computed, SHAPE),
    )
    return certificate(operators={"Mul": 1, "ReduceMax": 1}, measured=replace(made, **changes))


@pytest.fixture
def verify(in_process):
    """Run the tool; return its status, the table's rows without spaces at the ends, and the error."""

    def verify(*args):
        status, printed = in_process(load_tool("verify").main, "verify.py", *args)
        return status, printed.out.splitlines(), printed.err

    return verify


def test_a_file_that_is_what_it_says(write, verify):
    status, table, error = verify(write(made=measured()))
    assert (status, error) == (0, "")
    assert table[0].split() == ["certified", "now"]
    assert table[1].split() == ["format", "onnx", ".onnx", "ok"]
    assert [line.split()[-1] for line in table[2:4]] == ["ok", "ok"]
    assert table[3].startswith("operators           2 of 2 kinds")
    assert table[4].split()[:8] == ["error", "of", "c2", "1.0e-07,", "at", "most", "1.0e-05", "0.0e+00"]
    assert table[4].endswith("ok") and table[5].startswith("error of c3") and table[5].endswith("ok")
    assert table[6].startswith("latency, 1×3×32×48  3.2 ms, PyTorch 12.5 ms, 1 thread")
    assert table[6].endswith(" ms, 1 thread")
    assert table[7].startswith("coco/bbox_mAP       0.530, PyTorch 0.530, 100 pictures of COCO")
    assert len(table) == 8


def test_a_file_that_computes_something_else(write, verify):
    probe = runtime.record_probe(lambda images: {**computed(images), "c2": 2.01 * images}, SHAPE)
    path = write(made=measured(probe=probe))
    status, table, error = verify(path)
    assert status == 2
    assert [line.split()[2] for line in table if line.endswith("WRONG")] == ["c2"]
    assert error == f"error: {path} is not what its certificate says: see error of c2; export the model again\n"


def test_a_file_with_other_operators(write, verify):
    path = write(made=replace(measured(), operators={"Mul": 2, "Add": 1}))
    status, table, error = verify(path)
    assert (status, error.split(": ")[2]) == (2, "see operators; export the model again\n")
    assert "2 of 2 kinds, 3 other: Add, Mul, ReduceMax" in table[3]


def test_what_was_not_measured_is_not_replayed(write, verify):
    status, table, _ = verify(write(made=certificate()), "--threads", 1)
    assert status == 0
    assert table[4].split(maxsplit=1) == ["outputs", "there is no probe"]
    assert len(table) == 5


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (
            {"seed": 1},
            "the certificate of {} cannot be used, as it has no measured.probe.shape: export the model again",
        ),
        (
            runtime.record_probe(lambda images: {"c4": images}, SHAPE),
            "{} returns something else than was certified: there is no output c4 of the size that was recorded",
        ),
        (
            runtime.record_probe(computed, (1, 3, 64, 64)),
            "{} takes 1 image of 32×48, not 1 image of 64×64: give such images, or export the model for others",
        ),
    ],
)
def test_a_probe_of_another_file_is_told(write, verify, probe, message):
    path = write(doubling(SHAPE), replace(certificate(SHAPE), measured=measured(probe=probe).measured))
    assert verify(path)[::2] == (2, f"error: {message.format(path)}\n")


def test_wrong_arguments_are_told(verify, write, tmp_path):
    path = write()
    assert verify(path, "--threads", 0)[2] == f"error: {path} cannot run with 0 threads: give 1 or more\n"
    assert verify(tmp_path / "a.onnx")[2] == f"error: there is no file {tmp_path}/a.onnx: give an exported file\n"


@pytest.mark.parametrize("command", ["mmcare", "mmcare.runtime"])
def test_it_imports_neither_torch_nor_openmmlab(write, command):
    code = (
        "import runpy, sys\n"
        f"sys.argv[0] = '{command}'\n"
        f"runpy.run_module('{command}', run_name='__main__')\n"
        "print(*sorted(name for name in sys.modules if '.' not in name))"
    )
    arguments = [sys.executable, "-c", code, "verify", write(made=measured())]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    imported = set(done.stdout.splitlines()[-1].split())
    assert not imported & {"torch", "mmengine", "mmcv", "mmdet", "mmseg", "cv2", "onnx"}
    assert "onnxruntime" in imported
    assert "error of c2" in done.stdout
