from .care import CARE
from .casvit import CASViT

__all__ = ["CARE", "CASViT"]
