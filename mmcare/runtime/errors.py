"""The exception for exported files that cannot be used."""


class FileError(ValueError):
    """An exported file, its certificate or a picture cannot be used.

    The message is one sentence: what is wrong, where, and what to do.
    """
