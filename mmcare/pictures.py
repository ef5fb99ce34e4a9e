"""Writing what matplotlib draws."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .errors import UserError


def write_picture(figure, path: Path) -> None:
    """Writes the picture whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            unfinished = Path(folder) / path.name
            figure.savefig(unfinished, dpi=120)
            os.replace(unfinished, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
