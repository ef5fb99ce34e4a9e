"""Access to private names of torch: a module's hooks, whether it is compiled, and a tensor's version.

The names are looked up on import. If a torch release has renamed them, the functions return conservative answers:
results stay correct, perhaps at lower speed.
"""

from __future__ import annotations

from copy import deepcopy
from itertools import count

from torch import Tensor, nn

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_HAS_HOOKS = all(hasattr(nn.Module(), name) for name in _HOOKS)
_any_global_hook = getattr(nn.modules.module, "_has_any_global_hook", lambda: True)


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks, which may also compute its weights; True if unknown."""
    return not _HAS_HOOKS or any(getattr(module, name) for name in _HOOKS)


def has_global_hooks() -> bool:
    """Return whether there are global module hooks; True if unknown."""
    return bool(_any_global_hook())


def copy_model(model: nn.Module) -> nn.Module:
    """Return a deep copy with shared hooks, so that objects bound to the hooks, such as a Runner, are not copied."""
    stores = _HOOKS[:2] if _HAS_HOOKS else ()
    hooks = [hook for module in model.modules() for name in stores for hook in getattr(module, name).values()]
    return deepcopy(model, {id(hook): hook for hook in hooks})


def is_compiled(module: nn.Module) -> bool:
    """Return whether a module is wrapped by ``torch.compile``."""
    return hasattr(module, "_orig_mod")


_HAS_VERSION = hasattr(Tensor, "_version")
_numbers = count()


def version(tensor: Tensor) -> int:
    """Return a number that changes with every edit of a tensor; if edits are unknown, a new number for each call."""
    return tensor._version if _HAS_VERSION else next(_numbers)
