"""The two backbones, as the papers describe them."""

from .base import PyramidBackbone
from .care import CARE
from .casvit import CASViT

__all__ = ["CARE", "CASViT", "PyramidBackbone"]
