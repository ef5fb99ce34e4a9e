"""Helpers for finding parts of a config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def innermost_datasets(dataset: Any) -> Iterator[Any]:
    """Yield the datasets that read files, inside ConcatDataset, RepeatDataset and other wrappers, in order.

    Args:
        dataset: the ``dataset`` of a dataloader in a config, a dict or a ConfigDict. The dicts inside a ConfigDict are
            yielded themselves, so they can be changed. For anything else nothing is yielded.
    """
    if not isinstance(dataset, dict):
        return
    inner = [*dataset.get("datasets", []), *filter(None, [dataset.get("dataset")])]
    for wrapped in inner:
        yield from innermost_datasets(wrapped)
    if not inner:
        yield dataset


def is_pretrained(init: Any) -> bool:
    """Return whether an entry of an ``init_cfg`` (the dict, or one of a list) loads pretrained weights."""
    return isinstance(init, dict) and type_name(init) in ("Pretrained", "PretrainedInit", "PretrainedBackbone")


def type_name(cfg: dict[str, Any]) -> str | None:
    """Return ``CARE`` for ``type="mmcare.CARE"`` and for ``type=CARE``; None if there is no type."""
    kind = cfg.get("type")
    return kind.rpartition(".")[2] if isinstance(kind, str) else getattr(kind, "__name__", None)


def dicts_in(node: Any) -> Iterator[Any]:
    """Yield all dicts in a part of a config, at any depth, the outer ones first."""
    if isinstance(node, dict):
        yield node
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    for child in list(children):
        yield from dicts_in(child)


def remove_pretrained(model: Any) -> None:
    """Remove, in place, the pretrained weights of all parts of a model's config."""
    for part in dicts_in(model):
        inits = part.get("init_cfg")
        if is_pretrained(inits):
            part["init_cfg"] = None
        elif isinstance(inits, (list, tuple)):
            part["init_cfg"] = [init for init in inits if not is_pretrained(init)]
    model.pop("pretrained", None)
