"""The target OpenVINO: an .xml file with the graph, and a .bin file of the same name with the weights.

OpenVINO reads the ONNX model, all of whose operators it has; so the file computes what the ONNX file computes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import openvino

from ..runtime import openvino_core
from . import onnx
from .preparation import Prepared

ONNX_OPSET = 20
"""Of the ONNX model that is read."""


def convert(prepared: Prepared, opset: None) -> dict[str, bytes]:
    """Return the contents of the two files by their endings."""
    return serialize(read(onnx.convert(prepared, ONNX_OPSET)))


def read(content: bytes) -> openvino.Model:
    """Return OpenVINO's model of an ONNX file."""
    return openvino_core().read_model(content)


def operators(content: Mapping[str, bytes]) -> dict[str, int]:
    """Return how often the graph has each operator."""
    model = openvino_core().read_model(content[".xml"], content[".bin"])
    return dict(sorted(Counter(node.get_type_name() for node in model.get_ops()).items()))


def serialize(model: openvino.Model) -> dict[str, bytes]:
    """Return the contents of a model's two files by their endings."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.xml")
        openvino.save_model(model, path, compress_to_fp16=False)
        return {ending: path.with_suffix(ending).read_bytes() for ending in (".bin", ".xml")}
