"""The exception for user errors."""


class UserError(ValueError):
    """An error in the user's input that the user can fix.

    The message is one sentence: what is wrong, where, and what to do. The command lines print it without a stack trace;
    library callers can catch it as a :class:`ValueError`.
    """
