"""Measure what token mixers cost over the number of tokens and of channels: ``python docs/complexity.py``.

It prints tables of times and multiply-accumulates (MACs), and draws both into ``docs/pictures/complexity.png``.
docs/ablations.md explains them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.utils import ProgressBar
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmcare import keep_freed_memory
from mmcare.benchmark.measuring import machine
from mmcare.benchmark.plots import exponent
from mmcare.benchmark.timing import interleaved, timed_again
from mmcare.files import write_picture
from mmcare.models.care import TokenMixer
from mmcare.models.care_ablations import StackedTokenMixer
from mmcare.models.casvit import AdditiveTokenMixer

PICTURE = Path("docs/pictures/complexity.png")
SIDES = (8, 16, 32, 64, 96)
"""Heights and widths of the maps, at the second of :data:`CHANNELS`."""
CHANNELS = (48, 96, 192, 384)
"""Widths of the maps, at the third of :data:`SIDES`; each can be divided by 3 · :data:`HEAD`."""
HEAD = 16
"""Width of an attention head."""
ROUNDS = 15
FITTED = 3
"""The exponents are fitted to so many of the largest sizes: in small maps, the time is that of calling operators."""


class SoftmaxAttention(nn.Module):
    """Multi-head attention, softmax(q kᵀ / √head) v, with torch's own kernel: O(N² · channels).

    Args:
        channels: width of the input and the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → the same shape."""
        tokens = x.flatten(2).transpose(1, 2)  # (B, N, channels)
        query, key, value = self.query_key_value(tokens).unflatten(2, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value)  # (B, heads, N, head)
        return self.project(out.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(x.shape)


class SeparableAttention(nn.Module):
    """MobileViTv2's separable self-attention, O(N): y = W_O (Σ_i softmax(W_I x)_i W_K x_i ⊙ ReLU(W_V x)).

    Paper: "Separable Self-attention for Mobile Vision Transformers", https://arxiv.org/abs/2206.02680, section 3.

    Args:
        channels: width of the input and the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.score_key_value = nn.Conv2d(channels, 1 + 2 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → the same shape."""
        score, key, value = self.score_key_value(x).flatten(2).split((1, self.channels, self.channels), dim=1)
        context = key @ score.softmax(dim=2).transpose(1, 2)  # (B, channels, 1)
        return self.project((context * value.relu()).reshape(x.shape))


MIXERS: dict[str, Callable[[int], nn.Module]] = {
    "CARE": lambda channels: TokenMixer(channels // 3, HEAD),
    "CARE, stacked": lambda channels: StackedTokenMixer(channels // 3, HEAD),
    "CAS-ViT": AdditiveTokenMixer,
    "softmax attention": SoftmaxAttention,
    "MobileViTv2": SeparableAttention,
}
"""Token mixers by name, built for a number of channels; each takes (B, channels, H, W) and returns the same shape."""


class Series(NamedTuple):
    """One token mixer over one kind of size."""

    seconds: list[list[float]]
    """The times of each size."""
    macs: list[int]
    """The MACs of each size."""

    @property
    def medians(self) -> list[float]:
        return [float(np.median(own)) for own in self.seconds]


class Bound(NamedTuple):
    """A complexity that a paper gives: a line through the largest size of a token mixer."""

    label: str
    mixer: str
    power: int
    style: str


class Scan(NamedTuple):
    """All token mixers over one kind of size."""

    label: str
    sizes: list[int]
    series: dict[str, Series]
    bounds: list[Bound]


def count(mixer: nn.Module, channels: int, side: int) -> int:
    """Return a token mixer's MACs in convolutions, linear layers and matrix products for one map."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        mixer.to("meta")(torch.empty(1, channels, side, side, device="meta"))
    return counter.get_total_flops() // 2


def measure(sizes: Sequence[tuple[int, int]], rounds: int, after_round: Callable[[], None]) -> dict[str, Series]:
    """Measure all token mixers side by side on maps of the given (channels, side)."""
    torch.manual_seed(0)
    calls = [
        partial(build(channels).eval(), torch.randn(1, channels, side, side))
        for build in MIXERS.values()
        for channels, side in sizes
    ]
    with torch.inference_mode():
        clocks = [partial(timed_again, call, "cpu") for call in calls]
        seconds = interleaved(clocks, rounds, warmup=2, after_round=after_round)
    return {
        name: Series(
            seconds[i * len(sizes) : (i + 1) * len(sizes)],
            [count(build(channels), channels, side) for channels, side in sizes],
        )
        for i, (name, build) in enumerate(MIXERS.items())
    }


def scans() -> list[Scan]:
    """Measure over the number of tokens, and over the number of channels."""
    progress = ProgressBar(2 * ROUNDS, file=sys.stderr)
    width, side = CHANNELS[1], SIDES[2]
    by_tokens = measure([(width, side) for side in SIDES], ROUNDS, progress.update)
    by_channels = measure([(channels, side) for channels in CHANNELS], ROUNDS, progress.update)
    linear, square = "O(N), through CAS-ViT's largest", "O(h·w·d₁²), through CARE's largest"
    tokens = Scan(
        f"tokens N = h·w, at {width} channels",
        [side**2 for side in SIDES],
        by_tokens,
        [Bound(linear, "CAS-ViT", 1, "--"), Bound(square, "CARE", 1, ":")],
    )
    channels = Scan(
        f"channels d = 3·d₁, at {side**2} tokens", list(CHANNELS), by_channels, [Bound(square, "CARE", 2, ":")]
    )
    return [tokens, channels]


def draw(found: Sequence[Scan]) -> Figure:
    """Draw times, with a band from the 10th to the 90th percentile, and MACs: a column of panels for each scan."""
    figure = Figure(figsize=(15, 11), layout="constrained")
    panels = figure.subplots(2, len(found), squeeze=False)
    for (times, macs), scan in zip(panels.T, found, strict=True):
        _draw_lines(times, scan, {name: [value * 1e3 for value in own.medians] for name, own in scan.series.items()})
        _draw_lines(macs, scan, {name: [value / 1e9 for value in own.macs] for name, own in scan.series.items()})
        for i, series in enumerate(scan.series.values()):
            low, high = np.percentile(series.seconds, (10, 90), axis=1) * 1e3
            times.fill_between(scan.sizes, low, high, color=f"C{i}", alpha=0.2)
        times.set_ylabel("median time, ms")
        macs.set_ylabel("GMACs")
    figure.suptitle(f"token mixers, one map; {machine('cpu')}, {ROUNDS} rounds", fontsize=9)
    return figure


def _draw_lines(axis: Axes, scan: Scan, values: dict[str, list[float]]) -> None:
    for i, (name, own) in enumerate(values.items()):
        label = f"{name}: exponent {_exponent(scan.sizes, own):.2f}"
        axis.plot(scan.sizes, own, color=f"C{i}", marker="o", label=label)
    for label, mixer, power, style in scan.bounds:
        line = [values[mixer][-1] * (size / scan.sizes[-1]) ** power for size in scan.sizes]
        axis.plot(scan.sizes, line, color="black", linestyle=style, label=label)
    axis.set(xscale="log", yscale="log", xlabel=scan.label)
    axis.set_xticks(scan.sizes, [str(size) for size in scan.sizes])
    axis.set_xticks([], minor=True)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    return exponent(sizes[-FITTED:], values[-FITTED:])


def tables(scan: Scan) -> str:
    """Return the tables of times and of MACs of a scan, in Markdown."""
    times, macs = [], []
    for name, series in scan.series.items():
        low, median, high = np.percentile(series.seconds, (10, 50, 90), axis=1) * 1e3
        cells = [f"{m:.2f} ({lo:.2f}–{hi:.2f})" for lo, m, hi in zip(low, median, high, strict=True)]
        times.append((name, *cells, f"{_exponent(scan.sizes, series.medians):.2f}"))
        cells = [f"{value / 1e6:.2f}" for value in series.macs]
        macs.append((name, *cells, f"{_exponent(scan.sizes, series.macs):.2f}"))
    return "\n\n".join(
        f"{unit} over {scan.label}:\n\n"
        + tabulate(rows, ("", *map(str, scan.sizes), "exponent"), tablefmt="github", disable_numparse=True)
        for unit, rows in (("ms, median (p10–p90)", times), ("MMACs", macs))
    )


def main() -> None:
    keep_freed_memory()
    found = scans()
    write_picture(draw(found), PICTURE)
    print(f"\n{machine('cpu')}, {ROUNDS} rounds; drawn in {PICTURE}\n")
    print("\n\n".join(map(tables, found)))


if __name__ == "__main__":
    main()
