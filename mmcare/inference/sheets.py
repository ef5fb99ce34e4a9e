"""All pictures of what a network makes of an image, by file name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..errors import UserError
from ..models import CARE
from .attention import attention_of, context_maps
from .maps import draw_attention, draw_context, draw_maps, stage_name
from .views import Network, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plan_sheets(network: Network, view: View, stages: Sequence[int], image: str) -> dict[str, Callable[[], Figure]]:
    """Compute what a network makes of an image; return the functions that draw it, by file name.

    ``maps.png`` has the maps of the pyramid. ``attention_c4.png`` and ``attention_c5.png`` have CARE's attention: its
    stages C2 and C3 have strip convolutions instead. ``context_c2.png`` to ``context_c5.png`` have CAS-ViT's context
    maps.

    Args:
        network: the network.
        view: the image as the network gets it, and the point.
        stages: indices of the stages to draw, 0 to 3.
        image: name of the image, for the titles.

    Raises:
        UserError: there is nothing to draw in these stages, or the network is in its fast form.
    """
    backbone = network.backbone
    about = f"{network.name}, {image}: "
    with torch.no_grad():
        emitted = zip(backbone.out_indices, backbone(view.image[None]), strict=True)
    maps = {stage: feature[0] for stage, feature in emitted if stage in stages}
    sheets = {}
    if maps:
        sheets["maps.png"] = partial(draw_maps, view, list(maps.values()), list(maps), f"{about}maps of the pyramid")
    if isinstance(backbone, CARE):
        kind, draw, found = "attention", draw_attention, attention_of(backbone, view.image, view.point)
        content = "where the point (+) looks in {}, relative to looking everywhere equally (1)"
    else:
        kind, draw, found = "context", draw_context, context_maps(backbone, view.image)
        content = "context maps of {}"
    for stage, blocks in enumerate(found):
        if blocks and stage in stages:
            title = about + content.format(stage_name(stage))
            sheets[f"{kind}_c{stage + 2}.png"] = partial(draw, view, blocks, title)
    if not sheets:
        asked, returned = (", ".join(str(i + 1) for i in indices) for indices in (stages, backbone.out_indices))
        raise UserError(
            f"there is nothing to draw in stage {asked}: this {network.name} returns the maps of stage {returned} only"
        )
    return sheets
