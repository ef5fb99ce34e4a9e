"""Training stores little for the backward pass, with the same gradients as the plain form."""

import copy
import subprocess
import sys
from pathlib import Path

import helpers
import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from mmcare.benchmark import kept_for_backward
from mmcare.memory import Chain, frozen_norms, keep_everything
from mmcare.memory import chain as thresholds
from mmcare.models.care import Interaction
from mmcare.models.casvit import MLP, AdditiveTokenMixer, Integration

TINY = {
    "CARE": dict(
        arch=dict(
            depths=(1, 1, 1, 2), memory_channels=(4, 4, 8, 8), ratios=((2, 2),) * 4, head_channels=(None, None, 4, 4)
        ),
        layer_scale_init_value=0.5,
    ),
    "CASViT": dict(arch=dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 12))),
}
families = pytest.mark.parametrize("family", TINY)


@pytest.fixture(autouse=True)
def no_map_is_small(monkeypatch):
    """Treat the small maps of the tests as large ones."""
    monkeypatch.setattr(thresholds, "FEW_VALUES", {"cpu": 0})
    monkeypatch.setattr(thresholds, "FEW_PIXELS", 0)
    monkeypatch.setattr(frozen_norms, "FOLDED_VALUES", {"cpu": 0})
    monkeypatch.setattr(frozen_norms, "PIXELS_PER_WEIGHT", 0)


def build(family, **kwargs):
    """Return a small network in training mode, without norms that are identities."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = MODELS.build(dict(type=f"mmcare.{family}", **{**TINY[family], **kwargs}))
    for name, tensor in model.state_dict().items():
        noise = torch.rand(tensor.shape, generator=generator)
        if name.endswith(("running_var", "norm.weight", "norm1.weight", "norm2.weight")):
            tensor.copy_(0.5 + noise)
        elif name.endswith(("running_mean", "bias")):
            tensor.copy_(noise - 0.5)
        elif tensor.dim() > 1:
            tensor.copy_((noise - 0.5) * 2 / tensor[0].numel() ** 0.5)
    return model.train()


def images(size=64, batch=2, dtype=torch.float32):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


def gradients(model, x, forward=None):
    """Return the gradients of all parameters and of the input, and the buffers after the step."""
    model.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    torch.manual_seed(2)  # for drop path
    weights = torch.Generator().manual_seed(3)
    outputs = (model if forward is None else forward)(x)
    # A sum with random weights: the gradient of the plain sum vanishes in norms in training mode.
    torch.autograd.backward(
        [(out.float() * torch.randn(out.shape, generator=weights)).sum().to(x.dtype) for out in outputs]
    )
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"input": x.grad, **found, **{name: buffer.clone() for name, buffer in model.named_buffers()}}


def assert_same(found, wanted, tolerance):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if value is None:
            assert found[name] is None, name
            continue
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        scale = max(value.double().norm().item(), 1e-3)
        assert (found[name].double() - value.double()).norm().item() <= tolerance * scale, name


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("family", "arch"), helpers.ARCHS)
def test_at_most_half_is_saved_and_a_fifth_with_checkpointing(family, arch, layout, monkeypatch):
    model = MODELS.build(dict(type=f"mmcare.{family}", arch=arch)).train().to(memory_format=layout)
    monkeypatch.undo()  # the documented figures are for this size, at which some maps count as small
    x = images(512, batch=1).contiguous(memory_format=layout)
    with keep_everything():
        plain = kept_for_backward(lambda: model(x), model)
    saved = kept_for_backward(lambda: model(x), model)
    for stage in model.stages:
        stage.with_cp = True
    assert plain / 10 < saved < plain / 2
    assert 0 < kept_for_backward(lambda: model(x), model) < plain / 5


@families
@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(norm_eval=False),
        dict(drop_path_rate=0.5),
        dict(with_cp=True, norm_eval=False, drop_path_rate=0.5),
        dict(frozen_stages=2),
    ],
    ids=str,
)
def test_gradients_and_statistics_are_the_plain_networks(family, settings):
    results = {}
    for mode in ("plain", "ours", "channels last"):
        model, x = build(family, **settings).double(), images(dtype=torch.float64)
        if mode == "plain":
            with keep_everything():
                results[mode] = gradients(model, x)
            continue
        if mode == "channels last":
            model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
        results[mode] = gradients(model, x)
    assert_same(results["ours"], results["plain"], 1e-9)
    assert_same(results["channels last"], results["plain"], 1e-9)


@families
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_float32_gradients_are_right(family, layout):
    exact = gradients(build(family).double(), images(dtype=torch.float64))
    found = gradients(build(family).to(memory_format=layout), images().contiguous(memory_format=layout))
    assert_same(found, {name: value.to(found[name].dtype) for name, value in exact.items()}, 1e-4)


@families
@pytest.mark.parametrize("norm_eval", [True, False])
def test_mixed_precision(family, norm_eval):
    """bfloat16 errors do not grow, and gradients of parameters stay float32."""

    def half(model):
        def forward(x):
            with torch.autocast("cpu", torch.bfloat16):
                return model(x)

        return forward

    exact = gradients(build(family, norm_eval=norm_eval), images())
    model = build(family, norm_eval=norm_eval)
    with keep_everything():
        plain = gradients(model, images(), half(model))
    model = build(family, norm_eval=norm_eval)
    found = gradients(model, images(), half(model))
    assert all(found[name].dtype == value.dtype for name, value in plain.items())

    def error(results):
        names = [name for name, _ in model.named_parameters()]
        total = torch.cat([(results[name] - exact[name]).flatten() for name in names]).norm()
        return (total / torch.cat([exact[name].flatten() for name in names]).norm()).item()

    assert error(found) < 1.3 * error(plain) + 1e-3 < 0.5


@pytest.mark.parametrize(
    "layers",
    [
        lambda: Interaction(4, 8),
        lambda: Interaction(4, 8, project=False),
        lambda: Integration(4),
        lambda: MLP(4),
        lambda: AdditiveTokenMixer(4),
        lambda: Chain(nn.BatchNorm2d(4), nn.Conv2d(4, 3, 2, 2), nn.ReLU()),
        lambda: Chain(nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, 1, 1)),
    ],
)
def test_numerical_gradients(layers):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    layers = layers().double().train()
    for layer in layers.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
            for tensor in (layer.running_mean, layer.running_var, layer.weight.data, layer.bias.data):
                tensor.uniform_(0.5, 1.5)
    assert torch.autograd.gradcheck(lambda x, *_: layers(x), (x, *layers.parameters()), fast_mode=True)


@families
def test_training_on_a_cpu_is_channels_last_within_and_as_the_images_outside(family):
    model, seen = build(family), []
    for stage in model.stages:
        stage.register_forward_hook(lambda stage, inputs, out: seen.append(out))
    for layout in (torch.contiguous_format, torch.channels_last):
        outputs = model(images().contiguous(memory_format=layout))
        assert all(out.is_contiguous(memory_format=layout) for out in outputs)
    assert len(seen) == 8 and all(out.is_contiguous(memory_format=torch.channels_last) for out in seen)


@families
def test_small_maps_are_kept(family, monkeypatch):
    def share(batch):
        """What is kept, of what the plain operations keep."""
        x = images(batch=batch).contiguous(memory_format=torch.channels_last)  # as it is in training
        kept = kept_for_backward(lambda: model(x), model)
        with keep_everything():
            return kept / kept_for_backward(lambda: model(x), model)

    model = build(family)
    everything = pytest.approx(1, abs=0.02)  # training copies the parts of a split map, where convolutions would
    assert share(batch=1) < 0.8
    monkeypatch.setattr(thresholds, "FEW_PIXELS", 64 * 64)
    assert share(batch=1) == everything
    assert share(batch=2) < 0.97  # of the stem
    monkeypatch.setattr(thresholds, "FEW_VALUES", {"cpu": 2**20})
    assert share(batch=2) == everything
    monkeypatch.undo()
    assert share(batch=1) == everything


def test_only_wanted_gradients_are_computed():
    torch.manual_seed(0)
    for wanted in ("input", "norm.weight", "fc1.bias", "conv.weight", "fc2.weight"):
        results = []
        for context in (torch.enable_grad, keep_everything):
            torch.manual_seed(0)
            module = Interaction(4, 8).train()
            module.norm.eval()
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(name == wanted)
            x = torch.randn(1, 4, 6, 6, requires_grad=wanted == "input")
            with context():
                module(x).square().sum().backward()
            results.append({"input": x.grad, **{name: p.grad for name, p in module.named_parameters()}})
        assert [name for name, value in results[0].items() if value is not None] == [wanted]
        assert_same(*results, 1e-5)


@families
def test_a_module_used_twice_and_gradients_in_two_parts(family):
    model, x = build(family).double(), images(dtype=torch.float64)

    def twice(x):
        return [a + b for a, b in zip(model(x), model(x.flip(3)), strict=True)]

    found = gradients(model, x, twice)
    with keep_everything():
        wanted = gradients(model, x, twice)
    assert_same(found, wanted, 1e-9)


@families
def test_without_a_backward_pass_nothing_is_kept_and_in_evaluation_nothing_computed_again(family):
    model, x = build(family), images()
    with torch.no_grad():
        assert kept_for_backward(lambda: model(x), model) == 0
    model.eval()
    found, kept = model(x), kept_for_backward(lambda: model(x), model)
    with keep_everything():
        assert kept == pytest.approx(kept_for_backward(lambda: model(x), model), rel=0.02)
        assert all(torch.equal(a, b) for a, b in zip(found, model(x), strict=True))


@families
def test_transforms_of_functions_and_copies(family):
    model, x = build(family).double(), images(dtype=torch.float64)
    wanted = gradients(model, x)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters):
        weights = torch.Generator().manual_seed(3)
        outputs = torch.func.functional_call(model, parameters, (x,))
        return sum((out.float() * torch.randn(out.shape, generator=weights)).sum().double() for out in outputs)

    assert_same(torch.func.grad(loss)(parameters), {name: wanted[name] for name in parameters}, 1e-5)
    # functional_call without a transform: in the backward pass the model has its own parameters again.
    lent = {name: (1.1 * value).requires_grad_() for name, value in parameters.items()}
    found = torch.autograd.grad(loss(lent), list(lent.values()))
    with keep_everything():
        plain = torch.autograd.grad(loss(lent), list(lent.values()))
    assert_same(dict(enumerate(found)), dict(enumerate(plain)), 1e-9)
    assert_same(gradients(copy.deepcopy(model), x), gradients(model, x), 1e-9)


@pytest.mark.stack
@families
@pytest.mark.parametrize("settings", [dict(), dict(norm_eval=False)], ids=str)
def test_compiles_without_a_break(family, settings):
    torch._dynamo.reset()
    # In float64: the gradient of a bias before a norm with batch statistics is zero up to rounding errors.
    model, x = build(family, **settings).double(), images(dtype=torch.float64)
    found = gradients(model, x, torch.compile(model, backend="aot_eager", fullgraph=True))
    assert_same(found, gradients(build(family, **settings).double(), x), 1e-4)


def test_hooks_are_called():
    """Hooks on a layer within a chain and global hooks, in both passes."""
    torch.manual_seed(0)
    layers, seen = Interaction(4, 8).train(), []

    def record(name):
        return lambda module, *_: seen.append((name, type(module).__name__))

    handles = [
        layers.fc1.register_forward_hook(record("after")),
        layers.fc1.register_full_backward_pre_hook(record("before backward")),
        layers.conv.register_full_backward_hook(record("after backward")),
        nn.modules.module.register_module_forward_pre_hook(record("any")),
    ]
    try:
        out = layers(torch.randn(1, 4, 6, 6, requires_grad=True))
        forward = ["Interaction", "BatchNorm2d", "Conv2d", "GELU", "Conv2d", "Conv2d"]
        assert seen == [
            *(("any", kind) for kind in forward[:3]),
            ("after", "Conv2d"),
            *(("any", k) for k in forward[3:]),
        ]
        out.sum().backward()
        assert seen.count(("before backward", "Conv2d")) == seen.count(("after backward", "Conv2d")) == 1
    finally:
        for handle in handles:
            handle.remove()


@families
def test_a_recomputed_block_runs_twice_and_no_more(family):
    """Nothing in it is computed a third time, and the norms count no batch twice."""
    model, calls = build(family, with_cp=True, norm_eval=False), []
    for name, module in model.stages.named_modules():
        if isinstance(module, nn.GELU | nn.Conv2d) and ".downsample." not in name:
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    torch.autograd.backward([out.sum() for out in model(images())])
    acts = [calls.count(name) for name in set(calls) if name.endswith("act")]
    assert acts and set(acts) == {2}
    assert max(map(calls.count, set(calls))) == 2
    norms = [norm for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {1}


DISTRIBUTED = """
import sys, torch, torch.distributed as dist
sys.path[:0] = {paths!r}
from test_chain import build, images, gradients, assert_same
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[2], 2), rank=int(sys.argv[1]), world_size=2)
for family in ("CARE", "CASViT"):
    model = build(family)
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    found = gradients(model, images()[dist.get_rank() : dist.get_rank() + 1], parallel)
    alone = build(family)
    halves = [gradients(alone, images()[i : i + 1]) for i in (0, 1)]
    wanted = {{name: (halves[0][name] + halves[1][name]) / 2 for name, _ in alone.named_parameters()}}
    assert_same({{name: found[name] for name in wanted}}, wanted, 1e-4)
print("same")
"""


def test_distributed_training_averages_the_gradients(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(DISTRIBUTED.format(paths=[str(folder) for folder in Path(__file__).parents[:2]]))
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in (0, 1)
    ]
    for process in ranks:
        output = process.communicate(timeout=300)[0].decode()
        assert process.returncode == 0 and "same" in output, output
