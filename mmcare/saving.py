"""Files that are there as a whole or not at all, and checkpoints saved as such.

MMEngine writes a checkpoint in place, after it has deleted the one that must go. A process that is killed meanwhile, or
a disk that is full, then leaves half a file under a checkpoint's name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from mmengine.fileio import FileClient, LocalBackend, register_backend
from mmengine.hooks import CheckpointHook

if TYPE_CHECKING:
    from mmengine.config import Config


@contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Opens a file to write that gets its name, in place of an older one, once all of it is on the disk.

    Raises:
        OSError: it could not be written; ``filename`` is the path, and what was there is still there.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def clear_leftovers(folder: str | Path) -> list[str]:
    """Removes what :func:`whole_file` leaves in a folder when its process is killed, and returns the files' names."""
    leftovers = [path for path in Path(folder).glob(".*.partial") if re.fullmatch(r"\..+\.\d+\.partial", path.name)]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return [path.name for path in leftovers]


class _WholeFileBackend(LocalBackend):
    def put(self, obj: bytes, filepath: str | Path) -> None:
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(filepath) as file:
            file.write(obj)


def guard_checkpoint_saving(cfg: Config) -> None:
    """Makes a training's checkpoints survive a kill and a full disk, whatever happens to the one being saved.

    For command lines, before they build a Runner. All that MMEngine writes to local disks in one piece, as it does
    checkpoints, is written by :func:`whole_file` from now on in this process, and the config's ``CheckpointHook``
    becomes :class:`~mmcare.hooks.SafeCheckpointHook`, which deletes nothing before it has saved.
    """
    register_backend("local", _WholeFileBackend, force=True, prefixes="")
    FileClient.register_backend("disk", _WholeFileBackend, force=True)  # for configs with the older file_client_args
    cfg.default_hooks = {"checkpoint": dict(type="CheckpointHook"), **(cfg.get("default_hooks") or {})}
    for hook in [*cfg.default_hooks.values(), *(cfg.get("custom_hooks") or [])]:
        if hook and _is_mmengines(hook["type"]):
            hook["type"] = "mmcare.SafeCheckpointHook"


def _is_mmengines(hook_type: str | type) -> bool:
    """Whether a type is MMEngine's CheckpointHook, by any of its names or, in a pure Python config, as the class."""
    if isinstance(hook_type, str):
        return re.fullmatch(r"(mmengine\.(\w+\.)*)?CheckpointHook", hook_type) is not None
    return hook_type is CheckpointHook
