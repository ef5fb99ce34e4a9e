"""Decoding pictures and preparing them for the model, in worker processes."""

from __future__ import annotations

import signal
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError
from .sources import Item


@dataclass(frozen=True)
class Prepared:
    """A picture as the model takes it, or why it cannot be predicted."""

    item: Item
    inputs: Tensor | None
    """(3, H, W), as the pipeline packs it."""
    sample: Any
    """The data sample that belongs to it."""
    error: UserError | None


def prepare(items: Iterator[Item], transforms: tuple[Any, ...], workers: int, ahead: int = 1) -> Iterator[Prepared]:
    """Yield each item prepared, in order.

    Args:
        items: what to read.
        transforms: the test pipeline; the first one loads files.
        workers: number of processes; 0 for this one.
        ahead: number of items that are prepared while the last one is used, at least; about as many more are taken.
    """
    taken: deque[Item] = deque()  # arrays need not come back from the workers

    def noted() -> Iterator[Item]:
        for item in items:
            taken.append(item)
            yield item

    # A sampler usually yields numbers, but a dataset may take anything: so the items go to the workers as they come.
    loader = DataLoader(
        _Pictures(transforms),
        batch_size=None,
        sampler=noted(),
        num_workers=workers,
        prefetch_factor=ceil(ahead / workers) + 1 if workers else None,
        collate_fn=tuple,
        worker_init_fn=_start,
    )
    for packed in loader:
        yield Prepared(taken.popleft(), *packed)


class _Pictures(Dataset):
    def __init__(self, transforms: tuple[Any, ...]) -> None:
        self.load, *self.others = transforms

    def __getitem__(self, item: Item) -> tuple[Tensor | None, Any, UserError | None]:
        """Prepare an item; a fault of the picture is returned, so that the next ones are read."""
        if item.error:
            return None, None, item.error
        results = {"img_path": item.source or "", "img_id": item.index}
        try:
            results = self._from_array(results, item.array) if item.array is not None else self._from_file(results)
            size = results["ori_shape"]
            for transform in self.others:
                results = transform(results)
        except UserError as error:
            return None, None, error
        except (cv2.error, ZeroDivisionError, ValueError) as error:  # too narrow to be resized
            reason = " ".join(str(error).split())[:200]
            shape = "×".join(map(str, size[::-1]))
            return None, None, UserError(f"{item.name}, of {shape} pixels, fails in the pipeline: {reason}")
        sample = results["data_samples"]
        sample.set_metainfo({"ori_shape": size})  # a config may not pack it
        return results["inputs"], sample, None

    def _from_array(self, results: dict[str, Any], array: np.ndarray) -> dict[str, Any]:
        array = array.astype(np.float32) if self.load.to_float32 else array
        return {**results, "img": array, "img_shape": array.shape[:2], "ori_shape": array.shape[:2]}

    def _from_file(self, results: dict[str, Any]) -> dict[str, Any]:
        path = results["img_path"]
        _check_header(path)
        try:
            loaded = self.load(results)
        except Exception:  # each decoder has its own errors
            loaded = None
        if loaded is None:
            raise UserError(f"{path} cannot be decoded, as it is damaged or not a picture: replace it")
        return loaded


def _check_header(path: str) -> None:
    """Refuse a file that is not a picture, or whose header announces more pixels than Pillow deems safe."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            Image.open(path).close()
    except Image.DecompressionBombError as error:
        reason = str(error).partition(",")[0]
        raise UserError(f"{path} may be a decompression bomb and was not decoded: {reason}; scale it down") from None
    except UnidentifiedImageError:
        raise UserError(f"{path} is not a picture in a known format: give another file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged header may raise anything
        raise UserError(f"{path} has a damaged header ({error}): replace it") from None


def _start(worker: int) -> None:
    cv2.setNumThreads(0)  # a worker is one thread
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the workers
