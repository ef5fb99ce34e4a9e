"""A checkpoint hook that deletes old checkpoints only after a new one is saved."""

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
    """MMEngine's CheckpointHook in a safe order: save, update ``last_checkpoint``, then delete outdated checkpoints.

    :func:`mmcare.checkpoints.guard_checkpoint_saving` makes each file's writing atomic. The arguments are those of
    CheckpointHook.
    """

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self.file_backend = _PostponingBackend(self.file_backend, self.out_dir)
        if is_main_process():
            for folder in {runner.work_dir, self.out_dir}:
                for name in clear_leftovers(folder):
                    runner.logger.info(f"removed {name} from {folder}, left by a killed process")

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
        """Postpone the hook's deletions until it has saved; delete nothing if saving fails."""
        yield
        best = getattr(self, "best_ckpt_path_dict", None) or {"": getattr(self, "best_ckpt_path", None)}
        if hasattr(self, "file_backend"):  # in training; not in validation alone
            self.file_backend.delete(spared={self.last_ckpt, *best.values()})


class _PostponingBackend:
    """A file backend that postpones deletions, and deletes files in one folder only.

    Otherwise a training that was resumed from another folder's checkpoint would delete the best checkpoint there.
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
        """Run the postponed deletions, except for ``spared`` files, which were saved again under the same name."""
        outdated, self._outdated = set(self._outdated) - spared, []
        for path in outdated:
            if self._backend.isfile(path):
                self._backend.remove(path)
            elif self._backend.isdir(path):  # DeepSpeed saves checkpoints as folders
                self._backend.rmtree(path)

    def _own(self, path: str) -> str:
        return self._backend.join_path(self._folder, os.path.basename(path))
