"""Training with less memory: which activations are stored for the backward pass, and which are recomputed.

Networks mark the layers that may be recomputed by putting them in a :class:`Chain`. See docs/training-memory.md.
"""

from .chain import Chain
from .frozen_norms import BatchNorm
from .layout import is_captured, is_channels_last, laid_out_as, split, trains_in_channels_last
from .mode import keep_everything
from .recomputation import recompute_block

__all__ = [
    "BatchNorm",
    "Chain",
    "is_captured",
    "is_channels_last",
    "keep_everything",
    "laid_out_as",
    "recompute_block",
    "split",
    "trains_in_channels_last",
]
