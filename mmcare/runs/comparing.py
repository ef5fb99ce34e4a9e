"""Models' configs as plain JSON, and whether two of them compute the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

_IN_TRAINING = {
    "assigner",
    "auxiliary_head",
    "drop_path_rate",
    "dropout_ratio",
    "frozen_stages",
    "init_cfg",
    "layer_scale_init_value",
    "norm_eval",
    "pretrained",
    "sampler",
    "train_cfg",
    "with_cp",
}
"""Settings that change nothing once a model is trained. Neither do those of losses."""
_MISSING = object()


def plain_config(value: Any) -> Any:
    """Return a part of a config as JSON has it: lists for tuples and sets, names for classes and odd numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain_config(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        value = sorted(value, key=repr)
    if isinstance(value, list | tuple):
        return [plain_config(item) for item in value]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return f"{value.__module__}.{value.__qualname__}" if isinstance(value, type) else str(value)


def config_difference(one: Any, other: Any, place: str = "model") -> tuple[str, Any, Any] | None:
    """Return the first difference of two trained models, as its dotted place and both values; None if there is none.

    Args:
        one, other: the models' configs, from :func:`plain_config`.
        place: the place of both.
    """
    return next(_differences(one, other, place), None)


def _differences(one: Any, other: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            if key not in _IN_TRAINING and not key.startswith("loss"):
                yield from _differences(one.get(key, _MISSING), other.get(key, _MISSING), f"{place}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from _differences(*pair, f"{place}.{number}")
    elif one != other:
        yield place, *(None if value is _MISSING else value for value in (one, other))
