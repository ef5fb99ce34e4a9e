"""From pictures to results and drawings, with a trained detector or segmentor."""

from .prediction import Prediction, check_drawing
from .predictor import Predictor
from .sources import is_video, pictures_in, video_rate
from .writing import coco_files, drawing_name, video_file, write_image

__all__ = [
    "Prediction",
    "Predictor",
    "check_drawing",
    "coco_files",
    "drawing_name",
    "is_video",
    "pictures_in",
    "video_file",
    "video_rate",
    "write_image",
]
