"""The launchers of distributed runs, and the environment variables with which they number the processes."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launcher:
    """A value of ``--launcher``."""

    program: str
    rank: str
    """The environment variable with the number of a process."""
    world_size: str
    """The variable with the number of processes."""
    local_rank: str
    """The variable with the number of a process on its machine."""


LAUNCHERS = {
    "pytorch": Launcher("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "slurm": Launcher("srun", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    "mpi": Launcher("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
}
"""The launchers by their name in MMEngine."""


def is_first_process() -> bool:
    """Return whether this is the first process of a distributed run, or the only one of another run."""
    return all(os.environ.get(launcher.rank, "0") == "0" for launcher in LAUNCHERS.values())
