"""The two backbones, as the papers describe them, and their ablations."""

from .base import MIN_SIZE, PyramidBackbone
from .care import CARE
from .care_ablations import CAREAblation
from .casvit import CASViT
from .casvit_ablations import CASViTAblation
from .creation import create_backbone, list_backbones

__all__ = [
    "MIN_SIZE",
    "CARE",
    "CAREAblation",
    "CASViT",
    "CASViTAblation",
    "PyramidBackbone",
    "create_backbone",
    "list_backbones",
]
