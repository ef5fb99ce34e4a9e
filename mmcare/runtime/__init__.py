"""Exported files on a device: reading and checking them, running them on pictures, and verifying their certificates.

It needs numpy, Pillow and the runtime of the file's format, and is also installed by itself, as ``mmcare_runtime``. So
its modules import each other relatively, and nothing else of mmcare. Names are imported on first use.
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Certificate": "certificate",
    "Check": "verifying",
    "DETECTIONS": "probe",
    "ENDINGS": "sessions",
    "ExportedFile": "opening",
    "FileError": "errors",
    "Input": "certificate",
    "Latency": "certificate",
    "Measured": "certificate",
    "Metric": "certificate",
    "Model": "model",
    "NOT_RUN": "certificate",
    "Normalization": "certificate",
    "Output": "certificate",
    "OutputError": "certificate",
    "Resizing": "certificate",
    "Result": "model",
    "attach_certificate": "attaching",
    "check_files": "checks",
    "compare_probe": "probe",
    "draw_mask": "resizing",
    "draw_probe": "probe",
    "load_executorch": "executorch",
    "open_file": "opening",
    "openvino_core": "openvino",
    "record_probe": "probe",
    "read_certificate": "certificate",
    "require": "verifying",
    "resize_labels": "resizing",
    "show": "verifying",
    "silent_stderr": "native",
    "verify": "verifying",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
