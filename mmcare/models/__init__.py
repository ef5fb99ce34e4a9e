"""The two networks, as in the papers."""

from .base import PyramidBackbone
from .care import CARE
from .casvit import CASViT

__all__ = ["CARE", "CASViT", "PyramidBackbone"]
