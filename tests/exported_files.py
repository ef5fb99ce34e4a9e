"""A small exported file, its certificate, and what it computes; shared by the tests of the runtime."""

from dataclasses import replace

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from mmcare import runtime


def certificate(shape=(None, 3, None, None), **changes):
    """Return the certificate of :func:`doubling`, with changes."""
    made = runtime.Certificate(
        format="onnx",
        part="backbone",
        form="plain",
        quantization=None,
        task="detection",
        classes=("a", "b"),
        palette=((1, 2, 3), (4, 5, 6)),
        input=runtime.Input("input", shape),
        normalization=runtime.Normalization((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        resizing=runtime.Resizing((1333, 800), True, None),
        outputs=(
            runtime.Output("c2", shape, "float32"),
            runtime.Output("c3", (shape[0], 3), "float32"),
        ),
        thresholds={"score_thr": 0.05},
        config={"backbone": {"type": "mmcare.CARE"}},
        versions={"torch": "2.13"},
        weights_sha256="0" * 64,
        operators={"Mul": 1, "ReduceMax": 1},
        measured=runtime.Measured(None, {"c2": runtime.OutputError(1e-7, 1e-5)}, None, None),
    )
    return replace(made, **changes)


def doubling(shape=(None, 3, None, None)):
    """Return an ONNX model: twice the images, and the largest value of each channel."""
    names = [name if size is None else size for size, name in zip(shape, ("batch", 3, "height", "width"), strict=True)]
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["input", "axes"], ["c3"], keepdims=0),
            helper.make_node("Mul", ["input", "two"], ["c2"]),
        ],
        "doubling",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, names)],
        [
            helper.make_tensor_value_info("c3", TensorProto.FLOAT, [names[0], 3]),
            helper.make_tensor_value_info("c2", TensorProto.FLOAT, names),
        ],
        [numpy_helper.from_array(np.float32(2), "two"), numpy_helper.from_array(np.int64([2, 3]), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
