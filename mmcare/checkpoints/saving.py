"""Checkpoints that are saved whole or not at all.

MMEngine writes a checkpoint in place, after it has deleted the one that must go. A process that is killed meanwhile, or
a disk that is full, then leaves half a file under a checkpoint's name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.fileio import FileClient, LocalBackend, register_backend
from mmengine.hooks import CheckpointHook

from ..files import whole_file

if TYPE_CHECKING:
    from mmengine.config import Config


class _WholeFileBackend(LocalBackend):
    def put(self, obj: bytes, filepath: str | Path) -> None:
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(filepath) as file:
            file.write(obj)


def guard_checkpoint_saving(cfg: Config) -> None:
    """Make a training's checkpoints survive a kill and a full disk, whatever happens to the one being saved.

    For command lines, before they build a Runner. All that MMEngine writes to local disks in one piece, as it does
    checkpoints, is written by :func:`~mmcare.files.whole_file` from now on in this process, and the config's
    ``CheckpointHook`` becomes :class:`~mmcare.runs.hooks.SafeCheckpointHook`, which deletes nothing before it has
    saved.

    Args:
        cfg: the config, which is changed in place.
    """
    register_backend("local", _WholeFileBackend, force=True, prefixes="")
    FileClient.register_backend("disk", _WholeFileBackend, force=True)  # for configs with the older file_client_args
    cfg.default_hooks = {"checkpoint": dict(type="CheckpointHook"), **(cfg.get("default_hooks") or {})}
    for hook in [*cfg.default_hooks.values(), *(cfg.get("custom_hooks") or [])]:
        if hook and _is_mmengines(hook["type"]):
            hook["type"] = "mmcare.SafeCheckpointHook"


def _is_mmengines(hook_type: str | type) -> bool:
    """Return whether a type is MMEngine's CheckpointHook: by one of its names or, in a pure Python config, itself."""
    if isinstance(hook_type, str):
        return re.fullmatch(r"(mmengine\.(\w+\.)*)?CheckpointHook", hook_type) is not None
    return hook_type is CheckpointHook
