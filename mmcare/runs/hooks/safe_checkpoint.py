"""Checkpoints of which a failed save costs none."""

from __future__ import annotations

import os
from collections import deque
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from ...registry import HOOKS
from ...files import clear_leftovers, whole_file


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, in another order: save, then note it in ``last_checkpoint``, then delete what must go.

    The saving itself is safe with :func:`mmcare.checkpoints.saving.guard_checkpoint_saving`. The arguments are CheckpointHook's.
    """

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if is_main_process():
            for folder in {runner.work_dir, self.out_dir}:
                for name in clear_leftovers(folder):
                    runner.logger.info(f"removed {name} from {folder}, left behind by a process that was killed")

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        outdated = []
        if self.max_keep_ckpts > 0:
            steps = [*(other for other in self.keep_ckpt_ids if other != step), step]
            outdated, kept = steps[: -self.max_keep_ckpts], steps[-self.max_keep_ckpts :]
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
            runner.message_hub.update_info("keep_ckpt_ids", kept)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if not is_main_process():
            return
        with whole_file(os.path.join(runner.work_dir, "last_checkpoint")) as file:
            file.write(self.last_ckpt.encode())
        for old in outdated:
            self._delete(self.filename_tmpl.format(old))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        if not self.save_best:
            return
        # MMEngine deletes the previous best one before it saves: until then it is to know of none.
        if len(self.key_indicators) == 1:
            previous, self.best_ckpt_path = self.best_ckpt_path, None
            super()._save_best_checkpoint(runner, metrics)
            self.best_ckpt_path = self._delete_previous(runner, previous, self.best_ckpt_path)
        else:
            all_previous, self.best_ckpt_path_dict = self.best_ckpt_path_dict, dict.fromkeys(self.best_ckpt_path_dict)
            super()._save_best_checkpoint(runner, metrics)
            for metric, previous in all_previous.items():
                best = self._delete_previous(runner, previous, self.best_ckpt_path_dict[metric])
                self.best_ckpt_path_dict[metric] = best

    def _delete_previous(self, runner: Runner, previous: str | None, saved: str | None) -> str | None:
        """Deletes the previous best checkpoint if another one was saved, and returns which one is the best now."""
        if previous and saved and os.path.basename(previous) != os.path.basename(saved) and is_main_process():
            self._delete(os.path.basename(previous))
            runner.logger.info(f"The previous best checkpoint {previous} is removed")
        return saved or previous

    def _delete(self, name: str) -> None:
        """Deletes a checkpoint in this training's folder; one that it resumed from elsewhere is not its own."""
        path = self.file_backend.join_path(self.out_dir, name)
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # as DeepSpeed saves them
            self.file_backend.rmtree(path)
