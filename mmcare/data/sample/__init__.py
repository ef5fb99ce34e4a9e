"""A small data set of drawn shapes, made on demand, in COCO's format and in ADE20K's over the same images.

It lets every config be trained and tested to the end without a download. Objects overlap, are cut off by
the image's edge and differ in size, and colour only hints at their class, so it takes a working model to do well.
"""

from .generate import prepare
from .scene import CLASSES, SEMANTIC_CLASSES, Recipe

PALETTE: list[tuple[int, int, int]] = [(230, 60, 70), (60, 170, 75), (65, 100, 225), (245, 170, 40)]
"""RGB colours for :data:`CLASSES`."""

SEMANTIC_PALETTE: list[tuple[int, int, int]] = [(128, 128, 128), *PALETTE]
"""RGB colours for :data:`SEMANTIC_CLASSES`."""

__all__ = ["CLASSES", "PALETTE", "SEMANTIC_CLASSES", "SEMANTIC_PALETTE", "Recipe", "prepare"]
