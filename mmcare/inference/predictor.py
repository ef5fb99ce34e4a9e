"""Predictions of a trained detector or segmentor, picture by picture."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import UserError
from ..stack import check_stack
from .loading import load
from .prediction import Prediction, to_prediction
from .reading import Prepared, prepare
from .sources import count, items

if TYPE_CHECKING:
    from mmengine.config import Config
    from PIL.Image import Image

    Images = str | Path | int | np.ndarray | Image | Iterable["Images"]

MOST_WORKERS = 4


class Predictor:
    """A trained detector or segmentor that predicts pictures.

    Pictures are prepared by the test pipeline of the config, as ``tools/test.py`` does, and a result does not depend on
    which pictures are predicted together.

    Args:
        config_or_release: a release or any other checkpoint of MMEngine, which carries its config and classes; or a
            config (a file, the name of one of ours, or a ``Config``), to which a checkpoint is given. The config in a
            checkpoint is read without running it.
        checkpoint: checkpoint for the config: a file or its http(s) address.
        device: "cpu", "cuda", "cuda:1" …; by default "cuda" where torch finds a GPU.
        fast: whether to compute with the fast form of the model (:func:`mmcare.reparameterize`); only models with a
            backbone of mmcare have one.

    Attributes:
        model: the model, in eval mode.
        task: "detection" or "segmentation".
        classes: class names in the order of the labels.
        palette: a colour (R, G, B) for each class; None if the checkpoint has none.
        transforms: the transforms of the test pipeline, without those that load annotations.
        device: the model's device.

    Raises:
        UserError: a file cannot be read or carries no config or classes, the weights do not fit the model, or there is
            no such device.
    """

    def __init__(
        self,
        config_or_release: str | Path | Config,
        checkpoint: str | Path | None = None,
        device: str | torch.device | None = None,
        fast: bool = True,
    ) -> None:
        check_stack()
        self.device = _device(device)
        loaded = load(config_or_release, checkpoint, self.device, fast)
        self.model, self.task, self.classes = loaded.model, loaded.task, loaded.classes
        self.transforms, self.palette = loaded.transforms, loaded.palette

    def __call__(
        self,
        images: Images,
        batch_size: int = 8,
        workers: int | None = None,
        on_error: Callable[[str, UserError], None] | None = None,
    ) -> Iterator[Prediction]:
        """Yield the prediction for each picture, in order, while later pictures are being read.

        Args:
            images: the path of a picture, a video or a folder, whose pictures are taken in the order of their names;
                an array (H, W), (H, W, 3) or (B, H, W, 3) of uint8 in BGR order, as ``cv2.imread`` returns; a PIL
                image; the number of a camera; or a list or an iterator of any of these, which is read as it is needed.
            batch_size: most pictures that are computed together; only pictures that the pipeline makes equal in size
                are.
            workers: number of processes that read pictures; by default none for up to a batch or a camera, and
                otherwise half as many as there are processors, at most 4.
            on_error: called with the name of a picture that cannot be predicted and the error, which is raised
                otherwise.

        Raises:
            UserError: the arguments cannot be used, or a picture cannot be predicted.
        """
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {batch_size}")
        if isinstance(images, int):  # a camera's pictures are wanted at once
            batch_size, workers = 1, workers or 0
        if workers is None:
            number = count(images)
            few = number is not None and number <= batch_size
            workers = 0 if few else min(MOST_WORKERS, max(1, len(os.sched_getaffinity(0)) // 2))
        return self._predict(images, batch_size, workers, on_error)

    def _predict(
        self, images: Images, batch_size: int, workers: int, on_error: Callable[[str, UserError], None] | None
    ) -> Iterator[Prediction]:
        """Yield predictions in order, although pictures of one size wait for each other.

        A batch is computed when it is full, or when the first picture that was not yielded has waited for two batches.
        """
        waiting: deque[_Slot] = deque()
        batches: dict[tuple, list[_Slot]] = {}
        for prepared in prepare(items(images), self.transforms, workers, batch_size):
            if prepared.error:
                if on_error is None:
                    raise prepared.error
                on_error(prepared.item.name, prepared.error)
                continue
            slot = _Slot(prepared)
            waiting.append(slot)
            batch = batches.setdefault(slot.shape, [])
            batch.append(slot)
            if len(batch) == batch_size:
                self._fill(batches.pop(slot.shape))
            elif len(waiting) > 2 * batch_size and not waiting[0].result:
                self._fill(batches.pop(waiting[0].shape))
            while waiting and waiting[0].result:
                yield waiting.popleft().result
        for batch in batches.values():
            self._fill(batch)
        for slot in waiting:
            yield slot.result

    def _fill(self, batch: list[_Slot]) -> None:
        """Compute the results of a batch."""
        data = {
            "inputs": [slot.prepared.inputs for slot in batch],
            "data_samples": [slot.prepared.sample for slot in batch],
        }
        with torch.no_grad():
            samples = self.model.test_step(data)
        for slot, sample in zip(batch, samples, strict=True):
            item = slot.prepared.item
            slot.result = to_prediction(
                sample,
                size=tuple(sample.ori_shape[:2]),
                source=item.source,
                index=item.index,
                frame=item.frame,
                classes=self.classes,
                palette=self.palette,
                picture=item.array,
            )
            slot.prepared = None  # the tensors are not needed while the result waits


class _Slot:
    """A place in the order of the results."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared: Prepared | None = prepared
        self.shape = (prepared.inputs.shape, prepared.sample.ori_shape)  # mmseg warns of different original sizes
        self.result: Prediction | None = None


def _device(name: str | torch.device | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise UserError(f'the device "{name}" cannot be used ({reason}): give "cpu", or fix the GPU') from error
    return device
