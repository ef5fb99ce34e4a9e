"""Private names of torch that the benchmark uses. Each is checked before it is used."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any

import torch

from ..errors import UserError

try:
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError:
    TorchDispatchMode = None
"""The base class of modes that intercept each operator call; None if torch does not have it."""


def frozen_weights() -> AbstractContextManager[None]:
    """Return a context in which inductor freezes the weights into graphs that it compiles without gradients.

    As an option of ``torch.compile`` the setting has no effect: when it is applied, the weights are already inputs of
    the graph.

    Raises:
        UserError: this version of torch has no such setting.
    """
    return _changed("torch._inductor.config", "freezing", True, "compiled")


def activation_budget(share: float) -> AbstractContextManager[None]:
    """Return a context in which the compiler stores this share of the activations for the backward pass.

    Raises:
        UserError: this version of torch has no such setting.
    """
    return _changed("torch._functorch.config", "activation_memory_budget", share, "memory-budget")


def lift_recompile_limits() -> None:
    """Remove torch's limits on recompiling the same code.

    All subjects and sizes are compiled from the same code. With the limits, later ones would silently run eagerly.
    """
    config = getattr(torch.compiler, "config", None)  # public since some version after 2.6
    if not hasattr(config, "recompile_limit"):
        config = import_module("torch._dynamo.config")
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        if hasattr(config, name):
            setattr(config, name, 2**20)


def _changed(module: str, setting: str, value: Any, step: str) -> AbstractContextManager[None]:
    try:
        config = import_module(module)
        patch, _ = config.patch, getattr(config, setting)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"torch {torch.__version__} has no {module}.{setting}, which the step {step} needs: omit forms with it"
        ) from error
    return patch(**{setting: value})
