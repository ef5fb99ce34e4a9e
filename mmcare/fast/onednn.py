"""oneDNN's fused convolutions: with GELU, with an addition, and with reordered weights.

torch.compile uses these operators for convolutions on CPUs. They are private to torch, so they are tested before
their first use, and used only where they compute the same as torch's public operations. Not on import: that would start
OpenMP's threads, without which a process that is forked later hangs.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Settings = tuple[Any, Any, Any, int]
"""Padding, stride, dilation and groups."""


@cache
def types() -> tuple[torch.dtype, ...]:
    """Return the types in which the operators can be used; none where the fast form needs torch's plain operations."""
    if not torch.backends.mkldnn.is_available():
        return ()
    return tuple(dtype for dtype in (torch.float32, torch.bfloat16) if _is_fast(dtype) and _works(dtype))


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings, gelu: bool) -> Tensor:
    """Return the convolution of a channels-last map (B, C, H, W), optionally followed by GELU."""
    activation = ("gelu", [], "none") if gelu else ("none", [], "")
    return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *settings, *activation)


def convolve_onto(to: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings) -> Tensor:
    """Add the convolution of a channels-last map to the channels-last map ``to``, in place."""
    return torch.ops.mkldnn._convolution_pointwise_.binary(to, x, weight, bias, *settings, "add", 1.0, None, [], None)


def order(weight: Tensor, settings: Settings, size: torch.Size) -> Tensor:
    """Return a convolution's weights in the order in which oneDNN reads them for a map of this size."""
    return torch.ops.mkldnn._reorder_convolution_weight(weight.detach(), *settings, size)


def _works(dtype: torch.dtype) -> bool:
    """Return whether the operators compute the same as torch's public ones in this type."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 5, 5, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(32, 16, 1, 1, generator=generator).to(dtype) / 4
    bias = torch.randn(32, generator=generator).to(dtype)
    settings = ([0, 0], [1, 1], [1, 1], 1)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    try:
        with torch.inference_mode():
            plain = F.conv2d(x, weight, bias).float()
            ordered = order(weight, settings, x.shape)
            found = (convolve(x, ordered, bias, settings, gelu=True), convolve(x, ordered, bias, settings, gelu=False))
            to = torch.ones_like(plain, dtype=dtype).contiguous(memory_format=torch.channels_last)
            found = (*found, convolve_onto(to, x, ordered, bias, settings))
            wanted = (F.gelu(plain), plain, plain + 1)
            pairs = zip(found, wanted, strict=True)
            return all(torch.allclose(a.float(), b, rtol=tolerance, atol=tolerance) for a, b in pairs)
    except (AttributeError, RuntimeError, TypeError):  # no such operator, not on this machine, other arguments
        return False


def _is_fast(dtype: torch.dtype) -> bool:
    """Return whether the processor computes in this type, rather than converting to float32 and back."""
    if dtype == torch.float32:
        return True
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False
