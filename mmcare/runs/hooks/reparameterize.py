"""Testing with the fast form of the model."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...registry import HOOKS
from ...fast.reparameterization import reparameterize


@HOOKS.register_module()
class ReparameterizeHook(Hook):
    """Tests with the model's fast form (see :func:`mmcare.reparameterize`), and puts the trained one back afterwards.

    The fast form is made when the weights are those to test with: after the checkpoint is loaded, and after EMAHook has
    put the averaged weights in their place.
    """

    priority = "LOW"

    def before_test_epoch(self, runner: Runner) -> None:
        """Raises UserError where the model has no backbone of mmcare's."""
        self._trained = runner.model
        runner.model = reparameterize(runner.model)
        if vars(runner.model).pop("test_step", None):  # the config's compile=...: it is the trained model's step
            runner._maybe_compile("test_step")
        runner.logger.info("Testing with the model's fast form")

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        runner.model = self._trained
        del self._trained
