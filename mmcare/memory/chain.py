"""Chains: sequences of layers that store only the outputs of dense convolutions in training, and recompute the rest.

Autograd stores the input of each operation until the backward pass. Norms, activations, depth-wise convolutions and
gates account for most of this memory but little of the arithmetic; for the 1×1 convolutions it is the other way round.
So a :class:`Chain` stores its input and the outputs of its dense convolutions, and recomputes the maps in between. A
norm with frozen statistics produces no map at all where it can be folded into the adjacent convolution
(:mod:`~mmcare.memory.frozen_norms`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from .frozen_norms import BatchNorm, FoldedConv, without_frozen_norms
from .layout import is_captured
from .mode import Saving, present
from .recomputation import hooks_are_possible, recompute

FEW_VALUES = {"cpu": 2**16, "cuda": 2**21}
"""Nothing is recomputed for maps with at most this many values: it would take time and save little memory.

On a GPU, the CPU needs longer to start the operations once more than the GPU needs for smaller maps.
"""

FEW_PIXELS = 2**8
"""The same for maps with at most this many pixels in the batch, however many channels they have."""


class Chain(nn.Sequential):
    """A sequence of layers; in training, the maps between its dense convolutions are recomputed.

    The outputs equal those of :class:`torch.nn.Sequential`, and so do the gradients up to rounding. Nothing is
    recomputed in eval mode or without gradients, for small maps, within :func:`~mmcare.memory.recompute_block` or
    :func:`~mmcare.memory.keep_everything`, under the transforms of ``torch.func``, or under ``torch.compile``, which
    decides for itself what to store.
    """

    def forward(self, x: Tensor) -> Tensor:
        saving = self._saving(x)
        if saving is Saving.NOTHING:
            return super().forward(x)
        for segment in _segments(without_frozen_norms(list(self), x)):
            x = _run(segment, x) if saving is Saving.FOLD or len(segment) == 1 else recompute(_run, segment, x)
        return x

    def _saving(self, x: Tensor) -> Saving:
        if not self.training or not torch.is_grad_enabled() or is_captured():
            return Saving.NOTHING
        few = FEW_VALUES.get(x.device.type, FEW_VALUES["cpu"])
        large = x.numel() > few and x.shape[0] * x.shape[2] * x.shape[3] > FEW_PIXELS
        return present() if large and hooks_are_possible() else Saving.NOTHING


def _segments(layers: Sequence[nn.Module | FoldedConv]) -> Iterator[list[nn.Module | FoldedConv]]:
    """Split layers where the map is stored: after each dense convolution.

    The maps before and after a norm that uses batch statistics are stored as well: recomputing the norm would update
    its running statistics twice and, in distributed training, synchronize with the other processes again.
    """
    segment: list[nn.Module | FoldedConv] = []
    for layer in layers:
        alone = isinstance(layer, BatchNorm) and layer.training
        if alone and segment:
            yield segment
            segment = []
        segment.append(layer)
        conv = layer.conv if isinstance(layer, FoldedConv) else layer
        if alone or (isinstance(conv, nn.Conv2d) and conv.groups == 1):
            yield segment
            segment = []
    if segment:
        yield segment


def _run(layers: Sequence[nn.Module | FoldedConv], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x
