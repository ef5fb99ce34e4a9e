"""A hook that refuses checkpoints that do not fit the model."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...checkpoints import fit_weights, unwrapped
from ...registry import HOOKS


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Refuse a checkpoint that does not fit the model; MMEngine would warn and continue with random weights.

    Args:
        require_all: whether the checkpoint must have every weight of the model, as for testing and resuming; False for
            a checkpoint from which a training starts.
    """

    priority = "VERY_LOW"

    def __init__(self, require_all: bool = True) -> None:
        self.require_all = require_all

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Check names and shapes before the weights are loaded, and remove weights that the model does not use.

        Raises:
            UserError: the checkpoint does not fit.
        """
        source = checkpoint.get("filename", "the checkpoint")  # set after mmcare.make_loading_safe()
        target = f"the {type(unwrapped(runner.model)).__name__} of this config"
        # fit_weights logs unused weights. If they stayed, MMEngine would warn of all of them, even of expected ones.
        checkpoint["state_dict"] = fit_weights(runner.model, checkpoint["state_dict"], source, target, self.require_all)
