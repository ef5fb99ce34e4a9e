"""Testing with the fast form of the model."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...fast import reparameterize
from ...registry import HOOKS


@HOOKS.register_module()
class ReparameterizeHook(Hook):
    """Test with the model's fast form (see :func:`mmcare.reparameterize`), and put the trained one back afterwards.

    The fast form is made when the weights are those to test with: after the checkpoint is loaded, and after EMAHook has
    put the averaged weights in their place.
    """

    priority = "LOW"

    def before_test_epoch(self, runner: Runner) -> None:
        """Replace the model; raise UserError where it has no backbone of mmcare's."""
        self._trained = runner.model
        runner.model = reparameterize(runner.model)
        # Where the config says to compile, MMEngine has put a compiled step into the trained model, and so its copy.
        if vars(runner.model).pop("test_step", None):
            settings = runner.cfg.compile
            runner.model.test_step = torch.compile(
                runner.model.test_step, **(settings if isinstance(settings, dict) else {})
            )
        runner.logger.info("Testing with the model's fast form")

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Put the trained model back."""
        runner.model = self._trained
        del self._trained
