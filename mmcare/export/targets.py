"""The targets of an export: which module writes each, what it needs, and what it takes."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from ..errors import UserError, closest

PARTS = ("model", "network", "backbone")
"""What of a model is exported: all of it, all up to the maps of its heads, or the backbone alone."""


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        module: dotted path of the module whose ``convert(prepared, opset)`` returns the content of a file.
        ending: of the names of its files.
        extra: mmcare's extra that installs what it needs.
        needs: the packages that are imported to write a file.
        opsets: the lowest and the highest version of ONNX's operators; None if it has no versions.
        opset: the version by default.
        form: the form of a backbone that the runtime computes fastest, one of :data:`mmcare.export.forms.FORMS`.
        detection_operators: whether its files have non-maximum suppression and RoI align as operators; if not, a
            detector has them in plain tensor operations.
    """

    module: str
    ending: str
    extra: str
    needs: tuple[str, ...]
    opsets: tuple[int, int] | None
    opset: int | None
    form: str
    detection_operators: bool = True

    def load(self) -> ModuleType:
        """Import the module of the target."""
        return import_module(self.module)


TARGETS = {
    "onnx": Target(
        "mmcare.export.onnx", ".onnx", "onnx", ("onnx", "onnxscript"), opsets=(18, 21), opset=20, form="plain"
    ),
}
"""The targets by name. ``form`` was measured: see docs/export.md."""


def check_options(name: str, part: str, opset: int | None) -> Target:
    """Return a target if its packages are installed and it takes the options; nothing is imported.

    Raises:
        UserError: there is no such target or part, a package is missing, or the target has no such opset.
    """
    if name not in TARGETS:
        raise UserError(f"there is no format {name!r}: {closest(name, TARGETS, f'give one of {_list(TARGETS)}')}")
    if part not in PARTS:
        raise UserError(f"there is no part {part!r}: {closest(part, PARTS, f'give one of {_list(PARTS)}')}")
    target = TARGETS[name]
    missing = [package for package in target.needs if find_spec(package) is None]
    if missing:
        raise UserError(
            f"exporting to {name} needs {' and '.join(missing)}: install what it needs with "
            f'`pip install "mmcare[{target.extra}]"`'
        )
    if opset is not None and not target.opsets:
        raise UserError(f"{name} has no opsets: omit --opset")
    if opset is not None and not target.opsets[0] <= opset <= target.opsets[1]:
        raise UserError(f"{name} files have an opset from {target.opsets[0]} to {target.opsets[1]}, not {opset}")
    return target


def _list(names: object) -> str:
    return ", ".join(names)
