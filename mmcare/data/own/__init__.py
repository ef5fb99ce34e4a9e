"""People's own data sets: reading the usual formats, and switching any config to them.

COCO's JSON, YOLO's text files, Pascal VOC's XML, labelme's JSON and label maps become one description in the terms of
COCO, from which the files are written that MMDetection and MMSegmentation read.

The formats are not read by ``supervision``, as its readers turn each polygon into a mask of the picture's size and keep
all of them in memory (115 MiB for ten objects in a picture of 12 megapixels), lose the polygons' points, round boxes to
float32, decode each picture (0.3 s for one of this size), do not read Pascal VOC's ``difficult``, and do not name the
line of an error. The tests compare with it.

Importing this package is cheap: NumPy, Pillow and others are imported when a function is called.
"""

from .formats import FORMATS
from .overlay import overlay_own_data
from .preparing import BACKGROUNDS, OwnData, PreparedData, prepare

__all__ = ["BACKGROUNDS", "FORMATS", "OwnData", "PreparedData", "overlay_own_data", "prepare"]
