"""Layers in a row, of which training keeps what is dear to compute, and computes the rest again.

Autograd keeps the input of each operation until the backward pass. Most of these maps are cheap to make from others
that are kept as well: norms, activations, depth-wise convolutions and gates are most of the memory and a small part of
the arithmetic, the 1×1 convolutions the other way round. So a :class:`Chain` keeps its input and what its dense
convolutions return, and makes the maps between them again. A norm whose statistics are frozen makes no map at all where
it can be put into the weights of the convolution beside it (:mod:`~mmcare.memory.frozen_norms`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from .frozen_norms import BatchNorm, FoldedConv, without_frozen_norms
from .layout import is_captured
from .mode import Saving, present
from .recomputation import hooks_are_possible, recompute

FEW_VALUES = 2**16
"""Of maps with no more values than this everything is kept: computing them again takes time and saves little memory."""

FEW_PIXELS = 2**8
"""So it is of maps with no more pixels than this in the batch, however many channels they have."""


class Chain(nn.Sequential):
    """Layers one after the other; in training the maps between its dense convolutions are computed again.

    The outputs are those of :class:`torch.nn.Sequential`, and so are the gradients up to rounding. Nothing is computed
    again in eval mode or without gradients; on small maps; within :func:`~mmcare.memory.recompute_block` or
    :func:`~mmcare.memory.keep_everything`; under the transforms of ``torch.func``; and under ``torch.compile``, which
    decides for itself what to keep.
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
        large = x.numel() > FEW_VALUES and x.shape[0] * x.shape[2] * x.shape[3] > FEW_PIXELS
        return present() if large and hooks_are_possible() else Saving.NOTHING


def _segments(layers: Sequence[nn.Module | FoldedConv]) -> Iterator[list[nn.Module | FoldedConv]]:
    """Split layers where the map is kept: behind each dense convolution.

    The map before a norm that takes the statistics of the batch, and the one after it, are kept as well: computed again
    it would count the batch a second time, and in distributed training talk to the other processes again.
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
