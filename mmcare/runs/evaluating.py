"""Evaluation of several models on the same images, outside of MMEngine's Runner and without its files and logs."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

from ..data import innermost_datasets, type_name
from .config_faults import explain_config_faults

if TYPE_CHECKING:
    from mmengine.config import Config

Predict = Callable[[dict[str, Any]], list[Any]]
"""From a batch of the dataloader to data samples with predictions, as a model's ``test_step``."""

_PERCENT = ("mIoU", "mDice", "mFscore")
"""Metrics of MMSegmentation, which returns them in percent."""
_MAIN = ("bbox_mAP", "segm_mAP", "mAP", *_PERCENT)


class Evaluation:
    """The test data of a config with its evaluator, which measures one model after the other.

    Args:
        cfg: the complete config.
        most: most images, the first ones; all by default.

    Attributes:
        data: name of the data set, for people.
        images: number of images.
        classes: class names of the data set.

    Raises:
        UserError: the data cannot be read, or the config has a fault.
    """

    def __init__(self, cfg: Config, most: int | None = None) -> None:
        from torch.utils.data import Subset

        from .bad_data import build_guarded

        with explain_config_faults(cfg, splits=("test",)), _quiet():
            dataset = build_guarded(copy.deepcopy(cfg.test_dataloader.dataset), cfg.default_scope)
        self._cfg, self._metainfo = cfg, dataset.metainfo
        self.classes = tuple(dataset.metainfo.get("classes") or ())
        self.images = len(dataset) if most is None else min(most, len(dataset))
        self.data = _name_of(cfg)
        # COCO's metric would count what is missed in the other images, too.
        self._numbers = None if self.images == len(dataset) else _image_numbers(dataset, self.images)
        self._dataset = dataset if self._numbers is None else Subset(dataset, range(self.images))

    def __call__(self, predict: Predict, what: str) -> dict[str, float]:
        """Return the main metrics of a model, from 0 to 1, by the evaluator's names; progress goes to standard error.

        There are none if COCO's evaluator gets no detection at all.

        Args:
            predict: the model's predictions for a batch.
            what: name of the model in the progress.

        Raises:
            UserError: an image cannot be read.
        """
        from mmengine.registry import DefaultScope
        from mmengine.runner import Runner
        from mmengine.utils import ProgressBar

        settings = {name: value for name, value in self._cfg.test_dataloader.items() if name != "dataset"}
        with DefaultScope.overwrite_default_scope(self._cfg.default_scope), _quiet():
            loader = Runner.build_dataloader({**copy.deepcopy(settings), "dataset": self._dataset}, seed=0)
            evaluator = self._evaluator()
        print(f"measuring {what} on {self.images} images of {self.data}", file=sys.stderr, flush=True)
        progress = ProgressBar(self.images, file=sys.stderr)
        try:
            for batch in loader:
                samples = [sample.clone() for sample in batch["data_samples"]]  # a model writes into them
                samples = predict({**batch, "data_samples": samples})
                with _quiet():
                    evaluator.process(samples, batch)
                for _ in samples:
                    progress.update()
        finally:
            print(file=sys.stderr)
        with _quiet():
            found = evaluator.evaluate(self.images)
        return _main(found)

    def sizes(self, most: int = 50) -> Iterator[tuple[int, int]]:
        """Yield height and width of some images as the pipeline makes them, spread over the data.

        Raises:
            UserError: an image cannot be read.
        """
        for number in range(0, self.images, -(-self.images // most)):
            yield tuple(self._dataset[number]["inputs"].shape[1:])

    def _evaluator(self) -> Any:
        from mmengine.evaluator import Evaluator

        given = copy.deepcopy(self._cfg.test_evaluator)
        evaluator = Evaluator(given if isinstance(given, list) else [given])
        evaluator.dataset_meta = self._metainfo
        for metric in evaluator.metrics:
            if self._numbers is not None and hasattr(metric, "img_ids"):
                metric.img_ids = self._numbers
        return evaluator


def _name_of(cfg: Config) -> str:
    """Return the type of the test data with its annotations or its images, without the folder."""
    dataset = next(innermost_datasets(cfg.test_dataloader.dataset))
    place = dataset.get("ann_file") or next(iter((dataset.get("data_prefix") or {}).values()), "")
    return f"{type_name(dataset)} {'/'.join(place.rstrip('/').split('/')[-2:])}".strip()


def _image_numbers(dataset: Any, count: int) -> list[Any]:
    """Return the numbers of the first images in their annotation file, where it has such."""
    return [dataset.get_data_info(index).get("img_id") for index in range(count)]


def _main(found: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that sum up the others, or else all of them, without percent."""
    numbers = {name: float(value) for name, value in found.items() if isinstance(value, Real)}
    main = {name: value for name, value in numbers.items() if name.rpartition("/")[2] in _MAIN} or numbers
    # Their numbers are of single precision.
    return {
        name: round(value / 100, 6) if name.rpartition("/")[2] in _PERCENT else value for name, value in main.items()
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the tables and notes of evaluators."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
