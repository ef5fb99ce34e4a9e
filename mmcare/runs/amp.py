"""Mixed precision on the CPU, which MMEngine does not have."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """Train with forward passes in bfloat16 on the CPU, where MMEngine's AmpOptimWrapper does not work.

    Tensors passed between the model's parts (backbone, neck, heads) are float32, as mmcv's compiled operators, such as
    RoI align and non-maximum suppression, do not support bfloat16. There is no loss scaling: bfloat16 has the range of
    float32, so gradients do not underflow.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Return a context in which forward passes run in bfloat16."""
        parts = (model.module if is_model_wrapper(model) else model).children()
        hooks = [part.register_forward_hook(lambda part, inputs, outputs: _in_float32(outputs)) for part in parts]
        try:
            with super().optim_context(model), torch.autocast("cpu", dtype=torch.bfloat16):
                yield
        finally:
            for hook in hooks:
                hook.remove()


def _in_float32(outputs: Any) -> Any:
    """Return a part's outputs with bfloat16 tensors converted to float32, at any depth."""
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.dtype == torch.bfloat16 else outputs
    if isinstance(outputs, MutableMapping):
        converted = copy(outputs)
        converted.update({key: _in_float32(value) for key, value in outputs.items()})
        return converted
    if isinstance(outputs, (tuple, list)):
        values = map(_in_float32, outputs)
        return type(outputs)(*values) if hasattr(outputs, "_fields") else type(outputs)(values)  # _fields: a namedtuple
    if isinstance(outputs, BaseDataElement):
        return outputs.new(**{key: _in_float32(value) for key, value in outputs.items()})
    return outputs
