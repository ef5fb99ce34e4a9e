"""ExecuTorch: a program of the size that its header says, and the segments behind it."""

from __future__ import annotations

import struct
from collections.abc import Callable

from . import Contents


def read(content: Callable[[str], memoryview | None], main: str) -> Contents:
    """Check the header of an ExecuTorch file; what it holds is for its runtime to read."""
    file = content(main)
    if len(file) < 40 or bytes(file[4:6]) != b"ET" or bytes(file[8:12]) != b"eh00":
        raise ValueError("is no ExecuTorch file or is damaged")
    (root,) = struct.unpack_from("<I", file, 0)
    length, program, segments = struct.unpack_from("<IQQ", file, 12)
    (behind,) = struct.unpack_from("<Q", file, 32) if length >= 32 else (0,)
    if not (root < program <= len(file) and (segments == 0 or program <= segments) and segments + behind <= len(file)):
        raise ValueError("is damaged, as it is shorter than its header says")
    return Contents(None, None, None)
