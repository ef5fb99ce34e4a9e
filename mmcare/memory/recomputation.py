"""Computing again in the backward pass: :func:`torch.utils.checkpoint.checkpoint`, with what our networks need of it.

A second run changes no statistics of norms, computes nothing a third time, and takes the parameters of the first run,
also where ``torch.func.functional_call`` had lent them.
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
    """Return ``function(layers, x)``, of which x is kept for the backward pass, which calls it again.

    Args:
        function: deterministic; it runs the layers and needs nothing else.
        layers: modules, or what says by ``modules()`` which it uses.
        x: what they take.
    """
    # torch ends the second run where the last map is made that the backward pass needs, before the last convolution.
    settings = dict(use_reentrant=False, preserve_rng_state=False, determinism_check="none")
    run = _WithSameParameters(partial(function, layers), layers)
    return checkpoint(run, x, **settings, context_fn=partial(_contexts, layers))


def recompute_block(block: nn.Module, x: Tensor) -> Tensor:
    """Return ``block(x)``, of which training keeps x only; the block may draw random numbers, as drop path does."""
    if not (block.training and torch.is_grad_enabled()):
        return block(x)
    if torch.compiler.is_compiling():  # the compiler has its own recomputation, and no contexts
        return checkpoint(block, x, use_reentrant=False)
    if present() is Saving.NOTHING:
        return block(x)
    run = _WithSameParameters(block, [block])
    return checkpoint(run, x, use_reentrant=False, context_fn=partial(_contexts, [block]))


def hooks_are_possible() -> bool:
    """Return whether autograd lets what it keeps be replaced, as checkpointing does; torch.func's transforms do not."""
    try:
        with torch.autograd.graph.saved_tensors_hooks(_same, _same):
            return True
    except RuntimeError:
        return False


def _same(x: Tensor) -> Tensor:
    return x


class _WithSameParameters:
    """Runs a function of x, each time with the parameters that its layers have now."""

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
    """Layers as one module, for parameters to be lent to."""

    def forward(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return function(x)


def _contexts(layers: Sequence[HasModules]) -> tuple[Switched, _SecondRun]:
    return Switched(Saving.FOLD), _SecondRun([module for layer in layers for module in layer.modules()])


class _SecondRun(Switched):
    """Keeps a second run from counting the batch once more into the norms' running statistics; may be entered again."""

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
