"""What a checkpoint must hold to be loaded into a model."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner

from ...checkpoints.reading import check_fit, log_unused
from ...models.base import PyramidBackbone
from ...registry import HOOKS


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Refuses a checkpoint that does not fit the model, where MMEngine would warn and go on with random weights.

    Args:
        require_all: whether every weight of the model must be in the checkpoint, as for testing and resuming; False
            for a checkpoint to start training from.
    """

    priority = "VERY_LOW"

    def __init__(self, require_all: bool = True) -> None:
        self.require_all = require_all

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Compares names and shapes before the weights are loaded.

        Raises:
            UserError: the checkpoint does not fit.
        """
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        state = checkpoint["state_dict"]
        unbuilt: tuple[str, ...] = ()
        for name, module in model.named_modules():
            if isinstance(module, PyramidBackbone):
                prefix = f"{name}." if name else ""
                module.translate_names(state, prefix)
                unbuilt += tuple(prefix + part for part in module.unbuilt_parts)
        own = model.state_dict()
        source = str(runner._load_from or "the checkpoint")
        check_fit(own, state, source, f"the {type(model).__name__} of this config", self.require_all)
        log_unused(own, state, f"in {source}", unbuilt)
        for name in [name for name in state if name not in own]:
            del state[name]  # or MMEngine would tell of it once more, and without telling what is as it should be
