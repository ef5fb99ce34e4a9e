"""Each case has its own process with the requested number of threads, and none outlives the benchmark."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from mmcare import UserError
from mmcare.benchmark import measure, plan, resolve
from mmcare.benchmark.processes import ask, new_process


def test_each_case_has_a_process_of_its_own(monkeypatch):
    made = []
    monkeypatch.setattr(
        "mmcare.benchmark.measuring.new_process", lambda device: made.append(new_process(device)) or made[-1]
    )
    subject = resolve("mobilenetv2")
    cases = plan([subject], ["eager", "channels-last"], 1, [(32, 32)], "cpu", training=False)
    rows = measure(cases, [subject], repeats=1, warmup=0)
    assert [row.form for row in rows] == ["eager", "channels-last"]
    assert rows[0].difference is None and rows[1].difference < 1e-5
    assert len(made) == 2


def threads():
    return torch.get_num_threads()


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_processes_and_their_end(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    case = plan([resolve("mobilenetv2")], ["eager"], 1, [(32, 32)], "cpu", training=False)[0]
    with new_process("cpu") as first, new_process("cpu") as second:
        found = {ask(process, case, os.getpid) for process in (first, second)}
        assert len(found | {os.getpid()}) == 3
        assert ask(first, case, threads) == 3
        with pytest.raises(UserError, match="^nix is neither a config"):
            ask(first, case, resolve, "nix")
        with pytest.raises(UserError, match=r"^the process that measured mobilenetv2 \(eager\) at 32×32 was killed"):
            ask(first, case, os.kill, ask(first, case, os.getpid), signal.SIGKILL)
        assert ask(second, case, os.getpid) in found
    assert not any(is_running(pid) for pid in found)


def test_a_process_for_cuda_is_no_fork_of_one_that_has_looked_for_a_gpu():
    with new_process("cuda") as process:
        assert ask(process, "a case", os.getppid) == os.getpid()


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
