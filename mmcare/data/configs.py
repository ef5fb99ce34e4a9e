"""Finding one's way in a config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def innermost_datasets(dataset: Any) -> Iterator[Any]:
    """Yield the datasets that read files, inside ConcatDataset, RepeatDataset and other wrappers, in their order.

    Args:
        dataset: the ``dataset`` of a dataloader in a config: a dict, or a ConfigDict, whose dicts are then
            yielded as they stand in the config, to be read or changed. Without one nothing is.
    """
    if not isinstance(dataset, dict):
        return
    inner = [*dataset.get("datasets", []), *filter(None, [dataset.get("dataset")])]
    for wrapped in inner:
        yield from innermost_datasets(wrapped)
    if not inner:
        yield dataset


def is_pretrained(init: Any) -> bool:
    """Tell whether an entry of an ``init_cfg``, which is one dict or a list of them, loads pretrained weights."""
    return isinstance(init, dict) and type_name(init) in ("Pretrained", "PretrainedInit", "PretrainedBackbone")


def type_name(cfg: dict[str, Any]) -> str | None:
    """Return ``CARE`` for ``type="mmcare.CARE"`` and for ``type=CARE``, None where there is no type."""
    kind = cfg.get("type")
    return kind.rpartition(".")[2] if isinstance(kind, str) else getattr(kind, "__name__", None)
