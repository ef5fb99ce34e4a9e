"""OpenVINO files with weights of 16 bits."""

from __future__ import annotations

from .. import onnx
from ..openvino import ONNX_OPSET, read, serialize
from ..preparation import Prepared
from .half import RECORD, halve
from .result import Quantized


def quantize(prepared: Prepared, opset: None, pictures: None, metric: object) -> Quantized:
    """Return the two files. OpenVINO's own compression would halve anchors too, which then miss pixels."""
    return Quantized(serialize(read(halve(onnx.convert(prepared, ONNX_OPSET)))), RECORD)
