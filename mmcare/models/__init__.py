"""The two backbones, their classifiers and their ablations."""

from .base import MIN_SIZE, PyramidBackbone
from .care import CARE
from .care_ablations import CAREAblation
from .casvit import CASViT
from .casvit_ablations import CASViTAblation
from .creation import create_backbone, list_backbones
from .heads import CAREHead, CASViTHead, ClassifierHead

__all__ = [
    "MIN_SIZE",
    "CARE",
    "CAREAblation",
    "CAREHead",
    "CASViT",
    "CASViTAblation",
    "CASViTHead",
    "ClassifierHead",
    "PyramidBackbone",
    "create_backbone",
    "list_backbones",
]
