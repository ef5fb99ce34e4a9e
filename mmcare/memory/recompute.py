"""How the networks train in less memory: what is cheap to compute is computed again in the backward pass.

Autograd keeps the input of each operation until the backward pass. Most of these maps are cheap to make from others
that are kept as well: norms, activations, depth-wise convolutions and gates are most of the memory and a small part of
the arithmetic, the 1×1 convolutions the other way round. So of a chain of layers (:func:`chain`) only the input and
what its 1×1 convolutions return is kept, of other cheap parts (:func:`recompute`) only the input. Of large maps a norm
with frozen statistics keeps and computes nothing: it is a part of the convolution beside it. Of small maps everything
is kept. The gradients are the same up to rounding.

All of this is for training; docs/speed.md tells what it costs. In eval mode or without gradients :func:`chain` and
:func:`recompute` just call what they are given, and so they do under ``torch.compile``, which decides for itself what
to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils.checkpoint import checkpoint

from .layout import by_rows, split
from .parts import Part, count_parts, part_of

SMALL_CHAIN, SMALL_PART = 2**16, 200_000
"""Of maps with no more values than this everything is kept, by :func:`chain` and by :func:`recompute`: to compute it
again would save little memory, and many small operations take their time on the smallest of maps, too."""

FEW_PIXELS = 2**8
"""So it is, by :func:`chain`, of maps with no more pixels than this, however many channels they have."""

FOLDED_VALUES = 2**18
"""A norm of a map of fewer values than this is a pass over the map: that takes less than folding it into weights."""

_RECOMPUTE, _FOLD, _PLAIN = "recompute and fold norms", "fold norms", "do neither"
_mode = ContextVar("mode", default=_RECOMPUTE)


def chain(x: Tensor, *layers: nn.Module) -> Tensor:
    """``layers[-1](… layers[0](x))`` for convolutions, batch norms, GELU and ReLU, training in little memory.

    The backward pass keeps x and what dense convolutions return, and makes the rest again. Layers of other kinds, and
    norms that take the statistics of the batch, run by themselves, and so does everything on small maps.

    Args:
        x: (B, C, H, W).
        layers: what to apply to x, in this order.
    """
    if not _is_chained(x, layers):
        for layer in layers:
            x = layer(x)
        return x
    return _run(*_steps(x, layers))


def chain_and_split(x: Tensor, parts: int, *layers: nn.Module) -> list[Tensor]:
    """Equal parts of the channels of ``chain(x, *layers)``, laid out as x, without first making the whole."""
    if not _is_chained(x, layers):
        return split(chain(x, *layers), parts)
    x, steps, tensors = _steps(x, layers)
    if not steps or not isinstance(steps[-1], _Convolution) or steps[-1].groups > 1:
        return split(_run(x, steps, tensors), parts)
    steps[-1] = steps[-1]._replace(parts=parts)
    return list(_run(x, steps, tensors))


def _is_chained(x: Tensor, layers: Sequence[nn.Module]) -> bool:
    if torch.compiler.is_compiling() or _mode.get() == _PLAIN:
        return False
    if x.numel() <= SMALL_CHAIN or x.shape[0] * x.shape[2] * x.shape[3] <= FEW_PIXELS:
        return False
    return _mode.get() == _FOLD or _trains(layers)


def _steps(x: Tensor, layers: Sequence[nn.Module]) -> tuple[Tensor, list[_Step], _Tensors]:
    """Runs the layers that run by themselves, and returns what comes after the last of them."""
    steps: list[_Step] = []
    tensors: list[tuple[Tensor | None, ...]] = []
    rest = list(layers)
    while rest:
        layer, following = rest.pop(0), rest[0] if rest else None
        if _is_frozen_norm(layer) and _takes_norm_before(following, x):
            steps.append(_Convolution.of(following, _BEFORE, layer.eps))
            tensors.append((following.weight, following.bias, *_norm_tensors(layer)))
            rest.pop(0)
        elif _is_frozen_norm(following) and _takes_norm_after(layer, x):
            steps.append(_Convolution.of(layer, _AFTER, following.eps))
            tensors.append((layer.weight, layer.bias, *_norm_tensors(following)))
            rest.pop(0)
        elif is_plain_conv(layer):
            steps.append(_Convolution.of(layer))
            tensors.append((layer.weight, layer.bias))
        elif _is_frozen_norm(layer):
            steps.append(_Norm(layer.eps))
            tensors.append(_norm_tensors(layer))
        elif _is_gelu(layer) or _is_relu(layer):
            steps.append(_Gelu() if _is_gelu(layer) else _Relu())
            tensors.append(())
        else:
            x = layer(_run(x, steps, tensors))
            steps, tensors = [], []
    return x, steps, tensors


class Chain(nn.Sequential):
    """A sequence of layers that runs as :func:`chain`."""

    def forward(self, x: Tensor) -> Tensor:
        return chain(x, *self)


def recompute(module: nn.Module, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``function(*inputs)``, of which only the inputs are kept for the backward pass, which calls it again.

    Small maps are all kept.

    Args:
        module: the module that ``function`` is a part of.
        function: deterministic; it takes no other tensors than its inputs and the parameters and buffers of ``module``,
            and changes nothing but the statistics of norms.
        inputs: the tensors it takes.
    """
    if torch.compiler.is_compiling() or _mode.get() != _RECOMPUTE or not _trains([module]):
        return function(*inputs)
    if inputs[0].numel() <= SMALL_PART:
        return function(*inputs)
    names, parameters = zip(*module.named_parameters(), strict=True)
    return _Recompute.apply(module, function, names, *inputs, *parameters)


def recompute_block(block: nn.Module, x: Tensor) -> Tensor:
    """``block(x)``, of which only x is kept for the backward pass; the block may draw random numbers (drop path)."""
    if not (block.training and torch.is_grad_enabled()):
        return block(x)
    contexts = {}
    if not torch.compiler.is_compiling():  # the compiler has its own recomputation and no contexts
        contexts["context_fn"] = lambda: (nullcontext(), _statistics_kept(block))
    return checkpoint(block, x, use_reentrant=False, **contexts)


@contextmanager
def everything_saved() -> Iterator[None]:
    """Within this, the networks train as if this module did nothing, to compare with what it saves."""
    with _switched(_PLAIN):
        yield


@contextmanager
def _switched(mode: str) -> Iterator[None]:
    token = _mode.set(mode)
    try:
        yield
    finally:
        _mode.reset(token)


def _trains(modules: Sequence[nn.Module]) -> bool:
    training = torch.is_grad_enabled() and any(module.training for module in modules)
    # The transforms of torch.func take a function apart, which works on the plain operations.
    return training and not torch._C._are_functorch_transforms_active()


def _autocast_enabled(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _present_autocast(device_type: str) -> Callable[[], AbstractContextManager]:
    """A context for autocasting in the backward pass as now."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext
    dtype, enabled = torch.get_autocast_dtype(device_type), torch.is_autocast_enabled(device_type)
    # The cache would hand casts without gradients to whoever uses the same weight next.
    return partial(torch.autocast, device_type, dtype=dtype, enabled=enabled, cache_enabled=False)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Keeps recomputation from counting the batch a second time into the norms' running statistics."""
    norms = [module for module in module.modules() if isinstance(module, _BatchNorm) and module.training]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, num_batches in kept:
            norm.momentum, norm.num_batches_tracked = momentum, num_batches


# -- any cheap part of a module --------------------------------------------------------------------------------------


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, module: nn.Module, function: Callable[..., Tensor], names: Sequence[str], *tensors: Tensor):
        ctx.module, ctx.function, ctx.names = module, function, names
        ctx.autocast = _present_autocast(tensors[0].device.type)
        ctx.save_for_backward(*tensors)
        with _switched(_FOLD), ctx.autocast():
            return function(*tensors[: len(tensors) - len(names)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = [
            tensor.detach().requires_grad_(needed)
            for tensor, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[3:], strict=True)
        ]
        inputs, parameters = tensors[: -len(ctx.names)], dict(zip(ctx.names, tensors[-len(ctx.names) :], strict=True))
        # the parameters that were there in the forward pass, which torch.func.functional_call may have lent
        with (
            _reparametrize_module(ctx.module, parameters),
            _statistics_kept(ctx.module),
            _switched(_FOLD),
            ctx.autocast(),
            torch.enable_grad(),
        ):
            out = ctx.function(*inputs)
        found = iter(torch.autograd.grad(out, [t for t in tensors if t.requires_grad], grad, allow_unused=True))
        return None, None, None, *(next(found) if tensor.requires_grad else None for tensor in tensors)


# -- a chain of layers -----------------------------------------------------------------------------------------------

_BEFORE, _AFTER = "before", "after"


def _is(layer: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Whether it is just this kind of layer: adapted ones, and those that a hook listens to, run by themselves."""
    return type(layer) is kind and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)


def is_plain_conv(layer: nn.Module | None) -> bool:
    """Whether a layer is a convolution that computes what its weights say, and with zeros around the map."""
    return _is(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _takes_norm_before(conv: nn.Module | None, x: Tensor) -> bool:
    """Whether a norm is better a part of the convolution that follows than a pass over a map of x's size."""
    if not is_plain_conv(conv) or conv.groups > 1 or any(conv.padding):
        return False
    # Half precision would round x before the norm has taken its mean away.
    return not _autocast_enabled(x.device.type) and _is_folded(conv, conv.in_channels, x)


def _takes_norm_after(conv: nn.Module, x: Tensor) -> bool:
    """Whether a norm is better a part of the convolution before it than a pass over its output."""
    return is_plain_conv(conv) and _is_folded(conv, conv.out_channels, x)


def _is_folded(conv: nn.Conv2d, channels: int, x: Tensor) -> bool:
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    return channels * pixels >= FOLDED_VALUES and pixels >= conv.out_channels  # or the weights are more than the map


def _is_gelu(layer: nn.Module) -> bool:
    return _is(layer, nn.GELU) and layer.approximate == "none"


def _is_relu(layer: nn.Module) -> bool:
    return _is(layer, nn.ReLU) and not layer.inplace


def _is_frozen_norm(layer: nn.Module | None) -> bool:
    frozen = isinstance(layer, _BatchNorm) and not layer.training and layer.running_var is not None and layer.affine
    return frozen and _is(layer, type(layer))


def _norm_tensors(norm: _BatchNorm) -> tuple[Tensor, ...]:
    return norm.weight, norm.bias, norm.running_mean, norm.running_var


class _Gelu(NamedTuple):
    keep: ClassVar[bool] = False

    def run(self, x: Tensor) -> Tensor:
        return by_rows(F.gelu, x)

    def backward(self, grad: Tensor, x: Tensor, needed: Sequence[bool]) -> tuple[Tensor]:
        return (by_rows(_gelu_backward_, grad, x),)


def _gelu_backward_(grad: Tensor, x: Tensor) -> Tensor:
    """GELU's backward pass, written over the gradient: a large map less to make."""
    return torch.ops.aten.gelu_backward.grad_input(grad, x, grad_input=grad)


class _Relu(NamedTuple):
    keep: ClassVar[bool] = False

    def run(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def backward(self, grad: Tensor, x: Tensor, needed: Sequence[bool]) -> tuple[Tensor]:
        return (torch.ops.aten.threshold_backward(grad, x, 0),)


class _Norm(NamedTuple):
    """A batch norm with frozen statistics that no convolution takes over."""

    eps: float
    keep: ClassVar[bool] = False

    def run(self, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, weight, bias, eps=self.eps)

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        needed: Sequence[bool],
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
    ) -> tuple[Tensor | None, ...]:
        grads = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, None, None, False, self.eps, list(needed[:3])
        )
        return *grads, None, None


class _Convolution(NamedTuple):
    """A convolution, with the batch norm with frozen statistics before or after it, if there is one.

    The norm is t ↦ s·t + b for each channel, with s = γ / sqrt(var + eps) and b = β - mean · s. Scaling the weights,
    which are far fewer than a map's values, does the same.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    norm: str | None
    eps: float
    parts: int = 1
    """In how many maps to return the output, of equal parts of the channels."""

    @classmethod
    def of(cls, conv: nn.Conv2d, norm: str | None = None, eps: float = 0.0) -> _Convolution:
        return cls(conv.stride, conv.padding, conv.dilation, conv.groups, norm, eps)

    @property
    def keep(self) -> bool:
        """Whether making the output again would be dear."""
        return self.groups == 1

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None, *norm: Tensor) -> Tensor | tuple[Tensor, ...]:
        if norm:
            scale, shift, _ = self._scale_and_shift(*norm)
            weight, bias = self._fold_weight(weight, scale), self._fold_bias(weight, bias, scale, shift)
        if self.parts == 1:
            return self._convolve(x, weight, bias)
        return tuple(self._convolve(x, *part_of(weight, bias, (i, self.parts), False)) for i in range(self.parts))

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def backward(
        self, grad: Tensor, x: Tensor, needed: Sequence[bool], weight: Tensor, bias: Tensor | None, *norm: Tensor
    ) -> tuple[Tensor | None, ...]:
        used = weight
        if norm:
            scale, shift, per_deviation = self._scale_and_shift(*norm)
            used = self._fold_weight(weight, scale)
        x, used = (tensor.to(grad.dtype) for tensor in (x, used))
        of_parameters = any(needed[1:])
        of_bias = of_parameters and (bias is not None or bool(norm))
        wanted = [needed[0], of_parameters, of_bias]
        grad_x, grad_used, grad_bias = self._backward(grad, x, used, wanted)
        if not of_parameters:
            return grad_x, None, None, *(None for _ in norm)
        if not norm:
            return grad_x, grad_used, grad_bias
        mean = norm[2]
        grad_used, grad_bias = grad_used.to(mean.dtype), grad_bias.to(mean.dtype)
        of_scale = grad_used * weight
        of_weight = grad_used.mul_(self._per_weight(scale))
        if self.norm == _BEFORE:
            of_scale = of_scale.sum((0, 2, 3))
            of_shift = (weight.flatten(1).t() @ grad_bias).view(len(shift), -1).sum(1)
            of_weight.addcmul_(grad_bias.view(-1, 1, 1, 1), self._per_weight(shift))
            of_bias = grad_bias
        else:
            of_scale = of_scale.sum((1, 2, 3))
            of_shift, of_bias = grad_bias, grad_bias * scale
            if bias is not None:
                of_scale += grad_bias * bias
        of_gamma = torch.addcmul(of_scale, mean, of_shift, value=-1).mul_(per_deviation)
        return grad_x, of_weight, None if bias is None else of_bias, of_gamma, of_shift, None, None

    def _backward(self, grad: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor | None, ...]:
        # One after the other: asked for all three at once, oneDNN takes longer.
        settings = (self.stride, self.padding, self.dilation, False, [0] * len(self.stride), self.groups)
        passes = ([wanted[0], False, False], [False, wanted[1], False])
        (of_x, _, _), (_, of_weight, _) = (
            torch.ops.aten.convolution_backward(grad, x, weight, None, *settings, mask) if any(mask) else (None,) * 3
            for mask in passes
        )
        return of_x, of_weight, grad.sum((0, 2, 3)) if wanted[2] else None

    def is_pointwise(self, weight: Tensor) -> bool:
        return self.groups == 1 and weight.shape[2:] == (1, 1) and self.stride == (1, 1) and not any(self.padding)

    def _scale_and_shift(self, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, ...]:
        """s and b, and what s is made of: 1 / sqrt(var + eps)."""
        per_deviation = (var + self.eps).rsqrt_()
        scale = gamma * per_deviation
        return scale, torch.addcmul(beta, mean, scale, value=-1), per_deviation

    def _per_weight(self, values: Tensor) -> Tensor:
        """Values for the channels of the norm, for multiplying with the weights."""
        return values.view(1, -1, 1, 1) if self.norm == _BEFORE else values.view(-1, 1, 1, 1)

    def _fold_weight(self, weight: Tensor, scale: Tensor) -> Tensor:
        return (weight * self._per_weight(scale)).to(weight.dtype)

    def _fold_bias(self, weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
        if self.norm == _BEFORE:
            moved = weight.flatten(1) @ shift.repeat_interleave(weight[0, 0].numel())
            return moved if bias is None else moved + bias
        return (shift if bias is None else bias * scale + shift).to(weight.dtype)


_Step = _Convolution | _Norm | _Gelu | _Relu


def _run(x: Tensor, steps: list[_Step], tensors: list[tuple[Tensor | None, ...]]) -> Tensor:
    if not steps:
        return x
    if _mode.get() == _RECOMPUTE:
        out = None
        for own_steps, own in _in_parts(x, steps, tensors):
            flat = (tensor for tensors_of_step in own for tensor in tensors_of_step)
            part = _Chain.apply(own_steps, [len(tensors_of_step) for tensors_of_step in own], x, *flat)
            out = part if out is None else out.add_(part)
        return out
    for step, own in zip(steps, tensors, strict=True):
        x = step.run(x, *own)
    return x


_Tensors = list[tuple[Tensor | None, ...]]


def _in_parts(x: Tensor, steps: list[_Step], tensors: _Tensors) -> Iterator[tuple[list[_Step], _Tensors]]:
    """The chain itself or, of one with a large hidden map, chains that make a part of it each and add up."""
    count = count_parts(x, len(tensors[0][0])) if _is_expansion(steps, tensors) else 1
    if count == 1:
        yield steps, tensors
        return
    narrow = [
        step._replace(groups=step.groups // count) if isinstance(step, _Convolution) and step.groups > 1 else step
        for step in steps
    ]
    for index in range(count):
        yield (
            narrow,
            [_part(step, own, (index, count), step is steps[-1]) for step, own in zip(steps, tensors, strict=True)],
        )


def _part(step: _Step, tensors: tuple[Tensor | None, ...], part: Part, inputs: bool) -> tuple[Tensor | None, ...]:
    """The tensors with which a step makes a part of the hidden map, or reads it; a norm before it is of all of x."""
    index, count = part
    if not isinstance(step, _Convolution):
        return tuple(tensor.chunk(count)[index] for tensor in tensors)
    weight, bias, *norm = tensors
    if step.norm == _AFTER:
        norm = [tensor.chunk(count)[index] for tensor in norm]
    return (*part_of(weight, bias, part, inputs), *norm)


def _is_expansion(steps: list[_Step], tensors: _Tensors) -> bool:
    """Whether the chain goes from a 1×1 convolution to another without a meeting of channels between."""
    convolutions = [(step, own[0]) for step, own in zip(steps, tensors, strict=True) if isinstance(step, _Convolution)]
    if len(convolutions) < 2 or convolutions[0][0] is not steps[0] or convolutions[-1][0] is not steps[-1]:
        return False
    (first, *inner, last) = convolutions
    apart = all(step.groups == len(weight) for step, weight in inner)
    sums = not last[0].norm and last[0].parts == 1
    return apart and sums and all(step.is_pointwise(weight) for step, weight in (first, last))


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, steps: list[_Step], counts: list[int], x: Tensor, *tensors: Tensor | None) -> Tensor:
        ctx.steps, ctx.counts = steps, counts
        ctx.autocast = _present_autocast(x.device.type)
        kept, keep = [], True
        own = iter(tensors)
        with ctx.autocast():
            for step, count in zip(steps, counts, strict=True):
                kept.append(x if keep else None)
                x = step.run(x, *(next(own) for _ in range(count)))
                keep = step.keep
        ctx.save_for_backward(*kept, *tensors)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *of_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad = of_outputs[0] if len(of_outputs) == 1 else torch.cat(of_outputs, dim=1)
        saved = ctx.saved_tensors
        inputs, rest, needed = (
            list(saved[: len(ctx.steps)]),
            iter(saved[len(ctx.steps) :]),
            iter(ctx.needs_input_grad[3:]),
        )
        tensors = [[next(rest) for _ in range(count)] for count in ctx.counts]
        needs = [[next(needed) for _ in range(count)] for count in ctx.counts]
        with ctx.autocast():
            for i, (step, own) in enumerate(zip(ctx.steps[:-1], tensors, strict=False)):
                if inputs[i + 1] is None:
                    inputs[i + 1] = step.run(inputs[i], *own)
        if isinstance(ctx.steps[-1], _Gelu):
            grad = grad.clone()  # which is not ours to write over, as what the steps return is
        grads: list[Tensor | None] = []
        for i in range(len(ctx.steps) - 1, -1, -1):
            further = ctx.needs_input_grad[2] or any(need for before in needs[:i] for need in before)
            x = inputs.pop()
            grad, *of_own = ctx.steps[i].backward(grad, x, [further, *needs[i]], *tensors[i])
            grads[:0] = of_own
            if not further:
                return None, None, None, *(None for before in tensors[:i] for _ in before), *grads
            grad = grad.to(x.dtype)
        return None, None, grad if ctx.needs_input_grad[2] else None, *grads
