"""The two backbones, as the papers describe them."""

from .base import PyramidBackbone
from .care import CARE
from .casvit import CASViT
from .creation import create_backbone, list_backbones

__all__ = ["CARE", "CASViT", "PyramidBackbone", "create_backbone", "list_backbones"]
