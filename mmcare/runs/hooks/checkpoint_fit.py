"""A hook that refuses checkpoints that do not fit the model."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...checkpoints import class_names, fit_classes, fit_weights, unwrapped
from ...registry import HOOKS


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Refuse a checkpoint that does not fit the model; MMEngine would warn and continue with random weights.

    Args:
        require_all: whether the checkpoint must have every weight of the model, as for testing and resuming; False for
            a checkpoint from which a training starts, which may be for other classes: the rows of its class layers
            are taken for the classes that the training data has, too.
    """

    priority = "VERY_HIGH"  # before EMAHook, which fills its copy of the model from the same weights

    def __init__(self, require_all: bool = True) -> None:
        self.require_all = require_all

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Check names and shapes before the weights are loaded, and remove weights that the model does not use.

        Raises:
            UserError: the checkpoint does not fit.
        """
        source = checkpoint.get("filename", "the checkpoint")  # set after mmcare.make_loading_safe()
        target = f"the {type(unwrapped(runner.model)).__name__} of this config"
        state, notes = checkpoint["state_dict"], []
        if not self.require_all:
            names = class_names(checkpoint.get("meta"))
            state, notes = fit_classes(runner.model, state, names, _classes_to_learn(runner), source)
        # fit_weights logs unused weights. If they stayed, MMEngine would warn of all of them, even of expected ones.
        checkpoint["state_dict"] = fit_weights(runner.model, state, source, target, require_all=True)
        for note in notes:
            runner.logger.info(note)


def _classes_to_learn(runner: Runner) -> tuple[str, ...] | None:
    """Return the class names of the training data; None if the Runner does not train or they are unknown."""
    loop = runner.train_loop
    return class_names(getattr(loop.dataloader.dataset, "metainfo", None)) if loop else None
