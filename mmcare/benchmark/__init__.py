"""Side-by-side measurement of the backbones in their forms and of common alternatives, in one run.

The command lines are ``mmcare benchmark`` and ``mmcare flops``. Names are imported on first use: the names of
forms and peers, and the tables of earlier runs, are available without torch.
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "ExportedSubject": "exported",
    "FORMS": "forms",
    "PEERS": "peers",
    "Row": "table",
    "STEPS": "forms",
    "build": "subjects",
    "check_form": "forms",
    "count": "counting",
    "default_forms": "forms",
    "draw": "plots",
    "kept_for_backward": "memory",
    "interleaved": "timing",
    "measure": "measuring",
    "padded_shape": "counting",
    "peak_memory": "memory",
    "plan": "cases",
    "processor": "measuring",
    "profiles": "profiling",
    "read_csv": "table",
    "resolve": "subjects",
    "text_table": "table",
    "timed_again": "timing",
    "write_csv": "table",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
