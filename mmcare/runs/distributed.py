"""Runs of several processes: what stops them from starting, and the Runner for machines without a GPU."""

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
    """Make sure that this machine has what the processes started on it need.

    Args:
        launcher: what started them, ``"pytorch"``, ``"slurm"`` or ``"mpi"``, with their rank on this machine in the
            environment as ``LOCAL_RANK``.

    Raises:
        UserError: one of them would be without a GPU though there are some, or they cannot find each other.
    """
    if launcher == "mpi" and "MASTER_ADDR" not in os.environ:
        raise UserError(
            "--launcher mpi needs the first machine's address in MASTER_ADDR: give mpirun -x MASTER_ADDR=127.0.0.1 "
            "where there is only one"
        )
    device = get_device()
    if device == "mps":
        raise UserError(f"--launcher {launcher}: MMEngine cannot distribute a run over Apple's GPUs, leave it out")
    # torchrun and mpirun say how many there are, so that the first of them can tell; srun does not in plain numbers.
    own = int(os.environ["LOCAL_RANK"]) + 1
    count = max(own, *(int(os.environ.get(name, own)) for name in ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE")))
    if device == "cuda" and count > torch.cuda.device_count():
        raise UserError(
            f"{count} processes were started on this machine, where torch can use {torch.cuda.device_count()} of its "
            "GPUs: start one process for each GPU at most"
        )


class CpuRunner(Runner):
    """MMEngine's Runner for several processes on CPUs, which gloo connects: MMEngine's own takes GPUs for granted."""

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Connect the processes, which MMEngine leaves as they are if they are connected, then do as MMEngine does."""
        if self.distributed and not is_distributed():
            connect_by_gloo(self.launcher, env_cfg.get("dist_cfg") or {})
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Wrap the model as MMEngine does, but for two things: no GPU's number, and no batch norm that needs one."""
        self.logger.info(f"No GPU that torch can use: {self.world_size} processes, connected by gloo, run on the CPU.")
        if self.cfg.get("sync_bn") or any(type(part).__name__ == "SyncBatchNorm" for part in model.modules()):
            self.logger.warning("SyncBN needs GPUs: batch norms see the images of their own process only.")
        unused = self.cfg.get("find_unused_parameters", False)
        wrapper = model_wrapper_cfg or dict(broadcast_buffers=False, find_unused_parameters=unused)
        return MODEL_WRAPPERS.build(
            {"type": "MMDistributedDataParallel", **wrapper}, default_args=dict(module=revert_sync_batchnorm(model))
        )


def connect_by_gloo(launcher: str, dist_cfg: dict[str, Any]) -> None:
    """Connect this process with the others of its run.

    As with MMEngine, torchrun sets all the variables that this takes, and the other launchers tell them under names of
    their own. ``MASTER_PORT`` is 29500 where nobody sets it, and on Slurm ``MASTER_ADDR`` is the first machine.

    Args:
        launcher: what started the process, one of :data:`~mmcare.runs.launchers.LAUNCHERS`.
        dist_cfg: the config's ``env_cfg.dist_cfg``. What chooses among the ways to connect GPUs has no meaning here;
            ``timeout`` is in seconds.
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
    """Return the first of the machines in Slurm's short form of a list, such as ``node[3-5,8]``."""
    done = subprocess.run(["scontrol", "show", "hostname", machines], capture_output=True, text=True, check=True)
    return done.stdout.split()[0]
