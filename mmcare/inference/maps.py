"""Pictures of a backbone's maps over the image, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import ContextMaps, position_of
from .views import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL = 2.8
"""Longer side of a picture in a figure, in inches."""


def stage_name(index: int) -> str:
    """Return ``C2 (stage 1, stride 4)`` for index 0, and so on."""
    return f"C{index + 2} (stage {index + 1}, stride {4 * 2**index})"


def principal_components(feature: Tensor) -> Tensor:
    """Return the first three principal components of a map, as colours.

    Positions with similar features have similar colours. Each component is scaled so that its values from the first to
    the last percentile extend from 0 to 1, and has the sign with which it is skewed to the right.

    Args:
        feature: (C, h, w).

    Returns:
        (h, w, 3), each value between 0 and 1.
    """
    points = feature.flatten(1).T.double()
    points = points - points.mean(0)
    _, directions = torch.linalg.eigh(points.T @ points)  # sorted by ascending eigenvalues
    components = points @ directions[:, -3:].flip(1)
    components = components * components.pow(3).sum(0).sign()
    components = F.pad(components, (0, 3 - components.shape[1]))  # of maps with fewer channels
    low, high = components.quantile(torch.tensor([0.01, 0.99], dtype=components.dtype, device=components.device), 0)
    scaled = ((components - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return scaled.reshape(*feature.shape[1:], 3)


def similarity(feature: Tensor, column: int, row: int) -> Tensor:
    """Return the cosine similarity of each position's features to those of one position.

    Args:
        feature: (C, h, w).
        column: column of the one position.
        row: its row.

    Returns:
        (h, w), each value between -1 and 1.
    """
    return torch.cosine_similarity(feature, feature[:, row, column][:, None, None], dim=0)


def draw_maps(view: View, maps: Sequence[Tensor], stages: Sequence[int], title: str) -> Figure:
    """Draw maps of a pyramid over the image: a row for each map, with three pictures.

    The first is the norm of each position's features over the channels, the second their first three principal
    components in red, green and blue, the third their cosine similarity to the features at the point.

    Args:
        view: the image and the point.
        maps: the maps of a backbone, (C, h, w) each.
        stages: index of each map's stage, 0 to 3.
        title: title of the figure.
    """
    figure, panels = _figure(view, len(maps), 3, title)
    for (norms, components, likeness), feature, stage in zip(panels, maps, stages, strict=True):
        column, row = position_of(view.point, _size(view.image), _size(feature))
        inside, extent = _without_padding(view, feature)
        label = f"{stage_name(stage)}\nnorm over the {len(feature)} channels"
        _overlay(norms, view, inside.norm(dim=0), extent, label)
        _show(components, view, principal_components(inside), extent, "principal components 1, 2, 3\nas R, G, B")
        alike = similarity(inside, column, row)
        _overlay(likeness, view, alike, extent, "cosine similarity\nto the point", cmap="coolwarm", vmin=-1, vmax=1)
        _mark(likeness, view)
    return figure


def draw_attention(view: View, attention: Sequence[Tensor], title: str) -> Figure:
    """Draw where the point looks in a stage of CARE: a row for each block, the mean over the heads and each head.

    The weights are relative to those of attention that looks everywhere equally: 1 is 1/N for N positions.

    Args:
        view: the image and the point.
        attention: the weights in each block, (heads, h, w), from :func:`~mmcare.inference.attention_of`.
        title: title of the figure.
    """
    heads = len(attention[0])
    figure, panels = _figure(view, len(attention), 1 + heads if heads > 1 else 1, title, label_lines=1)
    for block, (row, weights) in enumerate(zip(panels, attention, strict=True)):
        inside, extent = _without_padding(view, weights * weights[0].numel())
        shown = [(f"block {block + 1}, head {head + 1}", values) for head, values in enumerate(inside)]
        if heads > 1:
            shown.insert(0, (f"block {block + 1}, mean of {heads} heads", inside.mean(0)))
        for panel, (label, values) in zip(row, shown, strict=True):
            _overlay(panel, view, values, extent, label)
            _mark(panel, view)
    return figure


def draw_context(view: View, contexts: Sequence[ContextMaps], title: str) -> Figure:
    """Draw the context maps in a stage of CAS-ViT: a row for each block.

    It has the spatial contexts of the queries and of the keys, the norm of Γ(Φ(q) + Φ(k)) over the channels, and the
    channel contexts of the queries and of the keys as curves, sorted by size.

    Args:
        view: the image.
        contexts: the maps of each block, from :func:`~mmcare.inference.context_maps`.
        title: title of the figure.
    """
    figure, panels = _figure(view, len(contexts), 4, title)
    for block, ((query, key, context, channels), maps) in enumerate(zip(panels, contexts, strict=True)):
        for panel, name, gate in ((query, "queries", maps.query_spatial), (key, "keys", maps.key_spatial)):
            _overlay(panel, view, *_without_padding(view, gate), f"block {block + 1}\nspatial context of the {name}")
        norms = maps.context.norm(dim=0)
        _overlay(context, view, *_without_padding(view, norms), "norm of Γ(Φ(q) + Φ(k))\nover the channels")
        for name, gates in (("queries", maps.query_channels), ("keys", maps.key_channels)):
            channels.plot(gates.sort(descending=True).values.cpu().numpy(), label=name)
        channels.set_title("channel context,\nsorted", fontsize=8)
        channels.set_xlabel("channels", fontsize=7)
        channels.set_ylim(0, 1)
        channels.tick_params(labelsize=6)
        channels.legend(fontsize=7)
    return figure


def _figure(view: View, rows: int, columns: int, title: str, label_lines: int = 2) -> tuple[Figure, Any]:
    """Return a figure and its axes, (rows, columns), with room for the image of a view and a label in each."""
    from matplotlib.figure import Figure  # not pyplot, which would look for a display

    height, width = view.picture.shape[:2]
    scale = _PANEL / max(height, width)
    # A panel also has a label and a colour bar, and is no narrower than these when the image is.
    panel_width, panel_height = max(width * scale, 1.5) + 0.6, max(height * scale, 0.5) + 0.1 + 0.2 * label_lines
    figure = Figure(figsize=(columns * panel_width, rows * panel_height + 0.5), layout="compressed")
    figure.suptitle(title, fontsize=10, wrap=True)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _without_padding(view: View, maps: Tensor) -> tuple[Tensor, tuple[float, float, float, float]]:
    """Return the part of maps (…, h, w) that covers the image without its padding, and the pixels that it covers."""
    kept, covered = [], []
    for positions, side, inside in zip(maps.shape[-2:], view.image.shape[-2:], view.picture.shape[:2], strict=True):
        kept.append(-(-inside * positions // side))
        covered.append(kept[-1] * side / positions)
    rows, columns = kept
    height, width = covered
    return maps[..., :rows, :columns], (-0.5, width - 0.5, height - 0.5, -0.5)


def _size(maps: Tensor) -> tuple[int, int]:
    """Return the width and height of maps."""
    height, width = maps.shape[-2:]
    return width, height


def _show(panel: Axes, view: View, values: Tensor, extent: tuple, label: str, **style: Any) -> Any:
    height, width = view.picture.shape[:2]
    shown = panel.imshow(values.cpu().numpy(), extent=extent, interpolation="nearest", **style)
    panel.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=(), yticks=())
    panel.set_title(label, fontsize=8)
    return shown


def _overlay(panel: Axes, view: View, values: Tensor, extent: tuple, label: str, **style: Any) -> None:
    """Draw a map in colours over the image in light gray, with a colour bar."""
    panel.imshow(view.picture.mean(2), cmap="gray", vmin=-255, vmax=255)  # dark pixels must not look like low values
    shown = _show(panel, view, values, extent, label, **{"alpha": 0.6, "cmap": "viridis", **style})
    height, width = view.picture.shape[:2]
    bar = panel.figure.colorbar(shown, ax=panel, fraction=0.05, pad=0.02, aspect=20 * height / width)
    bar.ax.ticklabel_format(style="plain", useOffset=False)
    bar.ax.tick_params(labelsize=6)


def _mark(panel: Axes, view: View) -> None:
    panel.plot(*view.point, marker="P", color="white", markeredgecolor="black", markersize=7)
