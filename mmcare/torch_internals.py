"""What torch does not tell by a public name: a module's hooks, whether it is compiled, how often a tensor was edited.

The names are looked for on import. Where torch has renamed them, the answers are those with which everything is right
and perhaps slower.
"""

from __future__ import annotations

from copy import deepcopy
from itertools import count

from torch import Tensor, nn

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_HAS_HOOKS = all(hasattr(nn.Module(), name) for name in _HOOKS)
_any_global_hook = getattr(nn.modules.module, "_has_any_global_hook", lambda: True)


def has_hooks(module: nn.Module) -> bool:
    """Return whether anything listens to a module, or computes its weights; True where that cannot be told."""
    return not _HAS_HOOKS or any(getattr(module, name) for name in _HOOKS)


def has_global_hooks() -> bool:
    """Return whether anything listens to all modules; True where that cannot be told."""
    return bool(_any_global_hook())


def copy_model(model: nn.Module) -> nn.Module:
    """Return a deep copy whose hooks are the model's own: what they are bound to, such as a Runner, is not copied."""
    stores = _HOOKS[:2] if _HAS_HOOKS else ()
    hooks = [hook for module in model.modules() for name in stores for hook in getattr(module, name).values()]
    return deepcopy(model, {id(hook): hook for hook in hooks})


def is_compiled(module: nn.Module) -> bool:
    """Return whether ``torch.compile`` has wrapped a module."""
    return hasattr(module, "_orig_mod")


_HAS_VERSION = hasattr(Tensor, "_version")
_numbers = count()


def version(tensor: Tensor) -> int:
    """Return a number that another edit of a tensor changes; a new one each time where edits cannot be told."""
    return tensor._version if _HAS_VERSION else next(_numbers)
