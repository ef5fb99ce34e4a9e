"""Counts of what a network costs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def saved_activations(model: nn.Module, *inputs: Tensor) -> int:
    """Bytes of activations that a forward pass keeps for the backward pass.

    The forward pass runs in the model's present mode, so that norms in training mode count the batch into their
    statistics. Each storage counts once and whole, however many tensors are views of it; parameters and buffers do not
    count, as they are there anyway.

    Args:
        model: the network, with gradients for those parameters that would be trained.
        inputs: what its forward pass takes.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(*inputs)  # noqa: F841  the name keeps the storages, so that no address is used again
    return sum(saved.values())
