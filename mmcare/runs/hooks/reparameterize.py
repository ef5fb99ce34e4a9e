"""A hook for testing with the fast form of the model."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...fast import reparameterize
from ...registry import HOOKS


@HOOKS.register_module()
class ReparameterizeHook(Hook):
    """Test with the fast form of the model (see :func:`mmcare.reparameterize`), and restore the trained model after.

    The fast form is made once the model has the weights to test: after the checkpoint is loaded and EMAHook has
    switched to the averaged weights.
    """

    priority = "LOW"

    def before_test_epoch(self, runner: Runner) -> None:
        """Replace the model with its fast form; raise UserError if it has no mmcare backbone."""
        self._trained = runner.model
        runner.model = reparameterize(runner.model)
        # If the config enables compilation, the trained model has a compiled step, which was copied as well.
        if vars(runner.model).pop("test_step", None):
            settings = runner.cfg.compile
            runner.model.test_step = torch.compile(
                runner.model.test_step, **(settings if isinstance(settings, dict) else {})
            )
        runner.logger.info("Testing with the model's fast form")

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Restore the trained model."""
        runner.model = self._trained
        del self._trained
