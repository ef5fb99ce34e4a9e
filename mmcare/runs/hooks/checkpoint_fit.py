"""What a checkpoint must hold to be loaded by a Runner."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...checkpoints import fit_weights, unwrapped
from ...registry import HOOKS


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Refuse a checkpoint that does not fit the model, where MMEngine would warn and go on with random weights.

    Args:
        require_all: whether every weight of the model must be in the checkpoint, as for testing and resuming; False
            for a checkpoint to start training from.
    """

    priority = "VERY_LOW"

    def __init__(self, require_all: bool = True) -> None:
        self.require_all = require_all

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Compare names and shapes before the weights are loaded, and leave only those that the model takes.

        Raises:
            UserError: the checkpoint does not fit.
        """
        source = checkpoint.get("filename", "the checkpoint")  # there after mmcare.make_loading_safe()
        target = f"the {type(unwrapped(runner.model)).__name__} of this config"
        # What the model has no use for is told here. MMEngine would tell it once more, be it as it should be or not.
        checkpoint["state_dict"] = fit_weights(runner.model, checkpoint["state_dict"], source, target, self.require_all)
