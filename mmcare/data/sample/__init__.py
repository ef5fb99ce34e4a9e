"""A small data set of drawn shapes, generated on demand, in COCO's and in ADE20K's format with the same images.

With it every config can be trained and tested to the end without a download. Objects overlap, are cut off at the border
of the image and differ in size, and colour only hints at their class, so only a working model scores well.
"""

from .contact_sheet import draw_contact_sheet
from .generate import prepare
from .overlay import overlay_sample
from .palettes import PALETTE, SEMANTIC_PALETTE
from .scene import CLASSES, OTHER_CLASSES, SEMANTIC_CLASSES, Recipe

__all__ = [
    "CLASSES",
    "OTHER_CLASSES",
    "PALETTE",
    "SEMANTIC_CLASSES",
    "SEMANTIC_PALETTE",
    "Recipe",
    "draw_contact_sheet",
    "overlay_sample",
    "prepare",
]
