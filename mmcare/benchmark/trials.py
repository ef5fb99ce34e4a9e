"""What was tried for speed, side by side: ``python -m mmcare.benchmark.trials`` prints what docs/speed.md tells."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.utils import ProgressBar
from torch import Tensor, nn

from ..memory import parts
from ..models.base import depthwise
from ..models.care import FusedTokenMixer, LinearAttention, StripConvolution, TokenMixer
from ..fast.folding import conv_with
from ..fast.convolutions import Expansion, FusedConv
from ..memory.layout import by_rows
from .measure import interleaved, timed_again
from .run import machine
from .table import align

REPEATS = 15


class Trial(NamedTuple):
    """Ways to compute the same, the first of which the others are compared with."""

    subject: str
    ways: dict[str, Callable[[], Tensor | tuple[Tensor, ...]]]


def trials() -> Iterator[Trial]:
    """All trials, on maps as CARE s1 and CAS-ViT m have them."""
    torch.manual_seed(0)
    yield Trial("GELU, 256 channels at 64×64", _gelu(_map(256, 64)))
    for channels, hidden, side in ((32, 128, 128), (64, 256, 64), (128, 512, 32), (256, 1024, 16)):
        x = _map(channels, side)
        yield Trial(f"1×1 convolution {channels} → {hidden} with GELU at {side}×{side}", _pointwise(x, hidden))
    for inputs, outputs, side in ((128, 32, 128), (32, 128, 128), (256, 64, 64), (256, 1024, 16)):
        subject = f"backward pass of a 1×1 convolution {inputs} → {outputs} at {side}×{side}"
        yield Trial(subject, _backward(_map(inputs, side), _map(outputs, side)))
    for shape in ((128, 128), (200, 336)):
        yield Trial(f"32 → 128 → 32 channels with a 3×3 between at {shape[0]}×{shape[1]}", _hidden_map(*shape))
    mixer = TokenMixer(32, 16).requires_grad_(False).eval()
    x, near = _map(32, 32), _map(96, 32)[:, 32:]
    small, large = near.chunk(2, dim=1)
    one = FusedTokenMixer(mixer).near
    yield Trial(
        "3×3 and 7×7 depth-wise on 32 channels each at 32×32",
        {
            "apart": lambda: torch.cat((mixer.near_small(small), mixer.near_large(large)), dim=1),
            "the 3×3 in a 7×7": lambda: one(near),
        },
    )
    strips, wide = StripConvolution(16).requires_grad_(False), _map(16, 64)
    vertical, horizontal = strips.vertical, strips.horizontal
    cross = F.pad(vertical.weight, (5, 5, 0, 0)) + F.pad(horizontal.weight, (0, 0, 5, 5))
    square = conv_with(cross, vertical.bias + horizontal.bias, groups=16, padding=5)
    yield Trial(
        "11×1 and 1×11 depth-wise on 16 channels at 64×64",
        {"two and their sum": lambda: strips(wide), "the two in an 11×11": lambda: square(wide)},
    )
    attention = LinearAttention(32, 16).requires_grad_(False)
    fast = attention.fuse()
    yield Trial(
        "linear attention, 2 heads of 16 at 32×32",
        {"each head apart": lambda: attention(x), "all heads, masked": lambda: fast(x)},
    )


def _map(channels: int, height: int, width: int | None = None) -> Tensor:
    return torch.randn(1, channels, height, width or height).contiguous(memory_format=torch.channels_last)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1).to(memory_format=torch.channels_last).requires_grad_(False)


def _gelu(x: Tensor) -> dict[str, Callable[[], Tensor]]:
    return {"of a channels-last map": lambda: F.gelu(x), "of the same as rows": lambda: by_rows(F.gelu, x)}


def _pointwise(x: Tensor, hidden: int) -> dict[str, Callable[[], Tensor]]:
    conv = _conv(x.shape[1], hidden)
    fused, rows = FusedConv(conv, gelu=True), conv.weight.flatten(1)

    def forgetful() -> Tensor:
        fused._ordered.clear()
        return fused(x)

    def product() -> Tensor:
        return F.gelu(F.linear(x.permute(0, 2, 3, 1), rows, conv.bias)).permute(0, 3, 1, 2)

    return {
        "convolution, GELU": lambda: by_rows(torch.ops.aten.gelu_, conv(x)),
        "matrix product, GELU": product,
        "fused": forgetful,
        "fused, weights ordered before": lambda: fused(x),
    }


def _backward(x: Tensor, grad: Tensor) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    weight = _conv(x.shape[1], grad.shape[1]).weight

    def convolution(*wanted: bool) -> tuple[Tensor, ...]:
        settings = ([len(weight)], [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
        return torch.ops.aten.convolution_backward(grad, x, weight, *settings, wanted)

    def apart() -> tuple[Tensor, ...]:
        return convolution(True, False, False)[0], convolution(False, True, False)[1], grad.sum((0, 2, 3))

    def products() -> tuple[Tensor, ...]:
        rows, columns = (tensor.permute(0, 2, 3, 1) for tensor in (grad, x))
        of_x, of_weight = rows @ weight.flatten(1), rows.flatten(0, 2).t() @ columns.flatten(0, 2)
        return of_x.permute(0, 3, 1, 2), of_weight.view_as(weight), rows.sum((0, 1, 2))

    return {
        "in one call": lambda: convolution(True, True, True),
        "of the map, the weights and the bias apart": apart,
        "as matrix products": products,
    }


def _hidden_map(height: int, width: int) -> dict[str, Callable[[], Tensor]]:
    x = _map(32, height, width)
    layers = [(_conv(32, 128), True), (depthwise(128, 3).requires_grad_(False), False), (_conv(128, 32), False)]
    (fc1, _), (conv, _), (fc2, _) = layers

    def in_parts(count: int) -> Callable[[], Tensor]:
        branch = Expansion(*layers)

        def run() -> Tensor:
            whole, parts.PART_BYTES = parts.PART_BYTES, 128 * height * width * x.element_size() // count
            try:
                return branch(x)
            finally:
                parts.PART_BYTES = whole

        return run

    def in_bands(count: int) -> Tensor:
        out, rows = torch.empty_like(x), height // count
        for top in range(0, height, rows):
            low, high = max(top - 1, 0), min(top + rows + 1, height)  # with the rows that the 3×3 reads
            hidden = conv(by_rows(torch.ops.aten.gelu_, fc1(x[:, :, low:high])))
            out[:, :, top : top + rows] = fc2(hidden[:, :, top - low : top - low + rows])
        return out

    return {
        "convolutions, GELU": lambda: fc2(conv(by_rows(torch.ops.aten.gelu_, fc1(x)))),
        **{f"in {count} bands of rows": lambda count=count: in_bands(count) for count in (2, 8)},
        "fused": in_parts(1),
        **{f"fused, in {count} parts of the channels": in_parts(count) for count in (2, 4)},
    }


def main() -> None:
    """Runs all trials, the ways of each side by side."""
    cells = [("what", "how", "median", "p10", "p90", "speed")]
    found = list(trials())
    progress = ProgressBar(len(found), file=sys.stderr)
    with torch.inference_mode():
        for trial in found:
            seconds = interleaved([partial(timed_again, way, "cpu") for way in trial.ways.values()], REPEATS, warmup=2)
            first = float(np.median(seconds[0]))
            for way, own in zip(trial.ways, seconds, strict=True):
                p10, median, p90 = (f"{value * 1e3:.2f} ms" for value in np.percentile(own, (10, 50, 90)))
                cells.append((trial.subject, way, median, p10, p90, f"{first / float(np.median(own)):.2f}×"))
            progress.update()
    print(f"\n{machine('cpu')}, {REPEATS} rounds", *align(cells, left=2), sep="\n")


if __name__ == "__main__":
    main()
