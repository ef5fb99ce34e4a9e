"""Time optimization trials side by side on this machine's CPU: ``python docs/trials.py`` prints a table.

docs/trials.md has the conclusions. The trials use internals of ``mmcare.fast`` and are meant for maintainers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.utils import ProgressBar
from tabulate import tabulate
from torch import Tensor, nn

from mmcare import keep_freed_memory
from mmcare.benchmark.measuring import machine
from mmcare.benchmark.timing import interleaved, timed_again
from mmcare.fast import onednn, parts
from mmcare.fast.care import FusedLinearAttention, FusedTokenMixer
from mmcare.fast.convolutions import Expansion, by_rows
from mmcare.fast.folding import conv_with
from mmcare.models.base import depthwise
from mmcare.models.care import LinearAttention, StripConvolution, TokenMixer

ROUNDS = 15

gelu_ = torch.ops.aten.gelu_


class Trial(NamedTuple):
    """Several ways to compute the same; the first one is the baseline."""

    subject: str
    ways: dict[str, Callable[[], Tensor]]


def trials() -> Iterator[Trial]:
    """Yield all trials, on maps with sizes as in CARE s1 and CAS-ViT m."""
    torch.manual_seed(0)
    x = random_map(256, 64)
    yield Trial(
        "GELU, 256 channels at 64×64", {"channels-last": lambda: F.gelu(x), "as rows": lambda: by_rows(F.gelu, x)}
    )
    for channels, hidden, side in ((32, 128, 128), (64, 256, 64), (128, 512, 32), (256, 1024, 16)):
        subject = f"1×1 convolution {channels} → {hidden} with GELU at {side}×{side}"
        yield Trial(subject, pointwise(random_map(channels, side), hidden))
    for height, width in ((128, 128), (200, 336)):
        yield Trial(f"32 → 128 → 32 channels with a 3×3 in between at {height}×{width}", hidden_map(height, width))
    yield Trial("3×3 and 7×7 depth-wise on 32 channels each at 32×32", near_views(random_map(96, 32)[:, 32:]))
    yield Trial("11×1 and 1×11 depth-wise on 16 channels at 64×64", strips(random_map(16, 64)))
    yield Trial("linear attention, 2 heads of 16 at 32×32", attention(random_map(32, 32)))


def random_map(channels: int, height: int, width: int | None = None) -> Tensor:
    return torch.randn(1, channels, height, width or height).contiguous(memory_format=torch.channels_last)


def random_conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1).to(memory_format=torch.channels_last).requires_grad_(False)


def pointwise(x: Tensor, hidden: int) -> dict[str, Callable[[], Tensor]]:
    conv = random_conv(x.shape[1], hidden)
    rows = conv.weight.flatten(1)

    def product() -> Tensor:
        return F.gelu(F.linear(x.permute(0, 2, 3, 1), rows, conv.bias)).permute(0, 3, 1, 2)

    ways = {"convolution, GELU": lambda: by_rows(gelu_, conv(x)), "matrix product, GELU": product}
    if x.dtype in onednn.types():
        settings = (conv.padding, conv.stride, conv.dilation, conv.groups)
        ways["fused"] = lambda: onednn.convolve(x, conv.weight, conv.bias, settings, gelu=True)
        ordered = onednn.order(conv.weight, settings, x.shape)
        ways["fused, weights reordered in advance"] = lambda: onednn.convolve(
            x, ordered, conv.bias, settings, gelu=True
        )
    return ways


def hidden_map(height: int, width: int) -> dict[str, Callable[[], Tensor]]:
    x = random_map(32, height, width)
    layers = [
        (random_conv(32, 128), True),
        (depthwise(128, 3).requires_grad_(False), False),
        (random_conv(128, 32), False),
    ]
    (fc1, _), (conv, _), (fc2, _) = layers
    branch = Expansion(*layers)

    def in_parts(count: int) -> Tensor:
        whole, parts.PART_BYTES = parts.PART_BYTES, 128 * height * width * x.element_size() // count
        try:
            return branch(x)
        finally:
            parts.PART_BYTES = whole

    def in_bands(count: int) -> Tensor:
        out, rows = torch.empty_like(x), height // count
        for top in range(0, height, rows):
            low, high = max(top - 1, 0), min(top + rows + 1, height)  # including the border rows that the 3×3 reads
            hidden = conv(by_rows(gelu_, fc1(x[:, :, low:high])))
            out[:, :, top : top + rows] = fc2(hidden[:, :, top - low : top - low + rows])
        return out

    return {
        "convolutions, GELU": lambda: fc2(conv(by_rows(gelu_, fc1(x)))),
        "in 2 bands of rows": lambda: in_bands(2),
        "in 8 bands of rows": lambda: in_bands(8),
        "fused": lambda: in_parts(1),
        "fused, in 2 parts of the channels": lambda: in_parts(2),
        "fused, in 4 parts of the channels": lambda: in_parts(4),
    }


def near_views(x: Tensor) -> dict[str, Callable[[], Tensor]]:
    mixer = TokenMixer(32, 16).requires_grad_(False).eval()
    small, large = x.chunk(2, dim=1)
    one = FusedTokenMixer(mixer).near
    return {
        "separate": lambda: torch.cat((mixer.near_small(small), mixer.near_large(large)), dim=1),
        "the 3×3 padded to 7×7": lambda: one(x),
    }


def strips(x: Tensor) -> dict[str, Callable[[], Tensor]]:
    two = StripConvolution(16).requires_grad_(False)
    vertical, horizontal = two.vertical, two.horizontal
    cross = F.pad(vertical.weight, (5, 5, 0, 0)) + F.pad(horizontal.weight, (0, 0, 5, 5))
    square = conv_with(cross, vertical.bias + horizontal.bias, groups=16, padding=5)
    return {"two and their sum": lambda: two(x), "both in an 11×11": lambda: square(x)}


def attention(x: Tensor) -> dict[str, Callable[[], Tensor]]:
    apart = LinearAttention(32, 16).requires_grad_(False)
    together = FusedLinearAttention(apart)
    return {"each head separately": lambda: apart(x), "all heads together, masked": lambda: together(x)}


def main() -> None:
    """Time all trials, interleaving the ways of each, and print a table in Markdown."""
    keep_freed_memory()
    found = list(trials())
    progress = ProgressBar(len(found), file=sys.stderr)
    cells = []
    with torch.inference_mode():
        for trial in found:
            seconds = interleaved([partial(timed_again, way, "cpu") for way in trial.ways.values()], ROUNDS, warmup=2)
            first = float(np.median(seconds[0]))
            for number, (way, own) in enumerate(zip(trial.ways, seconds, strict=True)):
                p10, median, p90 = (f"{value * 1e3:.2f}" for value in np.percentile(own, (10, 50, 90)))
                speed = f"{first / float(np.median(own)):.2f}×"
                cells.append(("" if number else trial.subject, way, f"{median} ms ({p10}–{p90})", speed))
            progress.update()
    print(f"\n{machine('cpu')}, {ROUNDS} rounds\n")
    print(tabulate(cells, ("operation", "way", "median (p10–p90)", "speed"), tablefmt="github"))


if __name__ == "__main__":
    main()
