"""From pictures to results and drawings, with a trained detector or segmentor."""

from .prediction import Prediction, check_drawing
from .predictor import Predictor
from .sources import is_video, pictures_in
from .writing import Files

__all__ = ["Files", "Prediction", "Predictor", "check_drawing", "is_video", "pictures_in"]
