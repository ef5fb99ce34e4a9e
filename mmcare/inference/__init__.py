"""From pictures to results and drawings, with a trained detector or segmentor."""

from .loading import build_test_transforms
from .prediction import Prediction, check_drawing
from .predictor import Predictor
from .reading import prepare
from .sources import Item, is_video, pictures_in
from .stored_config import stored_config
from .writing import Files

__all__ = [
    "Files",
    "Item",
    "Prediction",
    "Predictor",
    "build_test_transforms",
    "check_drawing",
    "is_video",
    "pictures_in",
    "prepare",
    "stored_config",
]
