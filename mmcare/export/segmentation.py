"""MMSegmentation's segmentors as modules from images to tensors."""

from __future__ import annotations

import torch.nn.functional as F
from mmseg.models.segmentors import EncoderDecoder
from mmseg.models.utils import Upsample
from torch import Tensor, nn

from ..errors import UserError
from .substitutes import AveragePool, Enlarge

Size = tuple[int, int]


def check(model: nn.Module) -> None:
    """Raise UserError if a segmentor has a setting that the exported graph would not compute alike."""
    if type(model) is not EncoderDecoder:
        raise UserError(f"there is no export of a {type(model).__name__}: give an EncoderDecoder, or --part backbone")
    mode = model.test_cfg.get("mode", "whole")
    if mode != "whole":
        raise UserError(f'test_cfg.mode is {mode!r}, but an exported file computes an image at once: set it to "whole"')
    if model.data_preprocessor.test_cfg:
        raise UserError("data_preprocessor.test_cfg pads images, which an exported file does not: remove it")
    if model.decode_head.out_channels < 2:
        raise UserError("the head has one channel for two classes, of which there is no export: set out_channels to 2")


def build(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the module from images to label maps, and the names of its outputs."""
    check(model)
    return Segmentor(model), ("output", "scores")


def build_network(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the module from images to the head's map, and the names of its outputs."""
    check(model)
    return Network(model), ("logits",)


class Network(nn.Module):
    """Images to the head's map, (B, classes, about H / 4, about W / 4)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        _substitute(self.model)

    def forward(self, images: Tensor, size: Size) -> tuple[Tensor, ...]:
        return (self.model.decode_head(self.model.extract_feat(images)),)


class Segmentor(Network):
    """Images (B, 3, H, W), normalized → ``output`` (B, H, W), the class of each pixel, and ``scores``, its probability.

    ``output`` is int64, as in mmdeploy.
    """

    def forward(self, images: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        (logits,) = super().forward(images, size)
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=self.model.decode_head.align_corners)
        highest, output = logits.max(1)
        return output, 1 / (logits - highest.unsqueeze(1)).exp().sum(1)


def _substitute(model: nn.Module) -> None:
    """Replace modules that compute with the sizes of their maps in Python, which a graph for all sizes cannot have."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.AdaptiveAvgPool2d:
                setattr(module, name, AveragePool(child.output_size))
            elif type(child) is Upsample and not child.size and child.scale_factor == int(child.scale_factor):
                setattr(module, name, Enlarge(int(child.scale_factor), child.mode, child.align_corners))
