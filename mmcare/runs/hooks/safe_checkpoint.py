"""Checkpoints of which a failed save costs none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from ...files import clear_leftovers
from ...registry import HOOKS


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, in another order: save, then note it in ``last_checkpoint``, then delete what must go.

    That each file is written whole is :func:`mmcare.checkpoints.guard_checkpoint_saving`'s part. The arguments are
    CheckpointHook's.
    """

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self.file_backend = _PatientBackend(self.file_backend, self.out_dir)
        if is_main_process():
            for folder in {runner.work_dir, self.out_dir}:
                for name in clear_leftovers(folder):
                    runner.logger.info(f"removed {name} from {folder}, left behind by a process that was killed")

    def after_train_iter(self, *args: Any, **kwargs: Any) -> None:
        with self._deleting_last():
            super().after_train_iter(*args, **kwargs)

    def after_train_epoch(self, runner: Runner) -> None:
        with self._deleting_last():
            super().after_train_epoch(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        with self._deleting_last():
            super().after_val_epoch(runner, metrics)

    @contextmanager
    def _deleting_last(self) -> Iterator[None]:
        """Delete what the hook wants to delete meanwhile after it has saved; nothing if it could not save."""
        yield
        best = getattr(self, "best_ckpt_path_dict", None) or {"": getattr(self, "best_ckpt_path", None)}
        if hasattr(self, "file_backend"):  # where there is a training, not a validation alone
            self.file_backend.delete(spared={self.last_ckpt, *best.values()})


class _PatientBackend:
    """A file backend that deletes a folder's files when it is asked once more, and none of another folder.

    A training that was resumed from another folder's checkpoint believes the best one there to be its own.
    """

    def __init__(self, backend: Any, folder: str) -> None:
        self._backend = backend
        self._folder = folder
        self._outdated: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def isfile(self, path: str) -> bool:
        return self._backend.isfile(self._own(path))

    def isdir(self, path: str) -> bool:
        return self._backend.isdir(self._own(path))

    def remove(self, path: str) -> None:
        self._outdated.append(self._own(path))

    rmtree = remove

    def delete(self, spared: set[str | None]) -> None:
        """Delete what was to be removed, save what has been saved under the same name meanwhile."""
        outdated, self._outdated = set(self._outdated) - spared, []
        for path in outdated:
            if self._backend.isfile(path):
                self._backend.remove(path)
            elif self._backend.isdir(path):  # as DeepSpeed saves them
                self._backend.rmtree(path)

    def _own(self, path: str) -> str:
        return self._backend.join_path(self._folder, os.path.basename(path))
