"""What the fast forms compute with: convolutions fused with GELU and sums, and hidden maps made a part at a time.

On CPUs oneDNN applies GELU, or adds to a map, while a convolution's values are still at hand, and takes weights in the
order in which they are read (:mod:`~mmcare.fast.onednn`). Everything else gets the plain operations: GPUs, float16,
autocast, gradients, tracing and export, and torch.compile, which fuses for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..memory import is_captured, is_channels_last
from ..torch_internals import version
from . import onednn
from .parts import Part, count_parts, part_of


class Weight(nn.Parameter):
    """A parameter of which every edit shows: ``weight.data.mul_(2)`` raises its version, too.

    torch gives ``data`` a version counter of its own, so that what was made of the weights before would not be made
    anew. With :meth:`~torch.Tensor.detach` the counter is shared. As with autograd, only what is written to the memory
    behind torch's back, by an array of NumPy's that shares it, goes unnoticed.
    """

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        Tensor.data.__set__(self, value)


class FusedConv(nn.Conv2d):
    """A convolution for inference, with GELU after it if asked for.

    The order in which oneDNN reads weights depends on the map's size. They are put in it when a size differs from the
    call before or the weights were edited, where torch's own convolution does so in each call, and kept beside them.

    Args:
        conv: what has the weights, which are shared.
        gelu: whether GELU follows.
        divide: which of its channels a part takes: ``"outputs"``, of each group its own inputs with them, or
            ``"inputs"``, so that the outputs are the parts' sum.
    """

    def __init__(self, conv: nn.Conv2d, gelu: bool = False, divide: Literal["inputs", "outputs"] = "outputs") -> None:
        sizes = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        super().__init__(*sizes, conv.groups, bias=False, device="meta")  # draws no random weights
        self.weight, self.bias = Weight(conv.weight.detach(), requires_grad=False), conv.bias
        self.gelu = gelu
        self.divide = divide
        self._ordered: dict[Part, tuple[Any, Tensor]] = {}

    def forward(self, x: Tensor, part: Part = (0, 1), to: Tensor | None = None) -> Tensor:
        """Return the convolution's part of the channels of x, added to ``to`` if given.

        Args:
            x: (B, C, H, W).
            part: which part of the channels.
            to: what the sum may be written over, in the shape of the output.
        """
        weight, bias = part_of(self.weight, self.bias, part, inputs=self.divide == "inputs")
        groups = max(self.groups // part[1], 1)
        if not self._is_fused(x):
            out = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, groups)
            out = _gelu(out) if self.gelu else out
            return out if to is None else add_to(out, to)
        settings = (self.padding, self.stride, self.dilation, groups)
        weight = self._order(x, weight, part, settings)
        if to is not None and not self.gelu and to.dtype == x.dtype and is_channels_last(to):
            return onednn.convolve_onto(to, x, weight, bias, settings)
        out = onednn.convolve(x, weight, bias, settings, self.gelu)
        return out if to is None else add_to(out, to)

    def _is_fused(self, x: Tensor) -> bool:
        if is_captured() or type(x) is not Tensor:
            return False
        recorded = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        layout = x.device.type == "cpu" and is_channels_last(x) and x.numel() > 0
        kind = x.dtype in onednn.TYPES and x.dtype == self.weight.dtype and not torch.is_autocast_enabled("cpu")
        # What is made in inference mode does not tell when it changes.
        return layout and kind and not recorded and not self.weight.is_inference() and torch.backends.mkldnn.enabled

    def _order(self, x: Tensor, weight: Tensor, part: Part, settings: onednn.Settings) -> Tensor:
        if not isinstance(self.weight, Weight):  # somebody has given it another
            return onednn.order(weight, settings, x.shape)
        key = (x.shape, x.dtype, self.weight.data_ptr(), version(self.weight))
        known = self._ordered.get(part)
        if known is None or known[0] != key:
            if part[0] == 0:
                self._ordered.clear()  # of another size, which may have had more parts
            known = self._ordered[part] = (key, onednn.order(weight, settings, x.shape))
        return known[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_ordered": {}}  # a copy orders its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.weight = Weight(self.weight.detach(), requires_grad=self.weight.requires_grad)  # pickled as a Parameter


class InParts(nn.Module):
    """What makes large maps a part of their channels at a time.

    Attributes:
        pixels: for how many pixels to make parts while compiling, since one graph serves all sizes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pixels = 0

    def count_parts(self, x: Tensor, channels: int) -> int:
        """Return in how many parts to make a map of so many channels of x (B, C, H, W)."""
        return count_parts(x, channels, self.pixels if is_captured() else None)


class Expansion(InParts):
    """Convolutions through a hidden map, wide and made for nothing else: fc1, perhaps depth-wise ones, perhaps fc2.

    Where the hidden map is large it is made in parts (:mod:`~mmcare.fast.parts`), and never needs all of its memory.

    Args:
        layers: the convolutions, each with whether GELU follows it. The last is fc2, or where ``project`` is false it
            gives the hidden map.
        project: whether there is an fc2.
    """

    def __init__(self, *layers: tuple[nn.Conv2d, bool], project: bool = True) -> None:
        super().__init__()
        last = len(layers) - 1
        self.layers = nn.ModuleList(
            FusedConv(conv, gelu, "inputs" if project and i == last else "outputs")
            for i, (conv, gelu) in enumerate(layers)
        )
        self.project = project

    def forward(self, x: Tensor, to: Tensor | None = None) -> Tensor:
        """(B, C, H, W) → what the last convolution returns, added to ``to``, which may be x and be written over."""
        count = self.count_parts(x, self.layers[0].out_channels) if self.project else 1
        out = to.clone() if to is x and count > 1 else to  # the next part reads x, too
        for index in range(count):
            hidden = x
            for layer in self.layers[:-1]:
                hidden = layer(hidden, (index, count))
            out = self.layers[-1](hidden, (index, count), out)
        return out


def add_to(branch: Tensor, x: Tensor) -> Tensor:
    """Return branch + x, written over ``branch`` unless, under autocast, the sum is of a wider type."""
    return branch.add_(x) if branch.dtype == x.dtype else branch + x


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``function(x)`` of a map (B, C, H, W), for a function of each value by itself.

    Channels-last maps are given as (B, H, W, C): on CPUs torch's GELU is up to twice as fast where it can tell that
    there are no gaps, and it looks for them in the order of the dimensions only.
    """
    return function(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if is_channels_last(x) else function(x)


def _gelu(x: Tensor) -> Tensor:
    return torch.ops.aten.gelu_(x) if is_captured() else by_rows(torch.ops.aten.gelu_, x)
