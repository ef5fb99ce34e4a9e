"""One picture of the sample data: a textured ground, some clutter, and overlapping shapes.

The outline determines the class, and colour hints at it, as in photographs: each class has a usual hue with a wide
spread, which the ground and the clutter may have too. Pattern, size, rotation and position do not depend on the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

CLASSES: tuple[str, ...] = ("disc", "triangle", "box", "star")
OTHER_CLASSES: tuple[str, ...] = ("cross", "arrow", "hexagon", "crescent")
"""Shapes for a second data set, as to fine-tune on; :class:`Recipe` takes any four of both."""
SEMANTIC_CLASSES: tuple[str, ...] = ("ground", *CLASSES)

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")

_UNLABELLED = 0
_GROUND = 1
_SUPERSAMPLING = 4
_PLACING_ATTEMPTS = 20


@dataclass(frozen=True)
class Recipe:
    """All parameters of the sample data; lengths are in pixels, ranges are (lowest, highest).

    Attributes:
        seed: the same seed gives the same bytes.
        classes: the shapes, of :data:`CLASSES` and :data:`OTHER_CLASSES`.
        train_images: number of training images, at least 2.
        val_images: number of validation images, at least 2.
        empty_every: every ``empty_every``-th image, counted back from a split's last one, has no objects.
        side: height and width of an image.
        area: height times width, before both are clipped to ``side``.
        objects: intended number of objects; objects without a free place are omitted, except for the first.
        size: longer side of an object's box, uniform on a logarithmic scale.
        small_size: the same for small objects.
        small_share: probability that an object is small.
        min_visible_share: minimum visible share of an object's area.
        min_visible_pixels: minimum number of visible pixels of an object.
        overhang: approximate share of an object's longer side that may extend beyond the image border.
        stretch: width of a shape in one direction relative to the other, before it is rotated.
        rotation: rotation of a shape, in degrees.
        hue_spread: maximum distance of an object's hue from the usual hue of its class, in degrees. The usual hues are
            evenly spaced on the colour circle; the ground has any hue.
        contrast: distance in CIELAB between an object's colours and its surroundings.
        pattern_share: probability that an object has a pattern instead of one colour.
        texture: strength of the ground's noise at each of its scales, in grey levels.
        decoration: strength of the ground's stripes or blobs, in grey levels.
        decoration_share: probability that the ground has stripes or blobs.
        clutter: probability of each of two strokes that belong to no class.
    """

    seed: int = 0
    classes: tuple[str, ...] = CLASSES
    train_images: int = 640
    val_images: int = 60
    empty_every: int = 20
    side: tuple[int, int] = (80, 128)
    area: tuple[int, int] = (92**2, 104**2)
    objects: tuple[int, int] = (1, 4)
    size: tuple[float, float] = (28.0, 60.0)
    small_size: tuple[float, float] = (14.0, 19.0)
    small_share: float = 0.04
    min_visible_share: float = 0.8
    min_visible_pixels: int = 24
    overhang: float = 0.15
    stretch: tuple[float, float] = (0.75, 1.0)
    rotation: tuple[float, float] = (-20.0, 20.0)
    contrast: tuple[float, float] = (55.0, 95.0)
    hue_spread: float = 48.0
    pattern_share: float = 0.5
    texture: tuple[float, float] = (2.0, 10.0)
    decoration: tuple[float, float] = (4.0, 14.0)
    decoration_share: float = 0.7
    clutter: float = 0.1

    def images(self, split: Split) -> int:
        """Return the number of images in ``split``."""
        return self.train_images if split == "train" else self.val_images


@dataclass(frozen=True)
class SceneObject:
    """The visible part of an object.

    Attributes:
        kind: index into the recipe's classes.
        mask: (H, W) bool, the visible pixels: one or more parts without holes.
    """

    kind: int
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """A picture with its ground truth.

    Attributes:
        image: (H, W, 3) uint8, BGR.
        labels: (H, W) uint8: 0 is unlabelled, 1 the ground, ``2 + i`` class ``i``.
        objects: the objects from back to front.
    """

    image: np.ndarray
    labels: np.ndarray
    objects: tuple[SceneObject, ...]


def draw_scene(recipe: Recipe, split: Split, index: int) -> Scene:
    """Draw image ``index`` (counted from 0) of ``split``; the result depends only on the arguments."""
    rng = np.random.default_rng([recipe.seed, SPLITS.index(split), index])
    canvas = _ground(rng, *_image_size(rng, recipe), recipe)
    clutter = _draw_clutter(rng, canvas, recipe)

    empty = (recipe.images(split) - 1 - index) % recipe.empty_every == 0
    wanted = 0 if empty else int(rng.integers(recipe.objects[0], recipe.objects[1] + 1))
    objects = _draw_objects(rng, canvas, recipe, wanted)

    labels = np.where(clutter, _UNLABELLED, _GROUND).astype(np.uint8)
    for item in objects:
        labels[item.mask] = _GROUND + 1 + item.kind
    return Scene(_photograph(rng, canvas), labels, objects)


def _image_size(rng: np.random.Generator, recipe: Recipe) -> tuple[int, int]:
    area = rng.uniform(*recipe.area)
    aspect_ratio = np.exp(rng.uniform(-0.55, 0.55))
    height = np.clip(np.sqrt(area / aspect_ratio), *recipe.side)
    width = np.clip(np.sqrt(area * aspect_ratio), *recipe.side)
    return round(float(height)), round(float(width))


def _draw_objects(rng: np.random.Generator, canvas: np.ndarray, recipe: Recipe, wanted: int) -> tuple[SceneObject, ...]:
    """Paint up to ``wanted`` shapes on ``canvas`` (H, W, 3), each over the previous ones."""
    owner = np.zeros(canvas.shape[:2], np.uint8)  # 0: no object; i + 1: object i
    kinds: list[int] = []
    whole_areas: list[float] = []
    for _ in range(wanted):
        # A new object may hide others or be cut off at the border only in part: other places are tried until all
        # objects remain recognizable.
        for _ in range(_PLACING_ATTEMPTS):
            kind = int(rng.integers(len(recipe.classes)))
            outline = _place(rng, _outline(rng, recipe.classes[kind], recipe), canvas.shape[:2], recipe)
            cover = _coverage([outline], canvas.shape[:2])
            areas = [*whole_areas, _polygon_area(outline)]
            trial = np.where(cover >= 0.5, np.uint8(len(areas)), owner)
            if all(_recognizable(trial == i + 1, area, recipe) for i, area in enumerate(areas)):
                _paint(canvas, cover, _fill(rng, canvas, cover, kind, recipe))
                owner, whole_areas = trial, areas
                kinds.append(kind)
                break
    return tuple(SceneObject(kind, owner == i + 1) for i, kind in enumerate(kinds))


def _recognizable(visible: np.ndarray, whole_area: float, recipe: Recipe) -> bool:
    """Return whether enough of an object is visible, without holes, which COCO's polygons cannot represent."""
    if visible.sum() < max(recipe.min_visible_pixels, recipe.min_visible_share * whole_area):
        return False
    _, hierarchy = cv2.findContours(visible.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return bool((hierarchy[0, :, 3] < 0).all())


# Outlines: (N, 2) float arrays of x, y; pixel (row, column) covers x from column to column + 1, y from row to row + 1.


def _outline(rng: np.random.Generator, kind: str, recipe: Recipe) -> np.ndarray:
    """Return the outline of a shape around the origin, stretched and rotated, of arbitrary size."""
    if kind == "star":
        points = _circle(10) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]
    elif kind == "cross":
        quarter = np.array([(1, -0.3), (1, 0.3), (0.3, 0.3)])
        points = np.concatenate([_rotated(quarter, turn * np.pi / 2) for turn in range(4)])
    elif kind == "arrow":
        points = np.array([(-1, -0.3), (0, -0.3), (0, -0.8), (1, 0), (0, 0.8), (0, 0.3), (-1, 0.3)])
    elif kind == "crescent":
        outer, inner = np.deg2rad(np.linspace(50, 310, 36)), np.deg2rad(np.linspace(-90, 90, 24)[1:-1])
        hollow = np.stack([np.cos(outer[0]) - 0.8 * np.cos(inner), np.sin(outer[0]) * np.sin(inner)], axis=1)
        points = np.concatenate([np.stack([np.cos(outer), np.sin(outer)], axis=1), hollow])
    else:
        points = _circle({"disc": 48, "triangle": 3, "box": 4, "hexagon": 6}[kind])
    if kind == "box":
        points = _rotated(points, np.pi / 4)  # so that stretching makes it a rectangle, not a rhombus
    return _rotated(points * [1.0, rng.uniform(*recipe.stretch)], np.deg2rad(rng.uniform(*recipe.rotation)))


def _circle(corners: int) -> np.ndarray:
    angle = 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _rotated(points: np.ndarray, angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _place(rng: np.random.Generator, outline: np.ndarray, shape: tuple[int, int], recipe: Recipe) -> np.ndarray:
    """Scale ``outline`` and place it in an image of ``shape`` (H, W); it may extend slightly beyond the border."""
    small = rng.random() < recipe.small_share
    size = np.exp(rng.uniform(*np.log(recipe.small_size if small else recipe.size)))
    size = min(size, 0.8 * min(shape))
    margin = (0.5 - recipe.overhang) * size
    centre = rng.uniform([margin, margin], [shape[1] - margin, shape[0] - margin])
    return outline * (size / np.ptp(outline, axis=0).max()) + centre


def _polygon_area(outline: np.ndarray) -> float:
    x, y = outline.T
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


def _coverage(outlines: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Return the share of each pixel that the outlines cover together: (H, W) float32 from 0 to 1."""
    height, width = shape
    fine = np.zeros((height * _SUPERSAMPLING, width * _SUPERSAMPLING), np.float32)
    for outline in outlines:
        # In OpenCV integer coordinates are pixel centres; here they are pixel corners.
        cv2.fillPoly(fine, [np.round(outline * _SUPERSAMPLING - 0.5).astype(np.int32)], 1.0)
    return cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)


# Colours and textures: float32 BGR from 0 to 255.


def _ground(rng: np.random.Generator, height: int, width: int, recipe: Recipe) -> np.ndarray:
    """Paint a background (H, W, 3): a gradient, noise at several scales, and sometimes stripes or soft blobs."""
    shape = (height, width)
    first = rng.uniform(40, 215, 3)
    second = np.clip(first + rng.uniform(-70, 70, 3), 20, 235)
    ramp = _along(rng.uniform(0, 2 * np.pi), shape)
    ramp = (ramp - ramp.min()) / np.ptp(ramp)
    canvas = first + (second - first) * ramp[..., None]
    for cell in (48, 20, 9, 4):
        canvas += _noise(rng, shape, cell)[..., None] * rng.uniform(*recipe.texture) * _tint(rng)
    if rng.random() < recipe.decoration_share:
        if rng.random() < 0.5:
            decoration = _stripes(rng, shape, period=rng.uniform(6, 30))
        else:
            decoration = np.clip(_noise(rng, shape, cell=int(rng.integers(14, 34))) * 4, -1, 1)  # blobs
        canvas += decoration[..., None] * rng.uniform(*recipe.decoration) * _tint(rng)
    return np.clip(canvas, 0, 255).astype(np.float32)


def _draw_clutter(rng: np.random.Generator, canvas: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Paint curved strokes, which belong to no class, on ``canvas`` and return their mask (H, W)."""
    shape = canvas.shape[:2]
    mask = np.zeros(shape, bool)
    for _ in range(2):
        if rng.random() >= recipe.clutter:
            continue
        start, bend, end = rng.uniform([0, 0], [shape[1], shape[0]], (3, 2))
        t = np.linspace(0, 1, 33)[:, None]
        spine = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
        radius = rng.uniform(1.5, 4.5)
        cover = _coverage([_circle(12) * radius + point for point in _resampled(spine, spacing=1.0)], shape)
        any_kinds_colours = int(rng.integers(len(recipe.classes)))
        _paint(canvas, cover, _fill(rng, canvas, cover, any_kinds_colours, recipe))
        mask |= cover >= 0.5
    return mask


def _resampled(curve: np.ndarray, spacing: float) -> np.ndarray:
    """Return equidistant points on ``curve`` (N, 2), about ``spacing`` apart."""
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    at = np.linspace(0, length[-1], max(2, int(length[-1] / spacing)))
    return np.stack([np.interp(at, length, curve[:, axis]) for axis in (0, 1)], axis=1)


def _fill(rng: np.random.Generator, canvas: np.ndarray, cover: np.ndarray, kind: int, recipe: Recipe) -> np.ndarray:
    """Return a patterned filling (H, W, 3) in two colours that contrast with the surroundings of ``cover``."""
    inside = (cover > 0).astype(np.uint8)
    around = cv2.dilate(inside, np.ones((7, 7), np.uint8)) > inside
    first, second = _contrasting_colours(rng, _colours(rng, kind, recipe), canvas[around], recipe.contrast)
    shape = cover.shape
    period = max(5.0, np.sqrt(cover.sum()) * rng.uniform(0.2, 0.5))
    mix = _pattern(rng, shape, period) if rng.random() < recipe.pattern_share else np.zeros(shape)
    filling = first + (second - first) * mix[..., None]
    return filling + _noise(rng, shape, cell=3)[..., None] * rng.uniform(2, 14)


def _pattern(rng: np.random.Generator, shape: tuple[int, int], period: float) -> np.ndarray:
    """Return a pattern (H, W) from 0 to 1: stripes, checks, soft shading or marble."""
    kind = rng.integers(4)
    if kind == 0:
        return _stripes(rng, shape, period) > 0
    if kind == 1:
        return (_stripes(rng, shape, period) > 0) ^ (_stripes(rng, shape, period) > 0)
    if kind == 2:
        return _stripes(rng, shape, 3 * period) / 2 + 0.5
    return np.clip(_noise(rng, shape, cell=round(period)) + 0.5, 0, 1)


def _colours(rng: np.random.Generator, kind: int, recipe: Recipe) -> np.ndarray:
    """Return 64 colours (64, 3) around the usual hue of a class, as apples are mostly red or green."""
    hue = 360 * kind / len(recipe.classes) + rng.uniform(-recipe.hue_spread, recipe.hue_spread, 64)
    hsv = np.stack([hue % 360, rng.uniform(0.4, 1.0, 64), rng.uniform(0.35, 1.0, 64)], axis=1)
    return cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2BGR)[0] * 255


def _contrasting_colours(
    rng: np.random.Generator, candidates: np.ndarray, around: np.ndarray, contrast: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return two of the candidates (M, 3), each about ``contrast`` away from most pixels ``around`` (N, 3)."""
    candidates_lab = _lab(candidates)
    around = around[:: max(1, len(around) // 64)]
    distances = np.linalg.norm(candidates_lab[:, None] - _lab(around)[None], axis=2)
    distance = np.quantile(distances, 0.1, axis=1)
    first = int(np.argmin(np.abs(distance - rng.uniform(*contrast))))
    from_first = np.linalg.norm(candidates_lab - candidates_lab[first], axis=1)
    second = int(np.argmin(np.abs(from_first - 30) + np.maximum(0, distance[first] - distance) * 4))
    return candidates[first], candidates[second]


def _lab(colours: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(colours[None] / np.float32(255), cv2.COLOR_BGR2LAB)[0]


def _paint(canvas: np.ndarray, cover: np.ndarray, filling: np.ndarray) -> None:
    canvas += (filling - canvas) * cover[..., None]


def _photograph(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Add lens blur and sensor noise to ``canvas``; return uint8 of the same shape."""
    blurred = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 0.8))
    noisy = blurred + rng.normal(0, rng.uniform(1, 6), canvas.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def _tint(rng: np.random.Generator) -> np.ndarray:
    """Draw random strengths of a texture in blue, green and red."""
    return rng.uniform(-0.2, 1.0, 3)


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell: int) -> np.ndarray:
    """Return smooth noise (H, W) from about -1 to 1 with bumps about ``cell`` wide."""
    height, width = shape
    grid = rng.uniform(-1, 1, (height // cell + 2, width // cell + 2))
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def _stripes(rng: np.random.Generator, shape: tuple[int, int], period: float) -> np.ndarray:
    """Return a sine wave (H, W) from -1 to 1 in a random direction."""
    return np.sin(_along(rng.uniform(0, np.pi), shape) * (2 * np.pi / period) + rng.uniform(0, 2 * np.pi))


def _along(angle: float, shape: tuple[int, int]) -> np.ndarray:
    """Return the position of each pixel (H, W) along the direction of ``angle``."""
    y, x = np.indices(shape)
    return x * np.cos(angle) + y * np.sin(angle)
