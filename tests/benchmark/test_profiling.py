"""The profile counts operations and bytes of each operator, and gives its distance from the machine's limit."""

import re

import pytest
import torch
from torch import nn

from mmcare.benchmark.profiling import Kind, profile, profile_table
from mmcare.fast import onednn
from mmcare.fast.convolutions import Expansion


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


@pytest.mark.skipif(not onednn.types(), reason="torch has no fused convolutions on this machine")
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
    _, _, *lines = (re.split(r"\s{2,}", line) for line in text.splitlines())
    assert lines[0] == ["convolution 1×1", "30.00 ms", "75.0%", "2", "10.000", "100.00", "100.0", "compute", "33%"]
    assert lines[1] == ["gelu", "10.00 ms", "25.0%", "1", "0.000", "100.00", "0.0", "memory", "50%"]
    assert lines[3][:2] == ["all", "40.00 ms"] and lines[3][-1] == "37%"
