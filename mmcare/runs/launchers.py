"""The launchers of distributed runs, and the environment variables with which they number the processes."""

from __future__ import annotations

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
