"""What quantization returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class SlowerWarning(UserWarning):
    """A file with smaller numbers is not faster on this machine than the float32 one; it was written all the same."""


@dataclass(frozen=True)
class Quantized:
    """A file with smaller numbers.

    Attributes:
        content: as a target's ``convert`` returns it.
        record: what was done and measured, as plain JSON, for the certificate's ``quantization``; None for float32.
        warning: one sentence if the file is not faster than the float32 one, with both figures.
    """

    content: bytes | Mapping[str, bytes]
    record: Mapping[str, Any] | None
    warning: str | None = None
