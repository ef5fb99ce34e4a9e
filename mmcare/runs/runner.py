"""Building of MMEngine's Runner from a config.

MMEngine is imported inside the functions, so that ``--help`` works without it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.runner import Runner
    from torch.utils.data import Dataset


def check_checkpoint(path: str) -> None:
    """Raise UserError if a checkpoint file does not exist; URLs are not checked."""
    if "://" not in path and not Path(path).expanduser().is_file():
        raise UserError(f"there is no checkpoint {path}: check the path (relative ones start at {os.getcwd()})")


def build_dataset(cfg: Config) -> Dataset:
    """Build a config's training data set, which names the file if its data cannot be used, as in a training.

    Raises:
        UserError: the annotations cannot be read, or there are no images.
    """
    from .bad_data import build_guarded

    return build_guarded(cfg.train_dataloader.dataset, cfg.default_scope)


def build_runner(cfg: Config, require_all: bool) -> Runner:
    """Build a Runner that reads checkpoints safely, refuses misfits, and names data files that it cannot use.

    Args:
        cfg: the complete config, with ``work_dir`` and ``launcher``.
        require_all: whether a checkpoint must have every weight of the model, as for testing and resuming; otherwise
            its class layers may be for other classes, as for starting a training.

    Raises:
        UserError: the run cannot be distributed on this machine, the work folder cannot be created, or the config has a
            fault.
    """
    from mmengine.device import get_device
    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner

    from ..checkpoints import make_loading_safe
    from .bad_data import name_bad_data
    from .distributed import CpuRunner, check_processes

    on_cpus = cfg.launcher != "none" and get_device() == "cpu"
    if cfg.launcher != "none":
        check_processes(cfg.launcher)
    if on_cpus and "runner_type" in cfg:
        raise UserError(
            f"--launcher {cfg.launcher} needs GPUs for a config with its own runner_type, {cfg.runner_type}, and torch "
            "finds none on this machine"
        )
    try:
        os.makedirs(cfg.work_dir, exist_ok=True)
    except OSError as error:
        raise UserError(f"the work folder {cfg.work_dir} cannot be created: {error.strerror}") from error
    make_loading_safe()
    fit = dict(type="mmcare.CheckpointFitHook", require_all=require_all)
    # A config that an earlier run wrote to its work folder already has that run's hook.
    others = [hook for hook in cfg.get("custom_hooks") or [] if hook["type"] != fit["type"]]
    cfg.custom_hooks = [*others, fit]
    kind = CpuRunner if on_cpus else Runner
    return name_bad_data(RUNNERS.build(cfg) if "runner_type" in cfg else kind.from_cfg(cfg))
