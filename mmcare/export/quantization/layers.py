"""Which layers become int8, and the blocks of the network that they belong to.

Only dense convolutions of the backbone, the neck and the dense heads do: they are nearly all of the arithmetic.
Depth-wise ones compute little for what they read, and were slower in int8. Attention, norms, everything after the
heads' maps, and the heads of regions stay in float.
"""

from __future__ import annotations

import re

_GROUPS = (
    r"backbone\.(?:stem|stages\.\d+\.(?:downsample|blocks\.\d+))",
    r"backbone\.\w+",  # of another backbone
    r"neck\.\w+",
    r"(?:bbox|rpn|decode)_head\.\w+",
)


def group_of(weight: str) -> str | None:
    """Return the block that a convolution belongs to, such as ``backbone.stages.2.blocks.0``; None if it stays float.

    Args:
        weight: the name of its weight in an exported graph, which is that of the parameter.
    """
    name = re.sub(r"^(?:compute\.)?(?:model\.)?", "", weight)
    return next((found.group() for pattern in _GROUPS if (found := re.match(pattern + r"(?=\.)", name))), None)
