"""The one exception for a user's mistake."""


class UserError(ValueError):
    """Something the user gave is wrong, and the user can mend it.

    The message is one sentence a person can act on: what was wrong, where, and what to do. The command lines print it
    without a stack trace; a library caller catches it as the :class:`ValueError` that it is.
    """
