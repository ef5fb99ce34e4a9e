"""Ends a training whose loss is not a number any more."""

from __future__ import annotations

from functools import partial
from math import isfinite
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ...checkpoints.reading import list_names
from ...errors import UserError
from ...registry import HOOKS


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Ends a training at the first loss that is infinite or not a number, before a step is taken with it.

    MMEngine's CheckInvalidLossHook looks every 50 iterations, after the step. Gradients are not looked at: dynamic loss
    scaling makes infinite ones, and skips their steps by itself. Where finite losses have spoiled the weights all the
    same, these are kept out of checkpoints.
    """

    def before_train(self, runner: Runner) -> None:
        """Watches what the model's forward pass returns, which is also there in distributed and compiled training."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._watch = model.register_forward_hook(partial(self._check, runner), with_kwargs=True)

    def after_train(self, runner: Runner) -> None:
        """Leaves the model as it was: it may be copied, which a Runner cannot be."""
        self._watch.remove()

    def _check(self, runner: Runner, model: nn.Module, args: tuple, kwargs: dict[str, Any], losses: Any) -> None:
        if kwargs.get("mode") != "loss":
            return
        with torch.no_grad():
            total, values = model.parse_losses(losses)
        if isfinite(total):
            return
        bad = [name for name, value in values.items() if "loss" in name and not isfinite(value)]
        parts = [name for name in bad if name != "loss"] or bad  # "loss" is MMEngine's name for their sum
        told = ", ".join(f"{name} = {float(values[name])}" for name in parts)
        samples = kwargs.get("data_samples") or []
        paths = [sample.img_path for sample in samples if "img_path" in sample]
        images = f"for the images {', '.join(paths)}" if paths else "for images that the pipeline gives no paths of"
        raise UserError(
            f"iteration {runner.iter + 1} (epoch {runner.epoch + 1}) gave {told} {images}, so the training was ended "
            "before it spoiled the weights: check these images' annotations, or lower the learning rate, and continue "
            "with --resume"
        )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Raises UserError where a weight is not finite."""
        bad = [name for name, weight in runner.model.named_parameters() if not weight.isfinite().all()]
        if bad:
            raise UserError(
                f"after iteration {checkpoint['meta']['iter']} {len(bad)} of the weights are not finite "
                f"({list_names(bad, 3)}), so they were not saved: lower the learning rate, and continue from the last "
                "checkpoint with --resume"
            )
