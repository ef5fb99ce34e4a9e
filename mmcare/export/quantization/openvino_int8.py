"""OpenVINO files with int8 convolutions, by NNCF's post-training quantization."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Collection, Sequence

import numpy as np
import openvino

from ...runtime import openvino_core
from .. import onnx
from ..openvino import ONNX_OPSET, read, serialize
from ..preparation import INPUT, Prepared
from .agreement import Outputs
from .layers import group_of
from .result import Quantized
from .search import COMPARED, Content, Metric, search
from .speed import compare_speed

os.environ.setdefault("NNCF_CI", "1")  # otherwise NNCF reports its use to its makers
import nncf  # noqa: E402

DENSE = "Convolution"
"""The type of dense convolutions; depth-wise ones are group convolutions."""
_SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}


def quantize(
    prepared: Prepared,
    opset: None,
    pictures: Sequence[np.ndarray],
    metric: Metric | None,
) -> Quantized:
    """Return the two files, with the fewest blocks in float that hold the metric."""
    model = read(onnx.convert(prepared, ONNX_OPSET))
    trials = Trials(model, pictures)
    found = search(trials, metric)
    small = trials.quantized(found.floats)
    requests = {"float32": _request(model), "int8": _request(small)}
    latency, warning = compare_speed(
        {name: lambda request=request: request.infer({INPUT: pictures[0]}) for name, request in requests.items()}
    )
    record = {
        "kind": "int8",
        "numbers": "weights and inputs of dense convolutions",
        "batches": len(pictures),
        **found.record(),
        "latency": latency,
    }
    return Quantized(serialize(small), record, warning)


class Trials:
    """Files of a model with some blocks in int8; see :class:`.search.Trials`.

    Calibration is done once, with all blocks in int8. To have a block in float, its convolutions are connected past
    the ``FakeQuantize`` operators.
    """

    def __init__(self, model: openvino.Model, pictures: Sequence[np.ndarray]) -> None:
        self._model, self._pictures = model, pictures
        self._outputs = [output.any_name for output in model.outputs]
        layers = {op.get_friendly_name(): group_of(_weight(op)) for op in model.get_ops() if _is_dense(op)}
        self._layers = {name: group for name, group in layers.items() if group}
        self.groups = tuple(dict.fromkeys(self._layers.values()))
        self._last = _last(model, self._layers)
        self._made = {frozenset(self.groups): model}
        # The weights stay as they are, so that float ones can be had again; and so do the biases.
        self._all = self._quantize(
            (),
            nncf.AdvancedQuantizationParameters(
                disable_bias_correction=True, backend_params={"compress_weights": False}
            ),
        )

    def run(self, floats: Collection[str]) -> list[tuple[Outputs, Outputs]]:
        model = self._all.clone()
        ops = {op.get_friendly_name(): op for op in model.get_ops()}
        for name, group in self._layers.items():
            if group in floats:
                for argument in ops[name].inputs():
                    source = argument.get_source_output().get_node()
                    if source.get_type_name() == "FakeQuantize":
                        argument.replace_source_output(source.input_value(0))
        model.add_outputs([ops[name].output(0) for name in self._last])
        request = _request(model)
        results = []
        for batch in self._pictures[:COMPARED]:
            values = [value.copy() for value in request.infer({INPUT: batch}).values()]
            count = len(self._outputs)
            outputs = dict(zip(self._outputs, values[:count], strict=True))
            results.append((dict(zip(self._last, values[count:], strict=True)), outputs))
        return results

    def content(self, floats: Collection[str]) -> Content:
        return serialize(self.quantized(floats))

    def quantized(self, floats: Collection[str]) -> openvino.Model:
        """Return the model with int8 weights."""
        made = frozenset(floats)
        if made not in self._made:
            self._made[made] = self._quantize(floats, nncf.AdvancedQuantizationParameters())
        return self._made[made]

    def _quantize(self, floats: Collection[str], settings: nncf.AdvancedQuantizationParameters) -> openvino.Model:
        others = {op.get_type_name() for op in self._model.get_ops()} - {DENSE}
        dense = [op.get_friendly_name() for op in self._model.get_ops() if _is_dense(op)]
        kept = [name for name in dense if self._layers.get(name) in (None, *floats)]
        with _quiet():
            return nncf.quantize(
                self._model,
                nncf.Dataset(self._pictures),
                subset_size=len(self._pictures),
                ignored_scope=nncf.IgnoredScope(names=kept, types=sorted(others), validate=False),
                advanced_parameters=settings,
            )


def _is_dense(op: openvino.Node) -> bool:
    return op.get_type_name() == DENSE


def _weight(op: openvino.Node) -> str:
    return op.input_value(1).get_node().get_friendly_name()


def _last(model: openvino.Model, layers: Collection[str]) -> list[str]:
    """Return the layers from which no other one is computed: they make the heads' maps."""
    ops = {op.get_friendly_name(): op for op in model.get_ops()}
    earlier: set[str] = set()
    waiting = [ops[name] for name in layers]
    while waiting:
        for value in waiting.pop().input_values():
            source = value.get_node()
            if source.get_friendly_name() not in earlier:
                earlier.add(source.get_friendly_name())
                waiting.append(source)
    return [name for name in layers if name not in earlier]


def _request(model: openvino.Model) -> openvino.InferRequest:
    return openvino_core().compile_model(model, "CPU", _SETTINGS).create_infer_request()


@contextlib.contextmanager
def _quiet():
    """Leave out NNCF's progress bars and notes."""
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        yield
