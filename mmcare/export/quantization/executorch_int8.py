"""ExecuTorch files with int8 convolutions, by torchao's post-training quantization for XNNPACK."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ...runtime import load_executorch
from ..executorch import aten, capture, lower, quiet
from ..preparation import Prepared
from .agreement import Outputs
from .layers import group_of
from .result import Quantized
from .search import COMPARED, Metric, search
from .speed import compare_speed

with quiet():
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e import ObserverBase
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e


def quantize(
    prepared: Prepared,
    opset: None,
    pictures: Sequence[np.ndarray],
    metric: Metric | None,
) -> Quantized:
    """Return the file, with the fewest blocks in float that hold the metric."""
    trials = Trials(prepared, pictures)
    found = search(trials, metric)
    content = trials.content(found.floats)
    batch = (torch.from_numpy(pictures[0]),)
    programs = {"float32": load_executorch(trials.content(trials.groups)), "int8": load_executorch(content)}
    latency, warning = compare_speed(
        {name: partial(program.load_method("forward").execute, batch) for name, program in programs.items()}
    )
    record = {
        "kind": "int8",
        "numbers": "weights, inputs and outputs of dense convolutions",
        "batches": len(pictures),
        **found.record(),
        "latency": latency,
    }
    return Quantized(content, record, warning)


class Trials:
    """Files of a model with some blocks in int8; see :class:`.search.Trials`.

    Calibration for the trials is done once, with all blocks in int8. In torch, a trial then rounds the inputs, weights
    and outputs of its int8 convolutions as XNNPACK does; only a file that is asked for is converted. The last
    convolutions of the heads stay in float, as quantizing their outputs would round the scores.
    """

    def __init__(self, prepared: Prepared, pictures: Sequence[np.ndarray]) -> None:
        self._prepared = prepared
        self._pictures = [torch.from_numpy(picture) for picture in pictures]
        self._program = capture(prepared)
        dense = {node: group for node in self._module().graph.nodes if (group := group_of(_dense_weight(node)))}
        last = _last(dense)
        self._layers = {_dense_weight(node): group for node, group in dense.items() if node not in last}
        self._maps = {_dense_weight(node) for node in last}
        self.groups = tuple(dict.fromkeys(self._layers.values()))
        self._contents: dict[frozenset[str], bytes] = {}
        self._observed = self._calibrate(())
        self._ranges = {
            name: module.calculate_qparams()
            for name, module in self._observed.named_modules(remove_duplicate=False)  # convolutions share some
            if isinstance(module, ObserverBase)
        }

    def run(self, floats: Collection[str]) -> list[tuple[Outputs, Outputs]]:
        rounding = _Rounding(self._observed, self._ranges, self._small(floats), self._maps)
        results = []
        for batch in self._pictures[:COMPARED]:
            with torch.no_grad():
                values = [value.numpy() for value in rounding.run(batch)]
            results.append((dict(rounding.maps), dict(zip(self._prepared.outputs, values, strict=True))))
        return results

    def content(self, floats: Collection[str]) -> bytes:
        key = frozenset(floats)
        if key not in self._contents:  # a conversion takes minutes
            self._contents[key] = self._convert(floats)
        return self._contents[key]

    def _small(self, floats: Collection[str]) -> set[str]:
        """Return the names of the weights in int8."""
        return {weight for weight, group in self._layers.items() if group not in floats}

    def _convert(self, floats: Collection[str]) -> bytes:
        if len(floats) == len(self.groups):
            return lower(self._program)
        with torch.no_grad(), quiet():
            module = convert_pt2e(self._calibrate(floats))
            return lower(torch.export.export(module, (self._prepared.images,), strict=False))

    def _module(self) -> fx.GraphModule:
        """Return the graph, in which each convolution reads its weights in a node of its own.

        Of convolutions that share one, as those of a head for several levels do, XNNPACK's quantizer takes the first.
        """
        module = self._program.module(check_guards=False)
        for node in filter(_is_conv, list(module.graph.nodes)):
            for place, value in enumerate(node.args[1:3], start=1):
                if isinstance(value, fx.Node) and len(value.users) > 1:
                    with module.graph.inserting_before(node):
                        own = module.graph.get_attr(value.target)
                    own.meta = dict(value.meta)
                    node.update_arg(place, own)
        module.recompile()
        return module

    def _calibrate(self, floats: Collection[str]) -> fx.GraphModule:
        """Return the graph with observers that have seen the pictures, for all blocks but some."""
        small = self._small(floats)
        quantizer = XNNPACKQuantizer()
        quantizer.set_operator_type(aten.conv2d.default, get_symmetric_quantization_config(is_per_channel=True))
        quantizer.set_filter_function(lambda node: not _is_conv(node) or _dense_weight(node) in small)
        with torch.no_grad(), quiet():
            observed = prepare_pt2e(self._module(), quantizer)
            for batch in self._pictures:
                observed(batch)
        return observed


class _Rounding(fx.Interpreter):
    """Compute a graph with observers, with the numbers of some convolutions rounded to int8.

    Args:
        observed: the graph.
        ranges: scale and zero point by the observer's name.
        small: the names of the weights of the convolutions.
        last: the names of the weights of those whose outputs are kept in ``maps``.
    """

    def __init__(
        self,
        observed: fx.GraphModule,
        ranges: Mapping[str, tuple[Tensor, Tensor]],
        small: Collection[str],
        last: Collection[str],
    ) -> None:
        super().__init__(observed)
        weights = {node: _dense_weight(node) for node in observed.graph.nodes if _is_conv(node)}
        self._ranges = ranges
        self._rounded = {node for node, weight in weights.items() if weight in small}
        self._outputs = {_activated(node, ranges) for node in self._rounded}
        self._last = {node for node, weight in weights.items() if weight in last}
        self.maps: dict[str, np.ndarray] = {}

    def run_node(self, node: fx.Node) -> Any:
        if node.target in self._ranges:
            (source,) = node.args
            value = self.env[source]
            return self._round(value, node.target) if source in self._outputs else value
        value = super().run_node(node)
        if node in self._last:
            self.maps[node.name] = value.numpy()
        return value

    def fetch_args_kwargs_from_env(self, node: fx.Node) -> tuple[tuple, dict]:
        args, kwargs = super().fetch_args_kwargs_from_env(node)
        if node in self._rounded:
            x, weight = (self._round(args[place], node.args[place].target) for place in (0, 1))
            args = (x, weight, *args[2:])
        return args, kwargs

    def _round(self, x: Tensor, observer: str) -> Tensor:
        scale, zero = self._ranges[observer]
        module = self.module.get_submodule(observer)
        low, high = module.quant_min, module.quant_max
        if len(scale) > 1:
            return torch.fake_quantize_per_channel_affine(x, scale, zero.int(), module.ch_axis, low, high)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero.int(), low, high)


def _is_conv(node: fx.Node) -> bool:
    return node.target is aten.conv2d.default


def _dense_weight(node: fx.Node) -> str:
    """Return the name of the weight of a dense convolution; nothing of anything else."""
    groups = node.args[6] if len(node.args) > 6 else 1
    if not _is_conv(node) or groups != 1:
        return ""
    weight = node.args[1] if node.args[1].op == "get_attr" else node.args[1].args[0]  # or what observes it
    return str(weight.target)


def _activated(node: fx.Node, observers: Collection[str]) -> fx.Node:
    """Return the convolution, or the ReLU after it, whose output is int8."""
    observed = any(user.target in observers for user in node.users)
    return node if observed else next(iter(node.users))


def _last(layers: Collection[fx.Node]) -> list[fx.Node]:
    """Return the layers from which no other one is computed: they make the heads' maps."""
    earlier: set[fx.Node] = set()
    waiting = list(layers)
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in earlier:
                earlier.add(source)
                waiting.append(source)
    return [node for node in layers if node not in earlier]
