"""The exception for user errors, and suggestions for a wrong name."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """An error in the user's input that the user can fix.

    The message is one sentence: what is wrong, where, and what to do. The command lines print it without a stack trace;
    library callers can catch it as a :class:`ValueError`.
    """


def closest(name: str, names: Iterable[str], otherwise: str) -> str:
    """Return the end of an error message about a wrong name: similar names, or ``otherwise`` if there are none."""
    alike = get_close_matches(name, names)
    return f"did you mean {' or '.join(alike)}?" if alike else otherwise
