"""Atomic saving of checkpoints.

MMEngine first deletes the outdated checkpoint and then writes the new one in place. If the process is killed or the
disk is full meanwhile, an incomplete file remains under the name of a checkpoint.
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
    """Protect a training's checkpoints from a killed process and a full disk.

    For command lines, before they build a Runner. From now on in this process MMEngine writes checkpoints, and
    everything else that it writes to local disks in one piece, with :func:`~mmcare.files.whole_file`. The config's
    ``CheckpointHook`` becomes :class:`~mmcare.runs.hooks.SafeCheckpointHook`, which deletes outdated checkpoints only
    after the new one is saved.

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
    """Return whether a type is MMEngine's CheckpointHook, given by name or, in a pure Python config, as the class."""
    if isinstance(hook_type, str):
        return re.fullmatch(r"(mmengine\.(\w+\.)*)?CheckpointHook", hook_type) is not None
    return hook_type is CheckpointHook
