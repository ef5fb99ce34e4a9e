"""How a command line ends: in silence, with one sentence for a mistake, or with the stack trace of a bug."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from ..errors import UserError
from ..runs import LAUNCHERS

PATIENCE_SECONDS = 15
"""How long a process of a distributed run leaves it to the first one to tell what is wrong."""


def run(main: Callable[[], None]) -> None:
    """Run a tool. A user's mistake ends it with one sentence and exit status 2; a bug keeps its stack trace.

    In a distributed run the first process tells the mistake, for all. The others wait for their launcher to end them,
    which it does as soon as the first has ended; if they went before it, the launcher would end it before it could
    speak. One that still lives after that has a problem of its own, such as a file missing on its machine, and tells
    it. This way none of them tells of the connection that it loses when the first ends.
    """
    try:
        main()
        _disconnect()
    except Exception as error:
        if any(os.environ.get(launcher.rank, "0") != "0" for launcher in LAUNCHERS.values()):
            time.sleep(PATIENCE_SECONDS)
        if not isinstance(error, UserError):
            raise
        print(f"error: {_sentence(error)}", file=sys.stderr)
        sys.exit(2)


def _disconnect() -> None:
    """Close the connections that MMEngine leaves open: gloo's threads may abort a process at its end."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _sentence(error: UserError) -> str:
    """Return what an error says. From a dataloader's worker it comes at the end of the worker's stack trace."""
    kind = type(error)
    return str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2].rstrip()
