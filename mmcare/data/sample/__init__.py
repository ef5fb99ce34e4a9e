"""A small data set of drawn shapes, made on demand, in COCO's format and in ADE20K's over the same images.

It lets every config be trained and tested to the end without a download. Objects overlap, are cut off by the image's
edge and differ in size, and colour only hints at their class, so it takes a working model to do well.
"""

from .contact_sheet import draw_contact_sheet
from .generate import prepare
from .overlay import overlay_sample
from .palettes import PALETTE, SEMANTIC_PALETTE
from .scene import CLASSES, SEMANTIC_CLASSES, Recipe

__all__ = [
    "CLASSES",
    "PALETTE",
    "SEMANTIC_CLASSES",
    "SEMANTIC_PALETTE",
    "Recipe",
    "draw_contact_sheet",
    "overlay_sample",
    "prepare",
]
