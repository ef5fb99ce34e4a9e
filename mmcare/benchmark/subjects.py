"""What can be measured, by name, and the forms in which it is measured."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.scale import LayerScale
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from .counting import SHAPES, build, count, image_channels, padded_shape
from ..errors import UserError
from ..models.base import PyramidBackbone
from .memory import memory_errors_told
from .plain import plain

PEERS: dict[str, dict[str, Any]] = {
    "resnet50": dict(type="mmdet.ResNet", depth=50, out_indices=(0, 1, 2, 3)),
    "swin-t": dict(
        type="mmdet.SwinTransformer",
        embed_dims=96,
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        out_indices=(0, 1, 2, 3),
    ),
    "pvtv2-b1": dict(
        type="mmdet.PyramidVisionTransformerV2", embed_dims=64, num_layers=[2, 2, 2, 2], out_indices=(0, 1, 2, 3)
    ),
    "mobilenetv2": dict(type="mmdet.MobileNetV2", out_indices=(1, 2, 4, 7)),
}
"""What a user would pick instead: mmdet's backbones, as its configs build them, with four maps at strides 4 to 32."""

KEPT_SHARE = 0.3
"""How much the form memory-budget keeps: with less, the compiler takes longer and the step is no faster."""

STEPS = {
    "plain": "the authors' operations one for one; ours only",
    "reparameterized": "mmcare.reparameterize; ours only, in inference",
    "channels-last": "weights and images in the memory format NHWC",
    "bf16": "computed in bfloat16; training keeps float32 weights (autocast), as --amp does",
    "compiled": "torch.compile with inductor, in inference with the weights frozen into it",
    "memory-budget": f"of what the compiler keeps for the backward pass, {KEPT_SHARE:.0%}; compiled training only",
    "cuda-graph": "recorded once and replayed; in inference on CUDA",
}
"""What a form is made of, in the order in which it is applied. A form without any of them is ``eager``."""

FORMS = {
    "inference": (
        "plain",
        "eager",
        "channels-last",
        "reparameterized",
        "reparameterized+channels-last",
        "reparameterized+channels-last+compiled",
        "reparameterized+channels-last+bf16",
        "reparameterized+channels-last+bf16+compiled",
    ),
    "training": ("plain", "eager", "channels-last", "channels-last+compiled"),
}
"""The forms to measure unless the user names others."""


def check_form(form: str, training: bool, device: str) -> tuple[str, ...]:
    """The steps of a form, in their order.

    Raises:
        UserError: there is no such form, or not here.
    """
    steps = () if form == "eager" else tuple(form.split("+"))
    unknown = [step for step in steps if step not in STEPS]
    if unknown or len(set(steps)) != len(steps):
        raise UserError(f"there is no form {form!r}: give eager, or one or more of {', '.join(STEPS)} joined by +")
    if {"plain", "reparameterized"} <= set(steps):
        raise UserError(f"there is no form {form!r}: a network is either plain or reparameterized")
    if training and (wrong := [step for step in steps if step in ("reparameterized", "cuda-graph")]):
        raise UserError(f"the form {form!r} is for inference, as {wrong[0]} is: leave it out of --forms, or --train")
    if "memory-budget" in steps and not (training and "compiled" in steps):
        raise UserError(f"the form {form!r} is not possible: memory-budget goes with compiled, and with --train")
    if "cuda-graph" in steps and ("compiled" in steps or device != "cuda"):
        raise UserError(f"the form {form!r} is not possible: cuda-graph records what is not compiled, on --device cuda")
    return tuple(step for step in STEPS if step in steps)


@dataclass
class Subject:
    """A model to be measured, built once; each of its forms is made from a copy.

    Attributes:
        name: as the user gave it.
        model: in eval mode, with random weights.
        shape: the usual height and width of an image for it.
    """

    name: str
    model: nn.Module
    shape: tuple[int, int]

    @property
    def is_ours(self) -> bool:
        """Whether it is one of our backbones, or has one."""
        return isinstance(getattr(self.model, "backbone", self.model), PyramidBackbone)

    @property
    def is_detector(self) -> bool:
        """Whether it is a detector or a segmentor, with a backbone in it."""
        return hasattr(self.model, "backbone")

    @property
    def parts(self) -> tuple[str, ...]:
        """What of it is measured: of a detector the whole and its backbone alone, which shows what the head costs."""
        return ("whole", "backbone") if self.is_detector else ("backbone",)

    def cost(self, part: str, height: int, width: int) -> tuple[int, int]:
        """Parameters, and MACs for one image of the size that the preprocessor pads this one to."""
        rows = {name: (parameters, macs) for name, parameters, macs in count(self.model, height, width)}
        if part == "backbone":
            return rows["backbone"]
        rows.pop("whole model", None)
        # An auxiliary head has parameters, but runs in the loss only.
        macs = sum(macs for name, (_, macs) in rows.items() if name != "auxiliary_head")
        return sum(parameters for parameters, _ in rows.values()), macs


def resolve(name: str) -> Subject:
    """The subject of a name.

    Args:
        name: one of :data:`PEERS`; a backbone as ``TYPE:ARCH`` with further ``,KEY=VALUE``; a config file; or
            ``CONFIG@PEER``, the config with that peer as its backbone.

    Raises:
        UserError: there is nothing of that name, or it cannot be built.
    """
    torch.manual_seed(0)
    config, at, peer = name.partition(".py@")
    if at:
        if peer not in PEERS:
            raise UserError(f"{name} asks for the backbone {peer!r}: those to put into a config are {', '.join(PEERS)}")
        own, _ = build(f"{config}.py")
        # A config may leave the first of the four maps out
        indices = [PEERS[peer]["out_indices"][i] for i in getattr(own.backbone, "out_indices", range(4))]
        backbone = dict(PEERS[peer], out_indices=indices)
        widths = [feature.shape[1] for feature in _maps(_build_peer(backbone))]
        settings = {"model.backbone": dict(backbone, _delete_=True), "model.neck.in_channels": widths}
        model, shape = build(f"{config}.py", settings)
    elif name in PEERS:
        model, shape = _build_peer(PEERS[name]), SHAPES["backbone"]
    else:
        try:
            model, shape = build(name)
        except UserError as error:
            if "is neither a config" not in str(error):
                raise
            raise UserError(
                f"there is nothing called {name} to measure: give a config (a .py file), a backbone such as "
                f"mmcare.CARE:s1, or one of {', '.join(PEERS)}"
            ) from None
    if hasattr(model, "roi_head"):
        raise UserError(f"{name} has two stages, whose cost depends on what is in the image: give a one-stage detector")
    _unsettle(model)
    return Subject(name, model, shape)


def _unsettle(model: nn.Module) -> None:
    """Gives norms and layer scales values as of a training, so that a form that treats them wrongly shows."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.7, 1.4)
                module.weight.normal_(1, 0.1)
                module.bias.normal_(0, 0.1)
            elif isinstance(module, LayerScale):
                module.weight.normal_(0.3, 0.1)


def _build_peer(settings: dict[str, Any]) -> nn.Module:
    from mmengine.registry import MODELS

    try:
        model = MODELS.build(dict(settings))
    except (ImportError, KeyError) as error:  # mmdet's absence, told by mmengine in either way
        raise UserError(f"the peers are mmdet's backbones, and {settings['type']} cannot be had: {error}") from error
    model.eval()
    return model


def _maps(backbone: nn.Module) -> Sequence[Tensor]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        return backbone(torch.empty(1, 3, 64, 64))


def prepare(subject: Subject, steps: Sequence[str], device: str, training: bool) -> nn.Module:
    """A copy of a subject's model, changed as a form's steps change a model, in the mode in which it is measured."""
    model = copy.deepcopy(subject.model)
    if "plain" in steps:
        model = plain(model)
    if "reparameterized" in steps:
        import mmcare

        model = mmcare.reparameterize(model)
    if "bf16" in steps and not training:
        model = model.to(torch.bfloat16)
    model = model.to(device)
    if "channels-last" in steps:
        model = model.to(memory_format=torch.channels_last)
    model.train(training)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()  # frozen, as detectors are trained
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0  # or each call would compute something else
    return model


@dataclass(frozen=True)
class Case:
    """One subject in one form at one size.

    Attributes:
        subject: its name, see :func:`resolve`.
        part: ``"whole"`` or ``"backbone"``.
        form: see :data:`STEPS`.
        batch, shape: of the images.
        device: ``"cpu"`` or ``"cuda"``.
        training: with a backward pass.
    """

    subject: str
    part: str
    form: str
    batch: int
    shape: tuple[int, int]
    device: str
    training: bool

    def __str__(self) -> str:
        alone = ", backbone alone" if self.part == "backbone" and ".py" in self.subject else ""
        return f"{self.subject} ({self.form}{alone}) at {self.shape[0]}×{self.shape[1]}"


class Step:
    """What a case runs: called, a forward pass, or a forward and a backward pass.

    Args:
        case: what to run.
        subject: the case's.

    Raises:
        UserError: there is not enough memory for the images.
    """

    def __init__(self, case: Case, subject: Subject) -> None:
        self.case, self.subject = case, subject
        self.steps = check_form(case.form, case.training, case.device)
        model = prepare(subject, self.steps, case.device, case.training)
        self.model = model if case.part == "whole" else getattr(model, "backbone", model)
        with memory_errors_told(case):
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
        if "bf16" in self.steps and not case.training:
            images = images.bfloat16()
        return images.to(case.device)

    def prepare_run(self) -> None:
        """Applies the steps that change how a model is run."""
        # A detector's own forward pass, without the loss and without what makes boxes of its maps
        self.run: Callable[[Tensor], Any] = (
            partial(self.model, mode="tensor") if self.case.part == "whole" else self.model
        )
        if "compiled" in self.steps:
            backend = _inductor_within_budget if "memory-budget" in self.steps else "inductor"
            self.run = _compiled(self.run, backend, None if self.case.training else self.images)
        if "cuda-graph" in self.steps:
            self.run = _recorded(self.run, self.images)

    def forward(self) -> list[Tensor]:
        """The maps of the forward pass, in training with their graph."""
        training = self.case.training
        autocast = torch.autocast(self.case.device, torch.bfloat16, enabled=training and "bf16" in self.steps)
        with torch.inference_mode(not training), autocast:
            outputs = self.run(self.images)
        return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]

    def __call__(self) -> None:
        outputs = self.forward()
        if not self.case.training:
            return
        if self.gradients is None:
            self.gradients = [torch.ones_like(output) for output in outputs]
        torch.autograd.backward(outputs, self.gradients)
        self.model.zero_grad(set_to_none=True)


def _compiled(
    run: Callable[[Tensor], Any], backend: str | Callable[..., Any], images: Tensor | None
) -> Callable[[Tensor], Any]:
    """Compiled for one size, so that no subject has to pay for the others' sizes; with images, for inference.

    Each subject and size is compiled from the same code: torch's limit on how often that may be would make the later
    ones run eagerly, without a word.
    """
    import torch._dynamo
    import torch._inductor

    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 2**20
    compiled = torch.compile(run, backend=backend, dynamic=False)
    if images is not None:
        # As one of torch.compile's own options it would come too late: the graph would already take weights as inputs.
        with torch._inductor.config.patch(freezing=True), torch.inference_mode():
            compiled(images)
    return compiled


def _inductor_within_budget(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """A backend of its own, or torch would take the graph that it has compiled without the budget."""
    import torch._functorch.config
    from torch._inductor.compile_fx import compile_fx

    with torch._functorch.config.patch(activation_memory_budget=KEPT_SHARE):
        return compile_fx(graph, inputs)


def _recorded(run: Callable[[Tensor], Any], images: Tensor) -> Callable[[Tensor], Any]:
    """Replays a CUDA graph of the pass for these very images."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.inference_mode():
        for _ in range(3):  # what is set up in the first calls must not be recorded
            run(images)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.inference_mode():
        outputs = run(images)

    def replay(_: Tensor) -> Any:
        graph.replay()
        return outputs

    return replay


def plan(
    subjects: Sequence[Subject],
    forms: Sequence[str],
    batch: int,
    shapes: Sequence[tuple[int, int]],
    device: str,
    training: bool,
) -> list[Case]:
    """All that a run measures, a subject's forms at one size together and its plain form first among them.

    Args:
        subjects, forms: each form of each subject, except the plain and the reparameterized forms of what is not ours.
        batch: images in a batch.
        shapes: of the images; none for each subject's usual one.
        device: ``"cpu"`` or ``"cuda"``.
        training: with a backward pass.

    Raises:
        UserError: there is nothing to measure of a subject, or no such form.
    """
    cases = []
    forms = list(dict.fromkeys(forms))
    for subject in subjects:
        ours = {"plain", "reparameterized"}
        own = [form for form in forms if subject.is_ours or not ours & set(check_form(form, training, device))]
        if not own:
            raise UserError(
                f"none of the forms {', '.join(forms)} is one of {subject.name}'s: it is not ours, give eager"
            )
        own.sort(key=lambda form: form != "plain")
        for part in subject.parts:
            for shape in shapes or [subject.shape]:
                cases += [Case(subject.name, part, form, batch, shape, device, training) for form in own]
    return cases
