"""Training in less memory: what of a network is kept for the backward pass, and what is computed again there.

A network says what may be computed again by its :class:`Chain`\\ s. docs/speed.md has what that costs and saves.
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
