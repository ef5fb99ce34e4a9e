"""The two backbones and their classifiers, as the papers describe them."""

from .base import MIN_SIZE, PyramidBackbone
from .care import CARE
from .casvit import CASViT
from .creation import create_backbone, list_backbones
from .heads import CAREHead, CASViTHead, ClassifierHead

__all__ = [
    "MIN_SIZE",
    "CARE",
    "CAREHead",
    "CASViT",
    "CASViTHead",
    "ClassifierHead",
    "PyramidBackbone",
    "create_backbone",
    "list_backbones",
]
