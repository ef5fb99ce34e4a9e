"""The target LiteRT: a .tflite file of built-in operators only, for images of one size.

LiteRT has neither non-maximum suppression nor RoI align, so a detector has those of :mod:`.portable`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from ai_edge_litert import schema_py_generated as schema
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..runtime import silent_stderr
from .preparation import INPUT, Prepared

with silent_stderr():  # torchao, which it imports, names its libraries that do not fit
    import litert_torch

PRODUCTS = (torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.bmm)


class _Mended(TorchFunctionMode):
    """Computes in other operations what litert-torch 0.10 does not convert exactly, or not to what XNNPACK has.

    A nearest-neighbour enlargement by a factor that is not whole takes other pixels than torch. A batch of one matrix
    product becomes a fully connected layer, which in places has its sides exchanged. Attention with one head is such a
    batch of four dimensions, for which the product of two matrices cannot be converted either. ELU becomes a choice
    between two results, which splits XNNPACK's program in two.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.interpolate and kwargs.get("mode") == "nearest" and kwargs.get("size"):
            return _nearest(args[0], kwargs["size"])
        if func is F.elu and kwargs.get("alpha") == 1:
            return torch.relu(args[0]) + torch.exp(-torch.relu(-args[0])) - 1
        if func in PRODUCTS and len(args) == 2:
            left, right = args
            if left.dim() == right.dim() > 2 and left.shape[:-2].numel() == right.shape[:-2].numel() == 1:
                if left.dim() > 3:  # a batch of two, of which one is kept
                    return torch.cat((left, left)).matmul(torch.cat((right, right)))[:1]
                product = left.reshape(left.shape[-2:]).mm(right.reshape(right.shape[-2:]))
                return product.reshape(*left.shape[:-1], right.shape[-1])
        return func(*args, **kwargs)


def _nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    if not any(new % old for new, old in zip(size, x.shape[2:], strict=True)):
        return F.interpolate(x, size)
    for axis, new in zip((2, 3), size, strict=True):
        x = x.index_select(axis, torch.arange(new, device=x.device) * x.shape[axis] // new)
    return x


class _Named(nn.Module):
    """A prepared module with names for its input and outputs."""

    def __init__(self, prepared: Prepared) -> None:
        super().__init__()
        self.module, self.names = prepared.module, prepared.outputs

    def forward(self, **images: Tensor) -> dict[str, Tensor]:
        with _Mended():
            return dict(zip(self.names, self.module(images[INPUT]), strict=True))


def convert(prepared: Prepared, opset: None) -> bytes:
    """Return the content of a .tflite file, whose integers have 32 bits."""
    litert_torch.config.show_progress = False
    with torch.no_grad(), silent_stderr():
        return litert_torch.convert(_Named(prepared).eval(), sample_kwargs={INPUT: prepared.images}).model_content()


def operators(content: bytes) -> dict[str, int]:
    """Return how often a .tflite file has each operator."""
    model = schema.Model.GetRootAs(content, 0)
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    codes = [model.OperatorCodes(number) for number in range(model.OperatorCodesLength())]
    # Numbers from 127 on do not fit the older of the two fields.
    kinds = [names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())] for code in codes]
    graphs = [model.Subgraphs(number) for number in range(model.SubgraphsLength())]
    found = Counter(
        kinds[graph.Operators(number).OpcodeIndex()] for graph in graphs for number in range(graph.OperatorsLength())
    )
    return dict(sorted(found.items()))
