"""A picture that every machine can draw, and what PyTorch returns for it: ``mmcare verify`` runs a file on it again.

A file's outputs are reduced to what a certificate can hold, and the reduced ones are compared:

- ``dets`` and ``labels`` to the detections. Each is matched with the nearest one of its label. The error is the largest
  difference of scores, or of corners as a share of the picture's longer side. A detection without a partner has lost
  its score, down to the lowest that would have been returned.
- ``masks`` to the pixels in the cells of a grid, of the best detections. The error is the share of pixels that differ.
- ``mask_probs`` to the mean of each of these. The error is the largest difference.
- whole numbers, such as a label map, to pixels of a grid. The error is the share that differs.
- other values to some of them. The error is the largest difference as a share of the largest value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .strict_json import build, plain

GRID = 8
"""Cells along each side of a mask."""
MASKS = 16
"""Detections of a picture whose masks are kept."""
PIXELS = 32
"""Pixels of a label map that are kept, along each side."""
VALUES = 256
"""Values of another output that are kept."""
DETECTIONS = ("dets", "labels", "masks", "mask_probs")
"""Outputs that list detections, whose order may differ."""
APART = 0.1
"""Detections that differ more are not the same one."""

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Detections:
    """The detections in a picture; of the first few, the pixels of the mask in each cell, row by row, and the mean."""

    boxes: tuple[tuple[float, float, float, float], ...]
    scores: tuple[float, ...]
    labels: tuple[int, ...]
    full: bool
    """Whether others were left out, as there were too many."""
    masks: tuple[tuple[int, ...], ...] | None = None
    mask_probs: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Probe:
    """What :func:`record_probe` returns and a certificate holds.

    Attributes:
        seed: of the pictures.
        shape: of the pictures, (B, 3, H, W).
        floor: the lowest score of a detection.
        detections: for each picture; None if there are none to be found.
        values: the kept values of each other output.
    """

    seed: int
    shape: tuple[int, int, int, int]
    floor: float
    detections: tuple[Detections, ...] | None
    values: dict[str, tuple[float, ...]]


def read_probe(content: Any) -> Probe:
    """Return a probe from a certificate.

    Raises:
        ValueError: it has another form.
    """
    return build(Probe, content, "measured.probe")


def draw_probe(seed: int, shape: Sequence[int]) -> np.ndarray:
    """Return pictures of rectangles, discs and triangles on noise, equal on all machines.

    Args:
        seed: of the random numbers.
        shape: (B, 3, H, W).

    Returns:
        Array of that shape, float32, RGB from 0 to 255.
    """
    batch, _, height, width = shape
    # The numbers of RandomState stay the same in all releases of numpy; those of int64 on all systems, too.
    draw = partial(np.random.RandomState(seed).randint, dtype=np.int64)
    y, x = np.mgrid[:height, :width]
    pictures = []
    for _ in range(batch):
        picture = 90 + draw(0, 40, (height, width, 3))
        for number in range(9):
            side = draw(min(height, width) // 8, min(height, width) // 2 + 1)
            top, left = draw(0, height - side // 2), draw(0, width - side // 2)
            down, right = y - top, x - left
            inside = (down >= 0) & (down < side) & (right >= 0) & (right < side)
            if number % 3 == 1:
                inside &= (2 * down - side) ** 2 + (2 * right - side) ** 2 < side**2
            if number % 3 == 2:
                inside &= abs(2 * right - side) <= down
            picture[inside] = draw(0, 256, 3) + draw(-12, 13, (inside.sum(), 3))
        pictures.append(picture.clip(0, 255).transpose(2, 0, 1))
    return np.stack(pictures).astype(np.float32)


def record_probe(
    run: Callable[[np.ndarray], Outputs], shape: Sequence[int], floor: float = 0.0, seeds: Sequence[int] = range(4)
) -> dict[str, Any]:
    """Return what a certificate keeps of a model's outputs, ``measured.probe``.

    Args:
        run: from images (B, 3, H, W), float32, RGB from 0 to 255, to the outputs by name, in PyTorch.
        shape: of the images.
        floor: the lowest score of a detection, the config's ``score_thr``.
        seeds: of the pictures that are tried; the one in which most is found is taken. Without detections it is the
            first.
    """
    best = None
    for seed in seeds:
        probe = _reduce(run(draw_probe(seed, shape)), seed, shape, floor, MASKS)
        if best is None or _found(probe) > _found(best):
            best = probe
        if probe.detections is None:
            break
    return plain(best)


def compare_probe(content: Mapping[str, Any], outputs: Outputs) -> dict[str, float]:
    """Return the error of each output of a file against a recorded probe.

    Args:
        content: what :func:`record_probe` returned.
        outputs: of the file, for the images of ``draw_probe(content["seed"], content["shape"])``.

    Raises:
        ValueError: the content is no probe, or the outputs are not of the kind and size that were recorded.
    """
    wanted = read_probe(content)
    found = _reduce(outputs, wanted.seed, wanted.shape, wanted.floor)
    errors = {}
    if wanted.detections is not None:
        if found.detections is None or len(found.detections) != len(wanted.detections):
            raise ValueError("there are no detections in as many pictures as were recorded")
        errors = _detection_errors(wanted, found.detections)
    for name, values in wanted.values.items():
        old, new = np.array(values), np.array(found.values.get(name, ()))
        if old.shape != new.shape:
            raise ValueError(f"there is no output {name} of the size that was recorded")
        if outputs[name].dtype.kind in "iub":
            errors[name] = float((old != new).mean())
        else:
            errors[name] = float(np.abs(old - new).max() / max(np.abs(old).max(), 1e-12))
    return errors


def _found(probe: Probe) -> float:
    return sum(sum(picture.scores) for picture in probe.detections or ())


# -- reducing ----------------------------------------------------------------------------------------------------------


def _reduce(outputs: Outputs, seed: int, shape: Sequence[int], floor: float, masks: int | None = None) -> Probe:
    """Reduce outputs; ``masks`` is the largest number of masks that are kept of a picture."""
    detections = None
    if "dets" in outputs:
        detections = tuple(
            _detections({name: outputs[name][number] for name in DETECTIONS if name in outputs}, masks)
            for number in range(len(outputs["dets"]))
        )
    others = {name: values for name, values in outputs.items() if name not in DETECTIONS}
    kept = {name: _short(_some(values)) for name, values in others.items()}
    return Probe(seed, tuple(map(int, shape)), float(floor), detections, kept)


def _detections(picture: Outputs, masks: int | None) -> Detections:
    found = picture["labels"] >= 0
    dets = picture["dets"][found]
    cells = None
    if "masks" in picture:
        cells = tuple(_cells(mask) for mask in picture["masks"][found][:masks])
    means = None
    if "mask_probs" in picture:
        means = _short(picture["mask_probs"][found][:masks].mean((1, 2)))
    return Detections(
        boxes=tuple(map(_short, dets[:, :4])),
        scores=_short(dets[:, 4]),
        labels=tuple(picture["labels"][found].tolist()),
        full=bool(found.all()),
        masks=cells,
        mask_probs=means,
    )


def _cells(mask: np.ndarray) -> tuple[int, ...]:
    """Return the number of pixels of a mask (H, W) in each cell."""
    starts = [np.arange(GRID) * size // GRID for size in mask.shape]
    counts = np.add.reduceat(np.add.reduceat(mask.astype(np.int32), starts[0], 0), starts[1], 1)
    return tuple(counts.ravel().tolist())


def _some(values: np.ndarray) -> np.ndarray:
    """Return the values that are kept of an output."""
    if values.dtype.kind in "iub":
        rows, columns = (np.linspace(0, size - 1, PIXELS).astype(int) for size in values.shape[-2:])
        return values[..., rows[:, None], columns].ravel()
    return values.ravel()[np.linspace(0, values.size - 1, VALUES).astype(int)]


def _short(values: np.ndarray) -> tuple[float, ...]:
    """Return single-precision numbers with as many digits as they have."""
    return tuple(float(f"{value:.8g}") for value in values.tolist())


# -- comparing ---------------------------------------------------------------------------------------------------------


def _detection_errors(wanted: Probe, found: Sequence[Detections]) -> dict[str, float]:
    """Return the errors of ``dets`` and, if there are any, ``masks`` and ``mask_probs``."""
    largest, wrong, area, apart = 0.0, 0, 0, 0.0
    for old, new in zip(wanted.detections, found, strict=True):
        error, partners = _match(old, new, max(wanted.shape[2:]), wanted.floor)
        largest = max(largest, error)
        for number, cells in enumerate(old.masks or ()):
            area += sum(cells)
            partner = partners.get(number)
            if partner is not None:
                wrong += int(np.abs(np.array(cells) - np.array(new.masks[partner])).sum())
        for number, mean in enumerate(old.mask_probs or ()):
            if number in partners:
                apart = max(apart, abs(mean - new.mask_probs[partners[number]]))
    errors = {"dets": largest}
    if wanted.detections[0].masks is not None:
        errors["masks"] = wrong / max(area, 1)
    if wanted.detections[0].mask_probs is not None:
        errors["mask_probs"] = apart
    return errors


def _match(old: Detections, new: Detections, side: int, floor: float) -> tuple[float, dict[int, int]]:
    """Return the error of the detections in a picture, and the partner of each wanted one that has one."""
    ends = [detections.scores[-1] for detections in (old, new) if detections.full]
    floor = max(floor, *ends) if ends else floor
    boxes = [np.array(detections.boxes).reshape(-1, 4) for detections in (old, new)]
    apart = np.abs(boxes[0][:, None] - boxes[1]).max(-1, initial=0) / side
    apart = np.maximum(apart, np.abs(np.subtract.outer(old.scores, new.scores)))
    apart[np.not_equal.outer(old.labels, new.labels)] = np.inf
    error, partners = 0.0, {}
    for number, score in enumerate(old.scores):
        partner = int(apart[number].argmin()) if len(new.scores) else -1
        if partner >= 0 and apart[number, partner] <= APART:
            error = max(error, float(apart[number, partner]))
            partners[number] = partner
            apart[:, partner] = np.inf
        else:
            error = max(error, score - floor)
    alone = set(range(len(new.scores))) - set(partners.values())
    return max([error, *(new.scores[number] - floor for number in alone)]), partners
