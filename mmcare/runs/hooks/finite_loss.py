"""A hook that ends a training when its loss is not finite."""

from __future__ import annotations

from functools import partial
from math import isfinite
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from ...checkpoints import list_names, unwrapped
from ...errors import UserError
from ...registry import HOOKS


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """End a training at the first loss that is infinite or not a number, before the optimizer step.

    MMEngine's CheckInvalidLossHook checks every 50 iterations, after the step. Gradients are not checked: dynamic loss
    scaling produces infinite gradients, and skips these steps by itself. If finite losses still lead to weights or
    running statistics that are not finite, these are not saved in a checkpoint.
    """

    _infinite_at_start: frozenset[str] = frozenset()

    def before_train(self, runner: Runner) -> None:
        """Watch the output of the model's forward pass; this works in distributed and compiled training, too."""
        model = unwrapped(runner.model)
        # A buffer may be infinite by design, such as an attention mask.
        self._infinite_at_start = frozenset(_not_finite(model)) & {name for name, _ in model.named_buffers()}
        self._watch = model.register_forward_hook(partial(self._check, runner), with_kwargs=True)

    def after_train(self, runner: Runner) -> None:
        """Remove the hook, as the model may be copied later, and a Runner cannot be copied."""
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
        listed = ", ".join(f"{name} = {float(values[name])}" for name in parts)
        samples = kwargs.get("data_samples") or []
        paths = [sample.img_path for sample in samples if "img_path" in sample]
        images = f"for the images {', '.join(paths)}" if paths else "for images without a path in the pipeline"
        raise UserError(
            f"iteration {runner.iter + 1} (epoch {runner.epoch + 1}) gave {listed} {images}, so the training was ended "
            "before it damaged the weights: check these images' annotations, or lower the learning rate, and continue "
            "with --resume"
        )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Raise UserError if a weight or a running statistic is not finite."""
        bad = [name for name in _not_finite(unwrapped(runner.model)) if name not in self._infinite_at_start]
        if bad:
            raise UserError(
                f"after iteration {checkpoint['meta']['iter']} {len(bad)} of the weights and statistics are not finite "
                f"({list_names(bad, 3)}), so they were not saved: lower the learning rate, and continue from the last "
                "checkpoint with --resume"
            )


def _not_finite(model: nn.Module) -> list[str]:
    """Return the names of the parameters and buffers in a checkpoint that are not finite."""
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    return [name for name, value in state.items() if not value.isfinite().all()]
