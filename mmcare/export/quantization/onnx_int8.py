"""ONNX files with int8 convolutions, by onnxruntime's static quantization: QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from ..onnx import convert
from ..preparation import INPUT, Prepared
from .agreement import Outputs
from .layers import group_of
from .result import Quantized
from .search import COMPARED, Metric, search
from .speed import compare_speed


def quantize(
    prepared: Prepared,
    opset: int,
    pictures: Sequence[np.ndarray],
    metric: Metric | None,
) -> Quantized:
    """Return the file, with the fewest blocks in float that hold the metric."""
    content = convert(prepared, opset)
    trials = Trials(onnx.load_from_string(content), pictures)
    found = search(trials, metric)
    small = trials.content(found.floats)
    sessions = {"float32": _session(content), "int8": _session(small)}
    latency, warning = compare_speed(
        {name: lambda session=session: session.run(None, {INPUT: pictures[0]}) for name, session in sessions.items()}
    )
    record = {
        "kind": "int8",
        "numbers": "weights, inputs and outputs of dense convolutions",
        "batches": len(pictures),
        **found.record(),
        "latency": latency,
    }
    return Quantized(small, record, warning)


class Trials:
    """Files of a model with some blocks in int8; see :class:`.search.Trials`.

    Calibration is done once, with all blocks in int8. To have a block in float, its convolutions are connected past
    the quantizers. The last convolutions of the heads stay in float, as quantizing their outputs would round the
    scores.
    """

    def __init__(self, model: onnx.ModelProto, pictures: Sequence[np.ndarray]) -> None:
        self._model, self._pictures = model, pictures
        layers = {node.name: group_of(node.input[1]) for node in model.graph.node if _is_dense(node)}
        layers = {name: group for name, group in layers.items() if group}
        self._maps = _last(model.graph, layers)
        returned = {output.name for output in model.graph.output} | set(self._maps)
        small = {node.name for node in model.graph.node if node.output[0] not in returned}
        self._layers = {name: group for name, group in layers.items() if name in small}
        self.groups = tuple(dict.fromkeys(self._layers.values()))
        self._all = _quantize(model, self._layers, pictures)

    def run(self, floats: Collection[str]) -> list[tuple[Outputs, Outputs]]:
        model = self._with_floats(floats)
        names = [output.name for output in model.graph.output]
        model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in self._maps if name not in names)
        session = _session(model.SerializeToString())
        results = []
        for batch in self._pictures[:COMPARED]:
            values = [session.run(list(wanted), {INPUT: batch}) for wanted in (self._maps, names)]
            maps, outputs = (dict(zip(*pair, strict=True)) for pair in zip((self._maps, names), values, strict=True))
            results.append((maps, outputs))
        return results

    def content(self, floats: Collection[str]) -> bytes:
        return self._with_floats(floats).SerializeToString(deterministic=True)

    def _with_floats(self, floats: Collection[str]) -> onnx.ModelProto:
        """Return the model with some blocks in float: quantizers stay before and behind the convolutions in int8."""
        model = onnx.ModelProto()
        if len(floats) == len(self.groups):
            model.CopyFrom(self._model)
            return model
        model.CopyFrom(self._all)
        small = {name for name, group in self._layers.items() if group not in floats}
        before = {node.name: node for node in self._model.graph.node}
        rounded = {node.output[0] for node in self._model.graph.node if node.name in small}
        for node in model.graph.node:
            if node.name in before and node.name not in small:
                for number, name in enumerate(before[node.name].input):
                    if name not in rounded:
                        node.input[number] = name
        _complete(model.graph, self._model.graph.initializer)
        return model


def _quantize(model: onnx.ModelProto, layers: Collection[str], pictures: Sequence[np.ndarray]) -> onnx.ModelProto:
    """Return the model with all of the layers in int8."""
    with TemporaryDirectory() as folder, _quiet():
        path = Path(folder, "int8.onnx")
        quantize_static(
            copy.deepcopy(model),  # which it moves the weights out of
            path,
            _Pictures(pictures),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_quantize=list(layers),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        quantized = onnx.load(path)
    quantized.ClearField("metadata_props")
    return quantized


class _Pictures(CalibrationDataReader):
    """The batches, for onnxruntime's calibration."""

    def __init__(self, pictures: Sequence[np.ndarray]) -> None:
        self._batches = iter(pictures)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def _is_dense(node: onnx.NodeProto) -> bool:
    return node.op_type == "Conv" and all(part.name != "group" or part.i == 1 for part in node.attribute)


def _last(graph: onnx.GraphProto, layers: Collection[str]) -> list[str]:
    """Return the outputs of the layers from which no other one is computed: the heads' maps."""
    makers = {name: node for node in graph.node for name in node.output}
    nodes = [node for node in graph.node if node.name in layers]
    earlier: set[str] = set()
    waiting = list(nodes)
    while waiting:
        for name in waiting.pop().input:
            if name in makers and name not in earlier:
                earlier.add(name)
                waiting.append(makers[name])
    return [node.output[0] for node in nodes if node.output[0] not in earlier]


def _complete(graph: onnx.GraphProto, weights: Iterable[onnx.TensorProto]) -> None:
    """Add the float weights that are used, and remove what no output needs."""
    used = {output.name for output in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if used.intersection(node.output):
            nodes.append(node)
            used.update(node.input)
    made = {name for node in nodes for name in node.output}
    tensors = {tensor.name: tensor for tensor in (*weights, *graph.initializer)}
    kept = [tensor for name, tensor in tensors.items() if name in used - made]
    nodes, kept = copy.deepcopy((nodes[::-1], kept))
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def _session(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the advice to optimize the model, which torch's exporter has done."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
