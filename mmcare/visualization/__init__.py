"""What a network looks at: its pyramid, CARE's attention, CAS-ViT's context maps, and drawings of them."""

from .attention import ContextMaps, attention_of, context_maps
from .maps import draw_attention, draw_context, draw_maps
from .sheets import plan_sheets
from .views import Network, View, read_backbone, read_network

__all__ = [
    "ContextMaps",
    "Network",
    "View",
    "attention_of",
    "context_maps",
    "draw_attention",
    "draw_context",
    "draw_maps",
    "plan_sheets",
    "read_backbone",
    "read_network",
]
