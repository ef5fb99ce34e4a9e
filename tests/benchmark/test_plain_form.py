"""The plain form is the authors' network: the same outputs and operations, and no savings of memory or time."""

from collections import Counter

import pytest
import torch
from helpers import ARCHS, DETECTOR, backbone_weights, expected, image, relative_error
from mmengine.registry import MODELS
from torch import nn

from mmcare.benchmark import kept_for_backward, resolve
from mmcare.benchmark.profiling import profile
from mmcare.benchmark.subjects import Subject

NO_WORK = {
    "empty",
    "alias",
    "detach",
    "expand",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "t",
    "transpose",
    "unsqueeze",
    "view",
}


@pytest.mark.stack
@pytest.mark.parametrize(("family", "arch"), ARCHS)
def test_the_plain_form_gives_the_authors_outputs_and_the_trained_ones_gradients(family, arch, make_steps):
    model = MODELS.build(dict(type=f"mmcare.{family}", arch=arch))
    model.load_state_dict(backbone_weights(family, arch), strict=False)
    subject = Subject(arch, model.eval(), (64, 96))
    (inference,) = make_steps(subject, ["plain"], (64, 96))
    training = make_steps(subject, ["plain", "eager"], (64, 96), training=True)
    for step in (inference, *training):
        step.images = image()
        for output, wanted in zip(step.forward(), expected(family, arch), strict=True):
            assert relative_error(output.detach(), wanted) < 1e-5
    gradients = []
    for step in training:
        step.images.requires_grad_()
        loss = sum(output.square().mean() for output in step.forward())
        gradients.append(torch.autograd.grad(loss, [step.images, *step.model.parameters()]))
    largest = max(float(gradient.abs().max()) for gradient in gradients[1])
    for found, wanted in zip(*gradients, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6 * largest)


def operators(step):
    """Count the calls of each operator in a pass: convolutions of all kernels as one, without views and allocations."""
    calls = Counter()
    for kind in profile(step, "cpu", repeats=1):
        name = kind.name
        if "convolution" in name:
            name = "convolution backward" if name.endswith("backward") else "convolution"
        calls[name] += kind.calls
    return Counter({name: count for name, count in calls.items() if name not in NO_WORK})


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("mmcare.CARE:s0", {"add", "bmm", "cat", "div", "elu", "mean", "mul", "sum"}),
        ("mmcare.CASViT:xs", {"add", "mean", "mul", "sigmoid"}),
    ],
)
def test_the_plain_form_calls_each_layer_once_and_nothing_beside(name, others, make_steps):
    (step,) = make_steps(resolve(name), ["plain"], (256, 256))
    layers = Counter(type(module) for module in step.model.modules())
    once = {
        "convolution": layers[nn.Conv2d],
        "batch_norm": layers[nn.BatchNorm2d],
        "gelu": layers[nn.GELU],
        "relu": layers[nn.ReLU],
    }
    called = operators(step)
    assert {layer: called[layer] for layer in once} == once
    assert set(called) - set(once) <= others

    (step,) = make_steps(resolve(name), ["plain"], (256, 256), training=True)
    training = operators(step)
    assert {operator: training[operator] for operator in once} == once, "something was computed again"
    assert training["convolution backward"] == layers[nn.Conv2d]
    assert training["batch_norm_backward"] == layers[nn.BatchNorm2d]
    assert training["gelu_backward"] == layers[nn.GELU]


def test_the_plain_form_of_a_detector_keeps_all_that_its_backbone_makes(tmp_path, make_steps):
    (tmp_path / "detector.py").write_text(DETECTOR)
    subject = resolve(str(tmp_path / "detector.py"))
    made = make_steps(subject, ["plain", "eager"], (256, 256), training=True)
    for plain, eager in (made[:2], made[2:]):
        assert (plain.case.form, eager.case.form) == ("plain", "eager")
        kept, less = (kept_for_backward(step.forward, step.model) for step in (plain, eager))
        assert less < kept - 2**20
        for output, wanted in zip(plain.forward(), eager.forward(), strict=True):
            assert relative_error(output, wanted) < 1e-5
