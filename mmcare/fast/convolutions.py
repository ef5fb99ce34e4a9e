"""What the fast forms compute with: convolutions that bring GELU along, and hidden maps made a part at a time.

On CPUs oneDNN has operators that torch.compile puts in a convolution's place: they apply GELU, or add to a map, while
the values are still at hand, and take weights in the order in which they are read. Here they do so without compiling.
Everything else gets the plain operations: GPUs, float16, autocast, gradients, tracing and export, and torch.compile,
which fuses for itself.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..memory.layout import by_rows, is_channels_last
from ..memory.parts import Part, count_parts, part_of


def _has_fused_convolutions() -> bool:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    return not torch.ops.mkldnn._is_mkldnn_acl_supported()  # Arm's library has none


_FUSED_TYPES: tuple[torch.dtype, ...] = ()
if _has_fused_convolutions():
    _FUSED_TYPES = (torch.float32,)
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        _FUSED_TYPES += (torch.bfloat16,)


class FusedConv(nn.Conv2d):
    """A convolution for inference, with GELU after it if asked for.

    The order in which oneDNN reads weights depends on the map's size. They are put in it when a size differs from the
    call before, where torch's own convolution does so in each call, and kept beside the weights.

    Args:
        conv: what has the weights, which are shared.
        gelu: whether GELU follows.
        divide: which of its channels a part takes: ``"outputs"``, of each group its own inputs with them, or
            ``"inputs"``, so that the outputs are the parts' sum.
    """

    def __init__(self, conv: nn.Conv2d, gelu: bool = False, divide: Literal["inputs", "outputs"] = "outputs") -> None:
        sizes = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        super().__init__(*sizes, conv.groups, bias=False, device="meta")  # draws no random weights
        self.weight, self.bias = conv.weight, conv.bias
        self.gelu = gelu
        self.divide = divide
        self._ordered: dict[Part, tuple[Any, Tensor]] = {}

    def forward(self, x: Tensor, part: Part = (0, 1), to: Tensor | None = None) -> Tensor:
        """The convolution's part of the channels of x, added to ``to`` if given.

        Args:
            x: (B, C, H, W).
            part: which part of the channels.
            to: what the sum may be written over, in the shape of the output.
        """
        weight, bias = part_of(self.weight, self.bias, part, inputs=self.divide == "inputs")
        groups = max(self.groups // part[1], 1)
        if not self._is_fused(x):
            out = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, groups)
            out = self._gelu(out) if self.gelu else out
            return out if to is None else add_to(out, to)
        settings = (self.padding, self.stride, self.dilation, groups)
        weight = self._order(x, weight, part, settings)
        if to is not None and not self.gelu and to.dtype == x.dtype and is_channels_last(to):
            add = ("add", 1.0, None, [], None)
            return torch.ops.mkldnn._convolution_pointwise_.binary(to, x, weight, bias, *settings, *add)
        activation = ("gelu", [], "none") if self.gelu else ("none", [], "")
        out = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *settings, *activation)
        return out if to is None else add_to(out, to)

    def _gelu(self, x: Tensor) -> Tensor:
        return torch.ops.aten.gelu_(x) if is_captured() else by_rows(torch.ops.aten.gelu_, x)

    def _is_fused(self, x: Tensor) -> bool:
        if is_captured() or type(x) is not Tensor:
            return False
        recorded = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        layout = x.device.type == "cpu" and is_channels_last(x) and x.numel() > 0
        kind = x.dtype in _FUSED_TYPES and x.dtype == self.weight.dtype and not torch.is_autocast_enabled("cpu")
        # What is made in inference mode does not tell when it changes.
        return layout and kind and not recorded and not self.weight.is_inference() and torch.backends.mkldnn.enabled

    def _order(self, x: Tensor, weight: Tensor, part: Part, settings: tuple[Any, ...]) -> Tensor:
        key = (x.shape, x.dtype, self.weight.data_ptr(), self.weight._version)
        known = self._ordered.get(part)
        if known is None or known[0] != key:
            if part[0] == 0:
                self._ordered.clear()  # of another size, which may have had more parts
            ordered = torch.ops.mkldnn._reorder_convolution_weight(weight.detach(), *settings, x.shape)
            known = self._ordered[part] = (key, ordered)
        return known[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_ordered": {}}  # a copy orders its own


class InParts(nn.Module):
    """What makes large maps a part of their channels at a time.

    Attributes:
        pixels: for how many pixels to make parts while compiling, since one graph serves all sizes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pixels = 0

    def count_parts(self, x: Tensor, channels: int) -> int:
        """In how many parts to make a map of so many channels of x (B, C, H, W)."""
        return count_parts(x, channels, self.pixels if is_captured() else None)


class Expansion(InParts):
    """Convolutions through a hidden map, wide and made for nothing else: fc1, perhaps depth-wise ones, perhaps fc2.

    Where the hidden map is large it is made in parts (:mod:`~mmcare.memory.parts`), and never needs all of its memory.

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


def is_captured() -> bool:
    """Whether what runs becomes a program, which had better have plain operations and not depend on the size."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def add_to(branch: Tensor, x: Tensor) -> Tensor:
    """branch + x, written over ``branch`` unless, under autocast, the sum is of a wider type."""
    return branch.add_(x) if branch.dtype == x.dtype else branch + x
