"""Weights of 16 bits, for ONNX files and what is read from them.

Only the weights of convolutions and matrix products become float16, each with a Cast to float32 before its use, which
runtimes compute once when they load the file. So all arithmetic is in float32, and coordinates never lose digits.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..onnx import convert
from ..preparation import Prepared
from .result import Quantized

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that have weights."""
RECORD = {"kind": "fp16", "numbers": "weights"}


def quantize(prepared: Prepared, opset: int, pictures: None, metric: object) -> Quantized:
    """Return an ONNX file."""
    return Quantized(halve(convert(prepared, opset)), RECORD)


def halve(content: bytes) -> bytes:
    """Return an ONNX file with weights of 16 bits."""
    model = onnx.load_from_string(content)
    graph = model.graph
    used = {name for node in graph.node if node.op_type in WEIGHTED for name in node.input}
    casts = []
    for tensor in graph.initializer:
        if tensor.name not in used or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name = f"{tensor.name}_fp16"
        casts.append(helper.make_node("Cast", [name], [tensor.name], f"{tensor.name}_cast", to=TensorProto.FLOAT))
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), name))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return model.SerializeToString(deterministic=True)
