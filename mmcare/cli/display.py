"""Whether pictures can be shown."""

from __future__ import annotations

import os
import sys


def has_display() -> bool:
    """Return whether there is a screen for windows."""
    return bool(sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
