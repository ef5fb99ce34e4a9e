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
