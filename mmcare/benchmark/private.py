"""What the benchmark uses of torch that has no public name. Each name is looked for before it is used."""

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
"""The base class of what sees each operator that is called, or None where torch has no such class."""


def frozen_weights() -> AbstractContextManager[None]:
    """Return a context in which inductor freezes the weights into what it compiles without gradients.

    As one of ``torch.compile``'s own options it comes too late: the graph then takes weights as inputs already.

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
    """Let torch compile the same code as often as it takes.

    Each subject and size is compiled from the same code: the limits would make the later ones run eagerly, without a
    word.
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
            f"torch {torch.__version__} has no {module}.{setting}, which the form {step} sets: leave the form out"
        ) from error
    return patch(**{setting: value})
