"""From pictures to results, drawings and what a network looks at, with a trained model."""

from .attention import ContextMaps, attention_of, context_maps
from .maps import draw_attention, draw_context, draw_maps
from .prediction import Prediction, check_drawing
from .predictor import Predictor
from .sheets import plan_sheets
from .sources import is_video, pictures_in
from .views import Network, View, read_backbone, read_network
from .writing import Files

__all__ = [
    "ContextMaps",
    "Files",
    "Network",
    "Prediction",
    "Predictor",
    "View",
    "attention_of",
    "check_drawing",
    "context_maps",
    "draw_attention",
    "draw_context",
    "draw_maps",
    "is_video",
    "pictures_in",
    "plan_sheets",
    "read_backbone",
    "read_network",
]
