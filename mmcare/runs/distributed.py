"""Distributed runs: checks before the start, and a Runner for machines without a GPU."""

from __future__ import annotations

import os
import subprocess
from datetime import timedelta
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import Runner
from torch import nn

from ..errors import UserError
from .launchers import LAUNCHERS


def check_processes(launcher: str) -> None:
    """Check that this machine has enough GPUs for its processes, and that they can connect.

    Args:
        launcher: ``"pytorch"``, ``"slurm"`` or ``"mpi"``; the environment variable ``LOCAL_RANK`` must be set.

    Raises:
        UserError: the machine has GPUs, but fewer than processes, or the processes cannot connect.
    """
    if launcher == "mpi" and "MASTER_ADDR" not in os.environ:
        raise UserError(
            "--launcher mpi needs the address of the first machine in MASTER_ADDR: on a single machine, start with "
            "mpirun -x MASTER_ADDR=127.0.0.1"
        )
    device = get_device()
    if device == "mps":
        raise UserError(f"--launcher {launcher}: MMEngine has no distributed runs on Apple's GPUs, omit the option")
    # torchrun and mpirun give the number of processes on the machine, so the first process can check it; srun does not
    # give it as a plain number.
    own = int(os.environ["LOCAL_RANK"]) + 1
    count = max(own, *(int(os.environ.get(name, own)) for name in ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE")))
    if device == "cuda" and count > torch.cuda.device_count():
        raise UserError(
            f"{count} processes were started on this machine, but torch can use only {torch.cuda.device_count()} of "
            "its GPUs: start at most one process for each GPU"
        )


class CpuRunner(Runner):
    """A Runner for several processes on CPUs, connected by gloo; MMEngine's Runner requires GPUs for this."""

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Connect the processes, then set up the environment as MMEngine does; it does not connect them again."""
        if self.distributed and not is_distributed():
            connect_by_gloo(self.launcher, env_cfg.get("dist_cfg") or {})
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Wrap the model as MMEngine does, but without GPU numbers, and with plain batch norms instead of SyncBN."""
        self.logger.info(f"Without a GPU, the run's {self.world_size} processes run on the CPU, connected by gloo.")
        if self.cfg.get("sync_bn") or any(type(part).__name__ == "SyncBatchNorm" for part in model.modules()):
            self.logger.warning("SyncBN needs GPUs: each process's batch norms use only its own images.")
        unused = self.cfg.get("find_unused_parameters", False)
        wrapper = model_wrapper_cfg or dict(broadcast_buffers=False, find_unused_parameters=unused)
        return MODEL_WRAPPERS.build(
            {"type": "MMDistributedDataParallel", **wrapper}, default_args=dict(module=revert_sync_batchnorm(model))
        )


def connect_by_gloo(launcher: str, dist_cfg: dict[str, Any]) -> None:
    """Connect this process with the others of its run.

    As in MMEngine, torchrun sets all required environment variables, and the other launchers set variables with names
    of their own. ``MASTER_PORT`` is 29500 by default, and on Slurm ``MASTER_ADDR`` is the first machine by default.

    Args:
        launcher: the launcher of the process, one of :data:`~mmcare.runs.launchers.LAUNCHERS`.
        dist_cfg: the config's ``env_cfg.dist_cfg``. Settings for GPUs are ignored; ``timeout`` is in seconds.
    """
    variables = LAUNCHERS[launcher]
    settings = {key: value for key, value in dist_cfg.items() if key not in ("backend", "init_backend", "port")}
    if settings.get("timeout") is not None:
        settings["timeout"] = timedelta(seconds=settings["timeout"])
    if launcher == "slurm":
        if "port" in dist_cfg:
            os.environ["MASTER_PORT"] = str(dist_cfg["port"])
        if "MASTER_ADDR" not in os.environ:
            os.environ["MASTER_ADDR"] = _first_machine(os.environ["SLURM_NODELIST"])
    os.environ.setdefault("MASTER_PORT", "29500")
    os.environ["RANK"], os.environ["WORLD_SIZE"] = os.environ[variables.rank], os.environ[variables.world_size]
    torch.distributed.init_process_group("gloo", **settings)


def _first_machine(machines: str) -> str:
    """Return the first machine of a list in Slurm's notation, such as ``node[3-5,8]``."""
    done = subprocess.run(["scontrol", "show", "hostname", machines], capture_output=True, text=True, check=True)
    return done.stdout.split()[0]
