"""The building blocks of the fast form: convolutions fused with GELU and additions, and hidden maps computed in parts.

On CPUs oneDNN fuses a convolution with GELU or an addition, and accepts weights that are already in the order in which
it reads them (:mod:`~mmcare.fast.onednn`). Everything else uses torch's plain operations: GPUs, float16, autocast,
gradients, tracing and export, and torch.compile, which does its own fusion. On GPUs, 1×1 convolutions in half precision
are matrix products.
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
    """A parameter that notices every edit: ``weight.data.mul_(2)`` increases its version as well.

    torch gives ``data`` a version counter of its own, so edits through it would leave the reordered weights stale.
    :meth:`~torch.Tensor.detach` shares the counter. As with autograd, writes through a NumPy array that shares the
    memory go unnoticed.
    """

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        Tensor.data.__set__(self, value)


class FusedConv(nn.Conv2d):
    """A convolution for inference, optionally followed by GELU.

    The order in which oneDNN reads weights depends on the map's size. torch's own convolution reorders them in each
    call; this one stores the reordered weights, and renews them when the size changes or the weights were edited.

    Args:
        conv: the convolution, whose weights are shared.
        gelu: apply GELU to the output.
        divide: how the convolution is divided into parts: by ``"outputs"``, where each group takes its own inputs
            along, or by ``"inputs"``, where the output is the sum of the parts.
    """

    def __init__(self, conv: nn.Conv2d, gelu: bool = False, divide: Literal["inputs", "outputs"] = "outputs") -> None:
        sizes = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        super().__init__(*sizes, conv.groups, bias=False, device="meta")  # draws no random weights
        self.weight, self.bias = Weight(conv.weight.detach(), requires_grad=False), conv.bias
        self.gelu = gelu
        self.divide = divide
        self._ordered: dict[Part, tuple[Any, Tensor]] = {}

    def forward(self, x: Tensor, part: Part = (0, 1), to: Tensor | None = None) -> Tensor:
        """Return a part of the convolution of x, added to ``to`` if given.

        Args:
            x: (B, C, H, W).
            part: which part of the channels.
            to: a map in the shape of the output, which may be overwritten with the sum.
        """
        weight, bias = part_of(self.weight, self.bias, part, inputs=self.divide == "inputs")
        groups = max(self.groups // part[1], 1)
        if not self._is_fused(x):
            if self._is_product(x):
                out = F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
            else:
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
        kind = x.dtype in onednn.types() and x.dtype == self.weight.dtype and not torch.is_autocast_enabled("cpu")
        # Tensors created in inference mode have no version counter.
        return layout and kind and not recorded and not self.weight.is_inference() and torch.backends.mkldnn.enabled

    def _is_product(self, x: Tensor) -> bool:
        """Return whether to compute the convolution as a matrix product, in which CUDA adds the bias for free.

        cuDNN's convolutions leave it to another pass over the map, which takes longer than they do. Not in float32,
        where convolutions may compute in TF32, and matrix products may not unless the user allows it.
        """
        kind = x.device.type
        if (
            kind != "cuda"
            or self.kernel_size != (1, 1)
            or self.groups > 1
            or self.stride != (1, 1)
            or any(self.padding)
        ):
            return False
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        return dtype in (torch.float16, torch.bfloat16) and is_channels_last(x)

    def _order(self, x: Tensor, weight: Tensor, part: Part, settings: onednn.Settings) -> Tensor:
        if not isinstance(self.weight, Weight):  # the caller has replaced it
            return onednn.order(weight, settings, x.shape)
        key = (x.shape, x.dtype, self.weight.data_ptr(), version(self.weight))
        known = self._ordered.get(part)
        if known is None or known[0] != key:
            if part[0] == 0:
                self._ordered.clear()  # another size may have had more parts
            known = self._ordered[part] = (key, onednn.order(weight, settings, x.shape))
        return known[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_ordered": {}}  # a copy reorders its own weights

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.weight = Weight(self.weight.detach(), requires_grad=self.weight.requires_grad)  # pickled as a Parameter


class InParts(nn.Module):
    """Base class of modules that compute large maps in parts of the channels.

    Attributes:
        pixels: the number of pixels to assume while compiling, since one graph serves all sizes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pixels = 0

    def count_parts(self, x: Tensor, channels: int) -> int:
        """Return the number of parts for a map with this many channels, computed from x (B, C, H, W)."""
        return count_parts(x, channels, self.pixels if is_captured() else None)


class Expansion(InParts):
    """Convolutions through a wide hidden map: fc1, optional depth-wise convolutions, optional fc2.

    A large hidden map is computed in parts (:mod:`~mmcare.fast.parts`), and is never in memory as a whole.

    Args:
        layers: pairs of a convolution and whether GELU follows it. The last convolution is fc2; if ``project`` is
            False, it returns the hidden map.
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
        """Return the output of the last convolution for x (B, C, H, W), added to ``to`` if given.

        ``to`` may be x, and may be overwritten.
        """
        count = self.count_parts(x, self.layers[0].out_channels) if self.project else 1
        out = to.clone() if to is x and count > 1 else to  # the next part reads x as well
        for index in range(count):
            hidden = x
            for layer in self.layers[:-1]:
                hidden = layer(hidden, (index, count))
            out = self.layers[-1](hidden, (index, count), out)
        return out


def add_to(branch: Tensor, x: Tensor) -> Tensor:
    """Return branch + x; overwrite ``branch``, unless the sum has a wider type, as under autocast."""
    return branch.add_(x) if branch.dtype == x.dtype else branch + x


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``function(x)`` of a map (B, C, H, W) for an element-wise function.

    The function gets a channels-last map as (B, H, W, C): on CPUs torch's GELU is up to twice as fast for contiguous
    tensors, and it does not treat channels-last as contiguous.
    """
    return function(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if is_channels_last(x) else function(x)


def _gelu(x: Tensor) -> Tensor:
    return torch.ops.aten.gelu_(x) if is_captured() else by_rows(torch.ops.aten.gelu_, x)
