"""The forms of a backbone: the same network in other operations.

Runtimes differ in which form they compute fastest, so each target has the one that was measured to be (docs/export.md).
All are exact: in float32 the maps are those of the trained network to within 1e-5 relative error.
"""

from __future__ import annotations

import torch
from torch import nn

from ..fast import InParts, compute_apart, fold_norms, reparameterize
from ..models import PyramidBackbone


def _fold(model: nn.Module) -> nn.Module:
    """Fold the batch norms of the backbones into the convolutions beside them."""
    for backbone in backbones(model):
        for layers in list(backbone.modules()):
            if isinstance(layers, nn.Sequential):
                fold_norms(layers)
    return model


def _in_one_part(model: nn.Module) -> nn.Module:
    """Compute wide maps as a whole, not in parts for a processor's cache."""
    for module in model.modules():
        if isinstance(module, InParts):
            module.pixels = 0
    return model


def _contiguous(model: nn.Module) -> nn.Module:
    """Lay out the weights as (C, H, W), for exporters that refuse channels-last."""
    return model.to(memory_format=torch.contiguous_format)


FORMS = {
    "plain": (),
    "folded": (_fold,),
    "folded-apart": (_fold, compute_apart),
    "fast": (reparameterize,),
    "fast-whole": (reparameterize, _in_one_part, compute_apart),
    "fast-contiguous": (reparameterize, _in_one_part, _contiguous),
}
"""The steps from a trained model to each form."""


def to_form(model: nn.Module, form: str) -> nn.Module:
    """Return a trained model with its backbone in a form; the model itself may be changed.

    Args:
        model: the detector, segmentor or backbone.
        form: one of :data:`FORMS`.

    Raises:
        UserError: the form needs to fold a norm that cannot be folded.
    """
    for step in FORMS[form]:
        model = step(model)
    return model


def backbones(model: nn.Module) -> list[PyramidBackbone]:
    """Return the backbones that have forms, ours."""
    return [module for module in model.modules() if isinstance(module, PyramidBackbone)]
