"""Running of command lines: a user error ends them with one sentence, a bug with a stack trace."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable

from ..errors import UserError
from ..runs import is_first_process

PATIENCE_SECONDS = 15
"""Time for which the processes of a distributed run wait for the first one to report an error."""


def run(main: Callable[[], None]) -> None:
    """Run a tool. A user error ends it with one sentence and exit status 2; a bug keeps its stack trace.

    In a distributed run the first process reports the error for all. The others wait until the launcher ends them,
    which it does when the first process ends; if they ended earlier, the launcher would end the first process before it
    can report. A process that is still alive after waiting has its own error, such as a file that is missing on its
    machine, and reports it. This way no process reports the lost connection to the first one.
    """
    try:
        main()
        _disconnect()
    except Exception as error:
        if not is_first_process():
            time.sleep(PATIENCE_SECONDS)
        if not isinstance(error, UserError):
            raise
        print(f"error: {_sentence(error)}", file=sys.stderr)
        sys.exit(2)


def _disconnect() -> None:
    """Close the connections that MMEngine leaves open, as gloo's threads may abort a process at exit.

    They end with the last reference to the group, and the wrapped model, which has one, is in reference cycles.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        gc.collect()


def _sentence(error: UserError) -> str:
    """Return an error's message. In an error from a dataloader's worker it follows the worker's stack trace."""
    kind = type(error)
    return str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2].rstrip()
