"""The programs that start the processes of a distributed run, and the variables by which a process knows its place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Launcher:
    """A value of ``--launcher``."""

    program: str
    rank: str
    """The environment variable with the number of a process."""
    world_size: str
    """The one with how many processes there are."""
    local_rank: str
    """The one with the number of a process on its machine."""


LAUNCHERS = {
    "pytorch": Launcher("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "slurm": Launcher("srun", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    "mpi": Launcher("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
}
"""The launchers by the name that MMEngine has for them."""
