"""The two backbones, as the papers describe them."""

from .base import MIN_SIZE, PyramidBackbone
from .care import CARE
from .casvit import CASViT
from .creation import create_backbone, list_backbones

__all__ = ["MIN_SIZE", "CARE", "CASViT", "PyramidBackbone", "create_backbone", "list_backbones"]
