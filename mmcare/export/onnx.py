"""The target ONNX: a file of standard operators only.

The exporter is torch's current one, on ``torch.export``. The operators of :mod:`.operators` become ONNX's own.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnxscript import opset18 as op

from .operators import nms, roi_align
from .preparation import INPUT, Prepared


def _nms(boxes: Any, scores: Any, most: int, iou: float, low: float) -> Any:
    number = op.Constant(value_ints=[most])
    return op.NonMaxSuppression(
        boxes,
        op.Unsqueeze(scores, op.Constant(value_ints=[1])),
        number,
        op.Constant(value_floats=[iou]),
        op.Constant(value_floats=[low]),
    )


def _roi_align(features: Any, rois: Any, size: int, scale: float, samples: int, aligned: bool) -> Any:
    axis = op.Constant(value_ints=[1])
    start, end, far = (op.Constant(value_ints=[number]) for number in (0, 1, 5))
    images = op.Cast(op.Squeeze(op.Slice(rois, start, end, axis), axis), to=7)
    return op.RoiAlign(
        features,
        op.Slice(rois, end, far, axis),
        images,
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        output_height=size,
        output_width=size,
        sampling_ratio=samples,
        spatial_scale=scale,
    )


AXES = {0: "batch", 2: "height", 3: "width"}
"""The sizes of the input that can be free."""
TRANSLATIONS = {torch.ops.mmcare.nms.default: _nms, torch.ops.mmcare.roi_align.default: _roi_align}
_ = nms, roi_align  # registered by their import


def convert(prepared: Prepared, opset: int) -> bytes:
    """Return the content of an ONNX file."""
    sizes = None
    if prepared.dynamic:
        sizes = ({axis: torch.export.Dim.DYNAMIC for axis in AXES},)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            prepared.module,
            (prepared.images,),
            input_names=[INPUT],
            output_names=list(prepared.outputs),
            opset_version=opset,
            dynamic_shapes=sizes,
            dynamo=True,
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
    model = program.model_proto
    _strip(model)
    if prepared.dynamic:
        _name_sizes(model.graph)
    _check(model, opset)
    return model.SerializeToString(deterministic=True)


def operators(content: bytes) -> dict[str, int]:
    """Return how often an ONNX file has each operator, in its branches and loops, too."""
    return dict(sorted(Counter(_operators_in(onnx.load_from_string(content).graph)).items()))


def _operators_in(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _operators_in(inner)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the exporter tells its developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _strip(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes, among them lines and paths of this machine's source files."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _name_sizes(graph: onnx.GraphProto) -> None:
    """Name the sizes of the input and the outputs, and leave those in between to the runtime."""
    names = {}
    for axis, name in AXES.items():
        size = graph.input[0].type.tensor_type.shape.dim[axis]
        names[size.dim_param] = size.dim_param = name
    for output in graph.output:
        for axis, size in enumerate(output.type.tensor_type.shape.dim):
            if size.dim_param:
                size.dim_param = names.get(size.dim_param, f"{output.name}_{axis}")
    del graph.value_info[:]


def _check(model: onnx.ModelProto, opset: int) -> None:
    """Raise RuntimeError if the exporter has not made what was asked for."""
    onnx.checker.check_model(model, full_check=True)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    others = sorted({f"{node.domain}::{node.op_type}" for node in model.graph.node if node.domain})
    if versions != {"": opset} or others or model.functions:
        raise RuntimeError(f"the exporter made opsets {versions} and operators {others}, not opset {opset} alone")
