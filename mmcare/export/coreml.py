"""The target Core ML: an .mlpackage folder with a program in float32, for images of one size.

It is converted and checked here, but runs on Apple's devices alone. A detector has the non-maximum suppression and RoI
align of :mod:`.portable`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..runtime import silent_stderr
from .preparation import INPUT, Prepared

with silent_stderr():  # it names the packages that it was not tested with, and Apple's libraries that are not here
    import coremltools as ct


def _clamp(x: Tensor, low: int | None = None, high: int | None = None) -> Tensor:
    """Limit integers, which coremltools would make floats."""
    if x.is_floating_point():
        return NotImplemented
    x = x if low is None else torch.maximum(x, torch.full_like(x, low))
    return x if high is None else torch.minimum(x, torch.full_like(x, high))


def _pad(x: Tensor, sides: list[int], mode: str = "constant", value: int | None = None) -> Tensor:
    """Pad integers at the end of the last axis, which coremltools would make floats."""
    if x.is_floating_point() or len(sides) != 2 or sides[0] or mode != "constant":
        return NotImplemented
    return torch.cat((x, x.new_full((*x.shape[:-1], sides[1]), value or 0)), dim=-1)


DECOMPOSITIONS = {
    torch.ops.aten.pad.default: _pad,
    torch.ops.aten.clamp.default: _clamp,
    torch.ops.aten.alias.default: lambda x: x.clone(),
    torch.ops.aten.addcmul.default: lambda x, left, right, value=1: x + value * left * right,
    torch.ops.aten.prod.dim_int: lambda x, dim: reduce(torch.mul, x.unbind(dim)),
    torch.ops.aten.where.ScalarOther: lambda chosen, x, other: torch.where(chosen, x, torch.full_like(x, other)),
    torch.ops.aten.where.ScalarSelf: lambda chosen, value, x: torch.where(chosen, torch.full_like(x, value), x),
    # It has the integers' quotient as a float; here they are less than 4 million, so this one is exact.
    torch.ops.aten.floor_divide.default: lambda x, by: ((x.float() + 0.5) / by).floor().to(x.dtype),
    # Of truth values, which are the only ones that these graphs combine.
    torch.ops.aten.__and__.Tensor: torch.logical_and,
    torch.ops.aten.bitwise_and.Tensor: torch.logical_and,
    torch.ops.aten.__or__.Tensor: torch.logical_or,
    torch.ops.aten.bitwise_or.Tensor: torch.logical_or,
    torch.ops.aten.bitwise_not.default: torch.logical_not,
}
"""Operations of which coremltools has no translation, in others."""
PROGRAM = "Data/com.apple.CoreML/model.mlmodel"
"""Where the program is in the folder; its weights are beside it."""


def convert(prepared: Prepared, opset: None) -> dict[str, bytes]:
    """Return the contents of an .mlpackage's files by their names inside of it; integers and masks are int32."""
    with torch.no_grad(), silent_stderr(), warnings.catch_warnings(), TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        program = torch.export.export(_Arguments(prepared.module), (prepared.images,))
        values = [node.meta["val"] for node in program.graph.output_node().args[0]]
        model = ct.convert(
            program.run_decompositions(DECOMPOSITIONS),
            outputs=[
                ct.TensorType(name=name, dtype=np.float32 if value.is_floating_point() else np.int32)
                for name, value in zip(prepared.outputs, values, strict=True)
            ],
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS16,
            skip_model_load=True,
        )
        path = Path(folder, "model.mlpackage")
        model.save(path)
        files = {name: (path / name).read_bytes() for name in _names(path)}
    _check(files, prepared)
    return files


class _Arguments(torch.nn.Module):
    """A module whose argument has the name of the input, from which the file takes it."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:  # noqa: A002
        return self.module(input)


def _names(path: Path) -> list[str]:
    """Return the files of an .mlpackage; the converter's map from its operations to torch's is left out."""
    return sorted(
        file.relative_to(path).as_posix()
        for file in path.rglob("*")
        if file.is_file() and (file.parent != path or file.name == "Manifest.json")
    )


def operators(content: Mapping[str, bytes]) -> dict[str, int]:
    """Return how often the program has each operator."""
    return dict(sorted(Counter(operation.type for operation in _operations(_read(content))).items()))


def _read(content: Mapping[str, bytes]) -> Any:
    return ct.proto.Model_pb2.Model.FromString(content[PROGRAM])


def _operations(model: Any) -> Iterator[Any]:
    for function in model.mlProgram.functions.values():
        for block in function.block_specializations.values():
            yield from (operation for operation in block.operations if operation.type != "const")


def _check(content: Mapping[str, bytes], prepared: Prepared) -> None:
    """Raise RuntimeError if the converter has not made what was asked for."""
    model = _read(content)
    inputs = {each.name: tuple(each.type.multiArrayType.shape) for each in model.description.input}
    outputs = tuple(each.name for each in model.description.output)
    kinds = {value.type.tensorType.dataType for operation in _operations(model) for value in operation.outputs}
    custom = [operation.type for operation in _operations(model) if operation.type.startswith("custom")]
    halves = ct.proto.MIL_pb2.FLOAT16 in kinds
    if inputs != {INPUT: tuple(prepared.images.shape)} or outputs != prepared.outputs or custom or halves:
        raise RuntimeError(
            f"coremltools made inputs {inputs} and outputs {outputs}{' with float16' * halves}, and operators {custom}"
        )
