"""JSON as a dataclass describes it, and nothing else.

A dataclass's fields are the keys of an object; those with a default may be missing. The types are ``str``, ``bool``,
``int``, ``float`` (finite), ``Any``, ``Literal``, ``X | None``, ``tuple[X, ...]``, ``tuple[X, Y]``, ``dict[str, X]``
and dataclasses.
"""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, asdict, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_NAMES = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}


def parse(text: str, largest: int) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is longer than ``largest`` characters, or not strict JSON: a key stands twice, or a number is
            not finite.
    """
    if len(text) > largest:
        raise ValueError(f"it has {len(text):,} characters, more than {largest:,}")
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def canonical(value: Any) -> bytes:
    """Return the one text that a value has, for hashing.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def plain(value: Any) -> dict[str, Any]:
    """Return the JSON object of a dataclass."""
    return asdict(value)


def build(kind: type[T], value: Any, place: str = "") -> T:
    """Return a value as its type says.

    Args:
        kind: a dataclass, or one of the types of its fields.
        value: as :func:`parse` returns it.
        place: the value's dotted place in messages.

    Raises:
        ValueError: it does not have the type.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _build_object(kind, value, place)
    if origin in (Union, UnionType):
        (other,) = (option for option in inner if option is not NoneType)
        return None if value is None else build(other, value, place)
    if origin is Literal:
        if value not in inner or type(value) is not type(inner[0]):
            raise _fault(place, value, " or ".join(map(repr, inner)))
        return value
    if origin is dict:
        if not isinstance(value, dict):
            raise _fault(place, value, "an object")
        return {key: build(inner[1], item, f"{place}.{key}") for key, item in value.items()}
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _fault(place, value, "a list")
        kinds = (inner[0],) * len(value) if inner[1:] == (...,) else inner
        if len(value) != len(kinds):
            raise _fault(place, value, f"a list of {len(kinds)}")
        return tuple(
            build(item_kind, item, f"{place}[{number}]")
            for number, (item_kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise _fault(place, value, _NAMES[kind])
    return value


def _build_object(kind: type[T], value: Any, place: str) -> T:
    if not isinstance(value, dict):
        raise _fault(place, value, "an object")
    inside = f"{place}." if place else ""
    known = {field.name: field for field in fields(kind)}
    for key in value:
        if key not in known:
            raise ValueError(f"it has {inside}{key}, which is unknown")
    for key, field in known.items():
        if key not in value and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"it has no {inside}{key}")
    kinds = get_type_hints(kind)
    return kind(**{key: build(kinds[key], item, f"{inside}{key}") for key, item in value.items()})


def _fault(place: str, value: Any, expected: str) -> ValueError:
    shown = json.dumps(value, default=repr)
    shown = shown if len(shown) <= 40 else f"{shown[:40]}…"
    return ValueError(f"{place or 'it'} is {shown}, not {expected}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it has the number {text}, which is not finite")
    return number
