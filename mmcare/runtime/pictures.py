"""Pictures as an exported file takes them, prepared as the config's test pipeline does it in PyTorch."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from math import ceil

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .certificate import Certificate, Resizing
from .errors import FileError
from .resizing import resize

Picture = str | os.PathLike | Image.Image | np.ndarray


@dataclass(frozen=True)
class Prepared:
    """A picture that is ready for a file.

    Attributes:
        image: (3, H, W), float32, RGB from 0 to 255.
        inner: height and width of the picture in it, at the top left; the rest is padding.
        size: height and width that the picture had.
    """

    image: np.ndarray
    inner: tuple[int, int]
    size: tuple[int, int]


def read_picture(picture: Picture) -> np.ndarray:
    """Return a picture, (H, W, 3), uint8, RGB, with its EXIF rotation applied.

    Args:
        picture: a path, a PIL image, or an array (H, W) or (H, W, 3), uint8, RGB.

    Raises:
        FileError: it cannot be read or decoded, or has too many pixels to be safe.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.shape[2:] not in ((), (3,)) or not picture.size:
            raise FileError(
                f"the picture is an array {picture.shape} of {picture.dtype}: give uint8 (H, W, 3), in the order RGB"
            )
        return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, -1)
    if isinstance(picture, Image.Image):
        return _pixels(picture)
    name = os.fspath(picture)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(name)
    except Image.DecompressionBombError as error:
        reason = str(error).partition(",")[0]
        raise FileError(f"{name} may be a decompression bomb and was not decoded: {reason}; scale it down") from None
    except UnidentifiedImageError:
        raise FileError(f"{name} is not a picture in a known format: give another file") from None
    except OSError as error:
        raise FileError(f"{name} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged header may raise anything
        raise FileError(f"{name} has a damaged header ({error}): replace it") from None
    with opened:
        try:
            return _pixels(opened)
        except Exception:  # each decoder has its own errors
            raise FileError(f"{name} cannot be decoded, as it is damaged or not a picture: replace it") from None


def prepare(picture: np.ndarray, certificate: Certificate, fit: bool = False) -> Prepared:
    """Resize a picture as in the test pipeline, and pad it to the file's size if that is fixed.

    The padding has the mean colour, which the file normalizes to 0, as the models pad.

    Args:
        picture: (H, W, 3), uint8, RGB.
        certificate: of the file.
        fit: whether a picture that the pipeline makes larger than the file's size is made smaller instead of refused.

    Raises:
        FileError: the picture, resized, does not fit the file's size, or has no pixels left.
    """
    size = picture.shape[:2]
    sizes = _sizes(size, certificate.resizing)
    room = certificate.input.shape[2:]
    if any(taken is not None and side > taken for side, taken in zip(sizes[-1], room, strict=True)):
        if not fit:
            raise FileError(
                f"the picture, of {_show(size)} pixels, has {_show(sizes[-1])} in the test pipeline, but the file "
                f"takes {_show(room)}: let it be made smaller with --fit (fit=True), or export the model with --dynamic"
            )
        sizes = [_fitting(size, room)]
    for height, width in sizes:
        if min(height, width) < 1:
            raise FileError(f"the picture, of {_show(size)} pixels, is too narrow to be resized: give another one")
        picture = resize(picture, width, height)
    inner = picture.shape[:2]
    full = [side if taken is None else taken for side, taken in zip(inner, room, strict=True)]
    image = np.empty((3, *full), np.float32)
    image[:] = np.float32(certificate.normalization.mean)[:, None, None]
    image[:, : inner[0], : inner[1]] = picture.transpose(2, 0, 1)
    return Prepared(image, inner, size)


def _pixels(image: Image.Image) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, -1)
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def _sizes(size: tuple[int, int], resizing: Resizing) -> list[tuple[int, int]]:
    """Return the height and the width after each step of the pipeline, rounded as by mmcv."""
    height, width = size
    sizes = [size]
    if resizing.scale and resizing.keep_ratio:
        longest, shortest = max(resizing.scale), min(resizing.scale)
        factor = min(longest / max(size), shortest / min(size))
        sizes.append((int(height * factor + 0.5), int(width * factor + 0.5)))
    elif resizing.scale:
        sizes.append(resizing.scale[::-1])
    if resizing.multiple:
        sizes.append(tuple(ceil(side / resizing.multiple) * resizing.multiple for side in sizes[-1]))
    return sizes


def _fitting(size: tuple[int, int], room: tuple[int | None, int | None]) -> tuple[int, int]:
    """Return the largest height and width of the picture's ratio in the file's size."""
    factor = min(taken / side for side, taken in zip(size, room, strict=True) if taken is not None)
    return tuple(max(1, int(side * factor + 0.5)) for side in size)


def _show(size: tuple[int | None, ...]) -> str:
    """Return "width×height", as pictures have it."""
    return "×".join("any" if side is None else str(side) for side in reversed(size))
