"""The targets of an export: which module writes each, what it needs, and what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from ..errors import UserError, closest

PARTS = ("model", "network", "backbone")
"""What of a model is exported: all of it, all up to the maps of its heads, or the backbone alone."""


@dataclass(frozen=True)
class Quantizer:
    """A way to smaller numbers.

    Attributes:
        module: dotted path of the module whose ``quantize(prepared, opset, pictures, metric)`` takes the place of
            the target's ``convert``, see :mod:`mmcare.export.quantization`.
        calibrated: whether it takes ranges from calibration pictures.
        needs: the packages that it imports besides the target's.
    """

    module: str
    calibrated: bool
    needs: tuple[str, ...] = ()

    def load(self) -> ModuleType:
        """Import the module of the quantizer."""
        return import_module(self.module)


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
        dynamic: whether its files can take any number and size of images.
        beside: the endings of further files of the same name, which belong to a file.
        folder: whether it is a folder, whose files ``convert`` returns by their names inside of it.
        quantizers: the kinds of smaller numbers, by what ``--quantize`` calls them.
    """

    module: str
    ending: str
    extra: str
    needs: tuple[str, ...]
    opsets: tuple[int, int] | None
    opset: int | None
    form: str
    detection_operators: bool = True
    dynamic: bool = True
    beside: tuple[str, ...] = ()
    folder: bool = False
    quantizers: Mapping[str, Quantizer] = field(default_factory=dict)

    def load(self) -> ModuleType:
        """Import the module of the target."""
        return import_module(self.module)


TARGETS = {
    "onnx": Target(
        "mmcare.export.onnx",
        ".onnx",
        "onnx",
        ("onnx", "onnxscript"),
        opsets=(18, 21),
        opset=20,
        form="folded-apart",
        quantizers={
            "fp16": Quantizer("mmcare.export.quantization.half", calibrated=False),
            "int8": Quantizer("mmcare.export.quantization.onnx_int8", calibrated=True, needs=("onnxruntime",)),
        },
    ),
    "openvino": Target(
        "mmcare.export.openvino",
        ".xml",
        "openvino",
        ("onnx", "onnxscript", "openvino"),
        opsets=None,
        opset=None,
        form="fast-whole",
        beside=(".bin",),
        quantizers={
            "fp16": Quantizer("mmcare.export.quantization.openvino_half", calibrated=False),
            "int8": Quantizer("mmcare.export.quantization.openvino_int8", calibrated=True, needs=("nncf",)),
        },
    ),
    "executorch": Target(
        "mmcare.export.executorch",
        ".pte",
        "executorch",
        ("executorch",),
        opsets=None,
        opset=None,
        form="folded-apart",
        detection_operators=False,
        dynamic=False,
        quantizers={
            "int8": Quantizer("mmcare.export.quantization.executorch_int8", calibrated=True, needs=("torchao",)),
        },
    ),
    "litert": Target(
        "mmcare.export.litert",
        ".tflite",
        "litert",
        ("litert_torch",),
        opsets=None,
        opset=None,
        form="folded-apart",
        detection_operators=False,
        dynamic=False,
    ),
    "coreml": Target(
        "mmcare.export.coreml",
        ".mlpackage",
        "coreml",
        ("coremltools",),
        opsets=None,
        opset=None,
        form="plain",
        folder=True,
        detection_operators=False,
        dynamic=False,
    ),
}
"""The targets by name. ``form`` was measured: see docs/export.md."""

PAGE = "web"
"""What ``--format`` calls a page around an ONNX file, which :func:`mmcare.export.export_page` writes."""


def is_exported(path: str) -> bool:
    """Return whether a path has the ending of a target's files."""
    return path.lower().endswith(tuple(target.ending for target in TARGETS.values()))


def check_options(
    name: str, part: str, opset: int | None, quantize: str | None = None, calibration: object = None
) -> Target:
    """Return a target if its packages are installed and it takes the options; nothing is imported.

    Raises:
        UserError: there is no such target or part, a package is missing, the target has no such opset or smaller
            numbers, or calibration pictures are missing.
    """
    if name not in TARGETS:
        names = (*TARGETS, PAGE)
        raise UserError(f"there is no format {name!r}: {closest(name, names, f'give one of {_list(names)}')}")
    if part not in PARTS:
        raise UserError(f"there is no part {part!r}: {closest(part, PARTS, f'give one of {_list(PARTS)}')}")
    target = TARGETS[name]
    quantizer = _check_quantization(name, quantize, calibration)
    needs = (*target.needs, *(quantizer.needs if quantizer else ()))
    missing = [package for package in needs if find_spec(package) is None]
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


def _check_quantization(name: str, quantize: str | None, calibration: object) -> Quantizer | None:
    quantizers = TARGETS[name].quantizers
    if quantize is None:
        if calibration is not None:
            raise UserError("--calibration has pictures for --quantize int8: add that, or omit them")
        return None
    if quantize not in quantizers:
        if quantizers:
            advice = closest(quantize, quantizers, f"give one of {_list(quantizers)}")
            raise UserError(f"there are no {name} files with {quantize!r}: {advice}")
        raise UserError(f"{name} files have float32 numbers only: omit --quantize")
    quantizer = quantizers[quantize]
    if quantizer.calibrated and calibration is None:
        raise UserError(
            f"{quantize} needs pictures like those to be predicted, to take the ranges of numbers from: add "
            "--calibration with a folder of them"
        )
    if not quantizer.calibrated and calibration is not None:
        raise UserError(f"{quantize} takes no ranges from pictures: omit --calibration")
    return quantizer


def _list(names: object) -> str:
    return ", ".join(names)
