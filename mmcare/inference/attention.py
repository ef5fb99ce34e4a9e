"""What the token mixers of a backbone look at: CARE's attention weights and CAS-ViT's context maps.

They are taken from one forward pass by hooks, so the networks need no code for it. Both networks must be in the form in
which they are trained: the fast form computes the same in other modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..models import CARE, CASViT, PyramidBackbone
from ..models.care import LinearAttention
from ..models.casvit import AdditiveTokenMixer


@dataclass(frozen=True)
class ContextMaps:
    """The factors of an additive token mixer, dw3×3(Γ(Φ(q) + Φ(k)) ⊙ v), for one image.

    Φ multiplies a map by its spatial context and then by its channel context. Γ is a depth-wise convolution.

    Attributes:
        query_spatial: spatial context of the queries, (h, w), each value between 0 and 1.
        query_channels: channel context of the queries, (C,), each value between 0 and 1.
        key_spatial: spatial context of the keys, (h, w).
        key_channels: channel context of the keys, (C,).
        context: Γ(Φ(q) + Φ(k)), by which the values v are multiplied, (C, h, w).
    """

    query_spatial: Tensor
    query_channels: Tensor
    key_spatial: Tensor
    key_channels: Tensor
    context: Tensor


def attention_of(backbone: CARE, image: Tensor, point: tuple[float, float]) -> list[list[Tensor]]:
    """Return how much each position of CARE's maps contributes to the linear attention's output at a point.

    The output at position i is Σ_j w_ij v_j, with w_ij = φ(q_i) · φ(k_j) / N / (φ(q_i) · mean_j φ(k_j) + 1e-6). Only
    row i is computed, from one query and all keys, in O(N · channels): never the N×N matrix.

    Args:
        backbone: the backbone, not in its fast form. It runs in eval mode, and is left as it was.
        image: (3, H, W), normalized and padded as for the backbone, on its device and of its type.
        point: x and y in pixels of the image; see :func:`position_of`.

    Returns:
        A list for each built stage with one tensor for each of its blocks: the weights w_i of each head, (heads, h, w),
        at least in float32. The weights of a head add up to 1, but for the 1e-6. The lists of stages with strip
        convolutions instead of attention are empty.

    Raises:
        UserError: the backbone has no linear attention, or the point is outside the image.
    """
    height, width = image.shape[-2:]
    x, y = point
    if not (0 <= x < width and 0 <= y < height):
        raise UserError(f"the point ({x:g}, {y:g}) is outside the image, which is {width} wide and {height} high")
    stages = _stages(backbone, CARE, LinearAttention)
    row = partial(_attention_row, point=point, size=(width, height))
    watched = {layer.query_key: partial(row, heads=layer.heads) for layers in stages for layer in layers}
    found = _observe(backbone, image, watched)
    return [[found[layer.query_key] for layer in layers] for layers in stages]


def context_maps(backbone: CASViT, image: Tensor) -> list[list[ContextMaps]]:
    """Return the context maps of CAS-ViT's token mixers.

    Args:
        backbone: the backbone, not in its fast form. It runs in eval mode, and is left as it was.
        image: (3, H, W), normalized and padded as for the backbone, on its device and of its type.

    Returns:
        A list for each built stage with the maps of each of its blocks.

    Raises:
        UserError: the backbone has no additive token mixers.
    """
    stages = _stages(backbone, CASViT, AdditiveTokenMixer)
    watched = {}
    for mixer in (mixer for mixers in stages for mixer in mixers):
        similarity = mixer.similarity
        for mapping in (similarity.query_context, similarity.key_context):
            watched[mapping.spatial.fc] = lambda logits: logits[0, 0].sigmoid()
            watched[mapping.channel.fc] = lambda logits: logits[0, :, 0, 0].sigmoid()
        watched[similarity.conv] = lambda context: context[0]
    found = _observe(backbone, image, watched)

    def maps(mixer: AdditiveTokenMixer) -> ContextMaps:
        query, key = mixer.similarity.query_context, mixer.similarity.key_context
        gates = (query.spatial.fc, query.channel.fc, key.spatial.fc, key.channel.fc)
        return ContextMaps(*(found[layer] for layer in (*gates, mixer.similarity.conv)))

    return [[maps(mixer) for mixer in mixers] for mixers in stages]


def position_of(point: tuple[float, float], size: tuple[int, int], positions: tuple[int, int]) -> tuple[int, int]:
    """Return the column and row of a map in which a point of the image is: ⌊x · columns / width⌋, ⌊y · rows / height⌋.

    Args:
        point: x and y in pixels of the image.
        size: width and height of the image.
        positions: columns and rows of the map.
    """
    column, row = (int(at * count // side) for at, side, count in zip(point, size, positions, strict=True))
    return column, row


def _attention_row(query_key: Tensor, heads: int, point: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Return the attention weights of one position.

    Args:
        query_key: queries and keys of all positions, (1, 2 · channels, h, w).
        heads: the number of heads.
        point: x and y in pixels of the image.
        size: width and height of the image.

    Returns:
        (heads, h, w).
    """
    height, width = query_key.shape[2:]
    column, row = position_of(point, size, (width, height))
    wide = torch.promote_types(query_key.dtype, torch.float32)  # as LinearAttention
    query, key = query_key[0].to(wide).unflatten(0, (2, heads, -1))  # (heads, head_channels, h, w)
    query = F.elu(query[:, :, row, column]) + 1
    products = torch.einsum("hc,hcyx->hyx", query, F.elu(key) + 1)  # φ(q_i) · φ(k_j)
    mean = products.mean((1, 2), keepdim=True)  # φ(q_i) · mean_j φ(k_j)
    return products / (height * width) / (mean + 1e-6)


def _stages(backbone: PyramidBackbone, family: type[PyramidBackbone], kind: type[nn.Module]) -> list[list[nn.Module]]:
    """Return the modules of a kind in each stage of a backbone; raise UserError if there are none."""
    if not isinstance(backbone, family):
        raise UserError(f"a {family.__name__} backbone is needed here, but a {type(backbone).__name__} was given")
    stages = [[module for module in stage.modules() if isinstance(module, kind)] for stage in backbone.stages]
    if not any(stages):
        raise UserError(
            f"this {family.__name__} has no {kind.__name__}: give a backbone that has, and not its fast form"
        )
    return stages


def _observe(
    backbone: PyramidBackbone, image: Tensor, watched: Mapping[nn.Module, Callable[[Tensor], Any]]
) -> dict[nn.Module, Any]:
    """Run a backbone on an image; return, for each watched module, what its function makes of the module's output."""
    found = {}

    def take(module: nn.Module, _: Any, output: Tensor) -> None:
        found[module] = watched[module](output)

    modes = {module: module.training for module in backbone.modules()}
    hooks = [module.register_forward_hook(take) for module in watched]
    try:
        backbone.eval()
        with torch.no_grad():
            backbone(image[None])
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return found
