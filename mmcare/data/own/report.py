"""What a data set has: as a table, and as a picture."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from .colors import distinct_colors
from .description import Description, Picture
from .folder import Folder, count, some

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Counts = Counter[str]
"""For a picture, the number of objects of each class; of pixels, for a label map."""

_MOST_ROWS = 100
_MOST_BARS = 30
_EXAMPLES = 8


def tabulated(
    path: Path,
    source: str,
    classes: Sequence[str],
    description: Description,
    counts: dict[str, list[Counts]],
    unit: str,
) -> str:
    """Return a text with the numbers of pictures and of objects by class and split, sizes, and problems.

    Args:
        path: the data folder.
        source: the name of the format.
        classes: the names of the classes, which may be more than the description's.
        description: the data set.
        counts: by split, one for each picture.
        unit: what is counted, ``"objects"`` or ``"pixels"``.
    """
    from tabulate import tabulate

    splits = description.splits
    table: list[list[Any]] = [["pictures", *(f"{len(pictures):,}" for pictures in splits.values())]]
    table.append(["without objects", *(f"{sum(not found for found in counts[split]):,}" for split in splits)])
    if unit == "objects":
        table.append(["objects", *(f"{sum(map(Counter.total, counts[split])):,}" for split in splits)])
    present = [name for name in classes if any(found[name] for of_split in counts.values() for found in of_split)]
    table += [[f"- {name}", *(_cell(name, counts[split], unit) for split in splits)] for name in present[:_MOST_ROWS]]
    if len(present) > _MOST_ROWS:
        table.append([f"- {len(present) - _MOST_ROWS} more"])
    align = ("left", *["right"] * len(splits))
    pictures = [picture for found in splits.values() for picture in found]
    lines = [
        f"{path}: {source}, {count(len(classes), 'class')}, pictures of {_sizes(pictures)}",
        tabulate(table, ["", *splits], colalign=align, disable_numparse=True),
        f"for each class: its {unit}, and in how many pictures",
    ]
    if boxes := [instance.box for instance in description.instances()]:
        lines.append(_box_sizes(boxes))
    absent = [name for name in classes if not any(name in found for found in counts["train"])]
    problems = [f"{what}: {len(names):,} ({some(names)})" for what, names in description.problems.items()]
    if absent:
        problems.append(f"classes that do not occur in the training split: {len(absent):,} ({some(absent)})")
    lines += [f"note: {problem}" for problem in problems]
    return "\n".join(lines)


def draw(
    folder: Folder,
    classes: Sequence[str],
    description: Description,
    counts: dict[str, list[Counts]],
    unit: str,
    first_label: int,
) -> Figure:
    """Draw how often the classes occur, the sizes of the boxes or pictures, and some annotated training pictures.

    The arguments are those of :func:`tabulated`, and the label of the first class in label maps.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 11))
    grid = figure.add_gridspec(
        3, 4, height_ratios=(1.3, 1, 1), left=0.12, right=0.97, bottom=0.02, top=0.96, hspace=0.2, wspace=0.25
    )
    colors = dict(zip(classes, distinct_colors(len(classes)), strict=True))
    _draw_classes(figure.add_subplot(grid[0, :2]), counts, unit, colors)
    _draw_sizes(figure.add_subplot(grid[0, 2:]), description)
    train = description.splits["train"]
    full = [index for index, found in enumerate(counts["train"]) if found] or [*range(len(train))]
    step = max(1, len(full) // _EXAMPLES)
    for place, index in enumerate(full[::step][:_EXAMPLES]):
        _draw_example(figure.add_subplot(grid[1 + place // 4, place % 4]), folder, train[index], colors, first_label)
    return figure


def _cell(name: str, counts: list[Counts], unit: str) -> str:
    total = sum(found[name] for found in counts)
    where = sum(name in found for found in counts)
    everything = sum(map(Counter.total, counts)) or 1
    return f"{total / everything:.1%} in {where:,}" if unit == "pixels" else f"{total:,} in {where:,}"


def _sizes(pictures: list[Picture]) -> str:
    sizes = sorted({(picture.width, picture.height) for picture in pictures}, key=lambda size: size[0] * size[1])
    smallest, largest = (f"{width}×{height}" for width, height in (sizes[0], sizes[-1]))
    return f"{smallest} pixels" if len(sizes) == 1 else f"{smallest} to {largest} pixels"


def _box_sizes(boxes: list[Any]) -> str:
    sides = sorted((box[2] * box[3]) ** 0.5 for box in boxes)
    small = sum(side < 32 for side in sides) / len(sides)
    tenths = quantiles(sides, n=10) if len(sides) > 1 else sides * 9
    return (
        f"boxes (root of the area): median {median(sides):.0f} pixels, 80% from {tenths[0]:.0f} to {tenths[-1]:.0f}; "
        f"{small:.0%} are small in COCO's sense (below 32)"
    )


def _draw_classes(
    axes: Axes, counts: dict[str, list[Counts]], unit: str, colors: dict[str, tuple[int, int, int]]
) -> None:
    totals = {split: sum(found, Counter()) for split, found in counts.items()}
    present = [name for name in colors if any(total[name] for total in totals.values())]
    shown = sorted(present, key=lambda name: -sum(total[name] for total in totals.values()))[:_MOST_BARS]
    left = [0] * len(shown)
    for split, total in totals.items():
        numbers = [total[name] for name in shown]
        axes.barh(shown, numbers, left=left, label=split)
        left = [before + number for before, number in zip(left, numbers, strict=True)]
    for name in axes.get_yticklabels():
        name.set_color([value / 255 for value in colors[name.get_text()]])
    axes.invert_yaxis()
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="lower right")
    more = f" (the {len(shown)} most frequent of {len(present)})" if len(shown) < len(present) else ""
    axes.set_title(f"{unit} of each class{more}")


def _draw_sizes(axes: Axes, description: Description) -> None:
    from matplotlib.ticker import LogFormatter

    for split, pictures in description.splits.items():
        sizes = [instance.box[2:] for picture in pictures for instance in picture.instances]
        if not description.instances():
            sizes = [(picture.width, picture.height) for picture in pictures]
        axes.scatter(*zip(*sizes, strict=True) if sizes else ((), ()), s=6, alpha=0.5, label=split)
    axes.set(xscale="log", yscale="log", xlabel="width, pixels", ylabel="height, pixels")
    for axis in (axes.xaxis, axes.yaxis):  # 600 instead of 6×10²
        axis.set_major_formatter(LogFormatter())
        axis.set_minor_formatter(LogFormatter())
    axes.set_title("sizes of the boxes" if description.instances() else "sizes of the pictures")
    axes.legend()


def _draw_example(
    axes: Axes, folder: Folder, picture: Picture, colors: dict[str, tuple[int, int, int]], first_label: int
) -> None:
    import numpy as np
    from matplotlib.patches import Polygon, Rectangle
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(folder / picture.name) as image:
            shown = ImageOps.exif_transpose(image).convert("RGB")
    shown.thumbnail((400, 400))
    axes.imshow(np.asarray(shown), extent=(0, picture.width, picture.height, 0))
    if picture.label_map:
        with Image.open(folder / picture.label_map) as image:
            labels = np.asarray(image.resize(shown.size, Image.Resampling.NEAREST))
        axes.imshow(
            _colored(labels, [*colors.values()], first_label),
            extent=(0, picture.width, picture.height, 0),
            interpolation="none",
        )
    for instance in picture.instances:
        color = [value / 255 for value in colors[instance.name]]
        x, y, width, height = instance.box
        axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=color, linewidth=1.5))
        box = dict(facecolor=color, edgecolor="none", pad=1)
        axes.text(max(x, 0), max(y, 0), instance.name, va="top", fontsize=7, color="white", bbox=box, clip_on=True)
        for polygon in instance.segmentation if isinstance(instance.segmentation, list) else []:
            axes.add_patch(Polygon(np.reshape(polygon, (-1, 2)), color=color, alpha=0.4))
    axes.set_title(picture.name, fontsize=7)
    axes.set_axis_off()


def _colored(labels: np.ndarray, colors: list[tuple[int, int, int]], first_label: int) -> np.ndarray:
    """Return a label map (H, W) in half-transparent colours, (H, W, 4), 8 bits; ignored pixels are transparent."""
    import numpy as np

    table = np.zeros((256, 4), np.uint8)
    table[first_label : first_label + len(colors)] = [(*color, 140) for color in colors]
    return table[np.minimum(labels, 255)]
