"""Steps: cases prepared to run, each with its model in the requested form, its images, and the pass to measure."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from ..fast import keep_freed_memory, reparameterize
from ..memory import keep_everything
from .cases import Case
from .counting import image_channels, padded_shape
from .forms import KEPT_SHARE, check_form
from .memory import report_out_of_memory
from .private import activation_budget, frozen_weights, lift_recompile_limits
from .subjects import Subject


class Step:
    """A callable that runs a case: a forward pass, in training with a backward pass.

    Args:
        case: the case to run.
        subject: the subject of the case.

    Raises:
        UserError: there is not enough memory, or torch lacks a feature that the form needs.
    """

    def __init__(self, case: Case, subject: Subject) -> None:
        self.case, self.subject = case, subject
        self.steps = check_form(case.form, case.training, case.device)
        if "keep-freed-memory" in self.steps:
            keep_freed_memory()
        model = in_form(subject.model, self.steps, case.device, case.training)
        self.model = model if case.part == "whole" else getattr(model, "backbone", model)
        with report_out_of_memory(case):
            self.images = self._random_images()
            self.prepare_run()
        self.gradients: list[Tensor] | None = None

    def _random_images(self) -> Tensor:
        case = self.case
        channels = image_channels(getattr(self.subject.model, "backbone", self.subject.model))
        size = padded_shape(self.subject.model, *case.shape)
        images = torch.randn(case.batch, channels, *size, generator=torch.Generator().manual_seed(0))
        if "channels-last" in self.steps:
            images = images.to(memory_format=torch.channels_last)
        return images.to(case.device, _dtype(self.steps, case.training))

    def prepare_run(self) -> None:
        """Apply the steps that change how a model is run."""
        # For a detector or segmentor, the forward pass of the network: no loss and no postprocessing.
        self.run: Callable[[Tensor], Any] = (
            partial(self.model, mode="tensor") if self.case.part == "whole" else self.model
        )
        if "compiled" in self.steps:
            self._compile()
        if "cuda-graph" in self.steps:
            self.run = _recorded(self.run, self.images)

    def _compile(self) -> None:
        """Compile the pass for one size, as other subjects' sizes must not make its graph dynamic."""
        lift_recompile_limits()
        options, setting = None, nullcontext()
        if not self.case.training:
            setting = frozen_weights()
        elif "memory-budget" in self.steps:
            # The option has no effect, but prevents torch from reusing the graph of another form.
            options, setting = {"freezing": False}, activation_budget(KEPT_SHARE)
        self.run = torch.compile(self.run, dynamic=False, options=options)
        with setting:
            self.forward()

    def forward(self) -> list[Tensor]:
        """Return the outputs of the forward pass, in training with their autograd graph."""
        training = self.case.training
        with ExitStack() as contexts:
            contexts.enter_context(torch.inference_mode(not training))
            contexts.enter_context(self._kept())
            if training and "bf16" in self.steps:
                contexts.enter_context(torch.autocast(self.case.device, torch.bfloat16))
            outputs = self.run(self.images)
        return list(tensors(outputs))

    def _kept(self) -> AbstractContextManager[None]:
        return keep_everything() if "plain" in self.steps else nullcontext()

    def __call__(self) -> None:
        outputs = self.forward()
        if not self.case.training:
            return
        if self.gradients is None:
            self.gradients = [torch.ones_like(output) for output in outputs]
        with self._kept():
            torch.autograd.backward(outputs, self.gradients)
        self.model.zero_grad(set_to_none=True)


def in_form(model: nn.Module, steps: Sequence[str], device: str, training: bool) -> nn.Module:
    """Return a copy of a model with the steps of a form applied, in training or eval mode."""
    model = reparameterize(model) if "reparameterized" in steps else copy.deepcopy(model)
    model = model.to(device, _dtype(steps, training))
    if "channels-last" in steps:
        model = model.to(memory_format=torch.channels_last)
    model.train(training)
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.eval()  # frozen norms, as in detector training
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0  # otherwise each call would compute something else
    return model


def _dtype(steps: Sequence[str], training: bool) -> torch.dtype:
    """Return the type of a form's weights and images."""
    if "fp16" in steps:
        return torch.float16
    return torch.bfloat16 if "bf16" in steps and not training else torch.float32


def tensors(outputs: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and dicts."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, dict | list | tuple):
        for item in outputs.values() if isinstance(outputs, dict) else outputs:
            yield from tensors(item)


def _recorded(run: Callable[[Tensor], Any], images: Tensor) -> Callable[[Tensor], Any]:
    """Record a CUDA graph of the pass for these images, and return a function that replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.inference_mode():
        for _ in range(3):  # the setup work of the first calls must not be recorded
            run(images)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.inference_mode():
        outputs = run(images)

    def replay(_: Tensor) -> Any:
        graph.replay()
        return outputs

    return replay
