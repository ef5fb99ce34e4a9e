"""The networks in each of their forms beside what one would pick instead, measured in one run.

``tools/benchmark.py`` and ``tools/get_flops.py`` are its command lines. Names are imported when they are first used:
the names of forms and peers, and earlier runs' tables, are to be had without torch.
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
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
    "measure": "measuring",
    "padded_shape": "counting",
    "peak_memory": "memory",
    "plan": "cases",
    "profiles": "profiling",
    "read_csv": "table",
    "resolve": "subjects",
    "text_table": "table",
    "write_csv": "table",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
