"""torchrun for the tools: ``python -m mmcare.cli.launch --nproc-per-node=2 -m mmcare train CONFIG --launcher pytorch``.

The options are torchrun's, and the environment variables MMDetection's. If a process ends with a user error, torchrun
would add a report and a stack trace; here the error message stays the last line.
"""

from __future__ import annotations

import logging
import os
import sys

from ..errors import UserError
from ..stack import check_stack
from .running import run


def main() -> None:
    """Run torchrun with the arguments of the command line."""
    try:
        from torch.distributed import DistNetworkError
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.run import main as torchrun
    except ImportError:
        check_stack()
        raise
    # It would log the failed process and its status, and then raise an error with the same content.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # torchrun and MMEngine do the same, with a long message
        os.environ.setdefault(name, "1")
    try:
        torchrun([*_rendezvous(), *sys.argv[1:]])
    except ChildFailedError as error:
        reported = any(failure.exitcode == 2 for failure in error.failures.values())  # see mmcare.cli.run
        sys.exit(2 if reported else str(error))
    except DistNetworkError as error:
        raise UserError(f"the processes cannot connect, check MASTER_ADDR and PORT: {error}") from error


def _rendezvous() -> list[str]:
    """Return torchrun's options for connecting the machines, from NNODES, NODE_RANK, MASTER_ADDR and PORT."""
    defaults = {"NNODES": 1, "NODE_RANK": 0, "PORT": 29500}
    numbers = {name: os.environ.get(name, str(default)) for name, default in defaults.items()}
    for name, number in numbers.items():
        if not number.isdecimal():
            raise UserError(f"{name}={number} is not valid: give a whole number")
    if int(numbers["NNODES"]) == 1 and "PORT" not in os.environ:
        return ["--standalone"]  # on a free port
    return [
        f"--nnodes={numbers['NNODES']}",
        f"--node-rank={numbers['NODE_RANK']}",
        f"--master-addr={os.environ.get('MASTER_ADDR', '127.0.0.1')}",
        f"--master-port={numbers['PORT']}",
    ]


if __name__ == "__main__":
    run(main)
