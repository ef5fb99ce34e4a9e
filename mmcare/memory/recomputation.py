"""Recomputation in the backward pass: :func:`torch.utils.checkpoint.checkpoint`, adapted to our networks.

The second run does not update the norms' running statistics, recomputes nothing a third time, and uses the parameters
of the first run, even if ``torch.func.functional_call`` supplied them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from .frozen_norms import BatchNorm
from .mode import Saving, Switched, present


class HasModules(Protocol):
    def modules(self) -> Iterable[nn.Module]: ...


Layer = TypeVar("Layer", bound=HasModules)


def recompute(function: Callable[[Sequence[Layer], Tensor], Tensor], layers: Sequence[Layer], x: Tensor) -> Tensor:
    """Return ``function(layers, x)``; store only x, and call the function again in the backward pass.

    Args:
        function: runs the layers; must be deterministic and depend on nothing else.
        layers: modules, or objects whose ``modules()`` returns the modules they use.
        x: the input.
    """
    # torch stops the second run once it has the last map that the backward pass needs, before the last convolution.
    settings = dict(use_reentrant=False, preserve_rng_state=False, determinism_check="none")
    run = _WithSameParameters(partial(function, layers), layers)
    return checkpoint(run, x, **settings, context_fn=partial(_contexts, layers))


def recompute_block(block: nn.Module, x: Tensor) -> Tensor:
    """Return ``block(x)``; in training, store only x. The block may draw random numbers, as drop path does."""
    if not (block.training and torch.is_grad_enabled()):
        return block(x)
    if torch.compiler.is_compiling():  # the compiler recomputes by itself, and does not support context_fn
        return checkpoint(block, x, use_reentrant=False)
    if present() is Saving.NOTHING:
        return block(x)
    run = _WithSameParameters(block, [block])
    return checkpoint(run, x, use_reentrant=False, context_fn=partial(_contexts, [block]))


def hooks_are_possible() -> bool:
    """Return whether autograd allows saved-tensor hooks, which recomputation needs; torch.func's transforms do not."""
    try:
        with torch.autograd.graph.saved_tensors_hooks(_same, _same):
            return True
    except RuntimeError:
        return False


def _same(x: Tensor) -> Tensor:
    return x


class _WithSameParameters:
    """A function of x that always runs with the parameters that its layers had when it was wrapped."""

    def __init__(self, function: Callable[[Tensor], Tensor], layers: Sequence[HasModules]) -> None:
        self.function, self.layers = function, layers
        self.parameters = self._present()

    def __call__(self, x: Tensor) -> Tensor:
        present = self._present()
        if all(now is then for now, then in zip(present, self.parameters, strict=True)):
            return self.function(x)
        owner = _Owner(self._modules())
        names = [f"{i}.{name}" for i, module in enumerate(owner) for name, _ in module.named_parameters(recurse=False)]
        return functional_call(owner, dict(zip(names, self.parameters, strict=True)), (self.function, x))

    def _modules(self) -> Iterable[nn.Module]:
        return (module for layer in self.layers for module in layer.modules())

    def _present(self) -> list[nn.Parameter]:
        return [parameter for module in self._modules() for parameter in module.parameters(recurse=False)]


class _Owner(nn.ModuleList):
    """Layers as one module, for ``functional_call``."""

    def forward(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return function(x)


def _contexts(layers: Sequence[HasModules]) -> tuple[Switched, _SecondRun]:
    return Switched(Saving.FOLD), _SecondRun([module for layer in layers for module in layer.modules()])


class _SecondRun(Switched):
    """A context that keeps a second run from updating the norms' running statistics; it can be entered again."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__(Saving.FOLD)
        self.norms = [module for module in modules if isinstance(module, BatchNorm) and module.training]

    def __enter__(self) -> None:
        super().__enter__()
        self.before = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for norm, (momentum, num_batches) in zip(self.norms, self.before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches
        super().__exit__(kind, error, trace)
