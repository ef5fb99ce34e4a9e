"""From a config to MMEngine's Runner.

MMEngine is imported inside the functions, so that a command line can answer ``--help`` without it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.runner import Runner


def check_checkpoint(path: str) -> None:
    """Raise UserError for a checkpoint file that does not exist; a URL is left to whoever downloads it."""
    if "://" not in path and not Path(path).expanduser().is_file():
        raise UserError(f"there is no checkpoint {path}: check the path (relative ones start at {os.getcwd()})")


def build_runner(cfg: Config, require_all: bool) -> Runner:
    """Build a Runner that reads checkpoints safely, refuses those that do not fit, and names files it cannot use.

    Args:
        cfg: the config, complete, with ``work_dir`` and ``launcher``.
        require_all: whether a checkpoint must hold every weight of the model, as for testing and resuming.

    Raises:
        UserError: the run cannot be distributed here, the work folder cannot be made, or the model cannot be built as
            the config says.
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
            f"--launcher {cfg.launcher} needs GPUs for a config with a runner_type of its own, {cfg.runner_type}, and "
            "this machine has none that torch can use"
        )
    try:
        os.makedirs(cfg.work_dir, exist_ok=True)
    except OSError as error:
        raise UserError(f"the work folder {cfg.work_dir} cannot be made: {error.strerror}") from error
    make_loading_safe()
    fit = dict(type="mmcare.CheckpointFitHook", require_all=require_all)
    # A config that an earlier run wrote to its work folder has that run's hook already.
    others = [hook for hook in cfg.get("custom_hooks") or [] if hook["type"] != fit["type"]]
    cfg.custom_hooks = [*others, fit]
    kind = CpuRunner if on_cpus else Runner
    return name_bad_data(RUNNERS.build(cfg) if "runner_type" in cfg else kind.from_cfg(cfg))
