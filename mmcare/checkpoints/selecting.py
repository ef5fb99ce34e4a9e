"""Selection of the weights, raw or averaged, in a checkpoint of any known trainer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import UserError

# The keys of the weights in checkpoints of mmcare, MMEngine, timm, DeiT and DeepSpeed. MMEngine's EMAHook saves the
# averaged weights under "state_dict" and the raw ones under "ema_state_dict".
RAW_KEYS = ("state_dict", "model", "module")
AVERAGED_KEYS = ("state_dict_ema", "model_ema", "ema")
_MMENGINE_EMA_KEY = "ema_state_dict"


def select_weights(checkpoint: Mapping[str, Any], weights: str | None = None) -> tuple[dict[str, Tensor], str]:
    """Return the named weights in a checkpoint of any known format.

    Args:
        checkpoint: the result of :func:`read_checkpoint`.
        weights: ``"ema"`` for the averaged weights, ``"raw"`` for the trained ones, None for the main entry, which the
            file's trainer evaluates; it is averaged only if MMEngine's EMAHook wrote it or if it is the only one.

    Returns:
        The weights by name, without a ``module.`` prefix, and a phrase that names their entry.

    Raises:
        UserError: the file does not have the requested weights, or none at all.
    """
    if weights not in (None, "ema", "raw"):
        raise UserError(f'weights={weights!r} is not valid: choose "ema", "raw" or None')
    entries = _weight_entries(checkpoint)
    if not entries:
        raise UserError(
            "the checkpoint holds no named weights: none of its entries is a tensor or one of "
            f"{', '.join((*RAW_KEYS, *AVERAGED_KEYS))}"
        )
    kinds = [kind for kind, _ in entries.values()]
    if weights is not None and weights not in kinds:
        has, asked = ("raw", "averaged (EMA)") if weights == "ema" else ("averaged (EMA)", "raw")
        raise UserError(f"the checkpoint has no {asked} weights, only {has} ones under {', '.join(map(repr, entries))}")
    key = next(key for key, (kind, _) in entries.items() if weights in (None, kind))
    kind, state = entries[key]
    where = f"the {'averaged (EMA)' if kind == 'ema' else 'raw'} weights" + (f" under {key!r}" if key else "")
    if key == _MMENGINE_EMA_KEY:  # MMEngine stores the step count of the averaging with the weights
        state = {name: value for name, value in state.items() if name != "steps"}
    others = [repr(other) for other in entries if other != key]
    if others:
        where += f' (the file also has {", ".join(others)}: choose with weights="ema" or weights="raw")'
    return _without_module_prefix(state), where


def is_ema_copy(name: str) -> bool:
    """Return whether a name is of mmcv 1.x's EMA copy of a weight: ema_neck_conv_weight of neck.conv.weight.

    Its EMAHook swaps the two for saving, so the averaged weights have the plain names.
    """
    return re.fullmatch(r"ema_\w+", name) is not None


def _weight_entries(checkpoint: Mapping[str, Any]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Return each entry that holds weights, with its kind; the main entry comes first."""
    swapped = _is_state_dict(checkpoint.get(_MMENGINE_EMA_KEY))
    entries = {key: "ema" if swapped and key == "state_dict" else "raw" for key in RAW_KEYS}
    entries |= dict.fromkeys(AVERAGED_KEYS, "ema") | {_MMENGINE_EMA_KEY: "raw"}
    found = {key: (kind, checkpoint[key]) for key, kind in entries.items() if _is_state_dict(checkpoint.get(key))}
    if not found and _is_state_dict(checkpoint):
        found = {"": ("raw", checkpoint)}
    return found


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and any(_is_weight(*item) for item in value.items())


def _is_weight(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _without_module_prefix(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {re.sub(r"^(module\.)+", "", item[0]): item[1] for item in state.items() if _is_weight(*item)}
