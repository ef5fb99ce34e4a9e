"""Training keeps little for the backward pass, and its gradients are those of the plain networks."""

import copy
import subprocess
import sys

import pytest
import helpers as reference
import torch
from mmengine.registry import MODELS
from torch import nn

from mmcare.benchmark.memory import kept_for_backward
from mmcare.memory import parts, recompute
from mmcare.models.care import Interaction
from mmcare.models.casvit import MLP, AdditiveTokenMixer, Integration
from mmcare.memory.recompute import chain, chain_and_split, everything_saved

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
    """Lets the tests' small maps be treated as large ones."""
    monkeypatch.setattr(recompute, "SMALL_CHAIN", 0)
    monkeypatch.setattr(recompute, "SMALL_PART", 0)
    monkeypatch.setattr(recompute, "FEW_PIXELS", 0)
    monkeypatch.setattr(recompute, "FOLDED_VALUES", 0)


def build(family, **kwargs):
    """A small network, no norm of which is an identity, in training mode."""
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
    """Of all parameters, of the input, and the buffers after the step."""
    model.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    torch.manual_seed(2)  # for drop path
    weights = torch.Generator().manual_seed(3)
    outputs = (model if forward is None else forward)(x)
    # a sum with random weights: norms in training mode make the plain sum's gradient vanish
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
@pytest.mark.parametrize(("family", "arch"), reference.ARCHS)
def test_at_most_half_is_saved_and_a_fifth_with_checkpointing(family, arch, layout, monkeypatch):
    model = MODELS.build(dict(type=f"mmcare.{family}", arch=arch)).train().to(memory_format=layout)
    monkeypatch.undo()  # at this size, of which the figures are told, some maps are small
    x = images(512, batch=1).contiguous(memory_format=layout)
    with everything_saved():
        plain = kept_for_backward(lambda: model(x), model)
    saved = kept_for_backward(lambda: model(x), model)
    for stage in model.stages:
        stage.with_cp = True
    assert plain / 10 < saved < plain / 2
    assert 0 < kept_for_backward(lambda: model(x), model) < plain / 5


@families
@pytest.mark.parametrize("hidden", ["whole", "in parts"])
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
def test_gradients_and_statistics_are_the_plain_networks(family, settings, hidden, monkeypatch):
    if hidden == "in parts":
        monkeypatch.setattr(parts, "PART_BYTES", 2**12)
        monkeypatch.setattr(parts, "MIN_PART_CHANNELS", 2)
    results = {}
    for mode in ("plain", "ours", "channels last"):
        model, x = build(family, **settings).double(), images(dtype=torch.float64)
        if mode == "plain":
            with everything_saved():
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
    """Errors of bfloat16 do not grow, and gradients of parameters stay float32."""

    def half(model):
        def forward(x):
            with torch.autocast("cpu", torch.bfloat16):
                return model(x)

        return forward

    exact = gradients(build(family, norm_eval=norm_eval), images())
    model = build(family, norm_eval=norm_eval)
    with everything_saved():
        plain = gradients(model, images(), half(model))
    model = build(family, norm_eval=norm_eval)
    found = gradients(model, images(), half(model))
    assert all(found[name].dtype == value.dtype for name, value in plain.items())

    def error(results):
        names = [name for name, _ in model.named_parameters()]
        total = torch.cat([(results[name] - exact[name]).flatten() for name in names]).norm()
        return (total / torch.cat([exact[name].flatten() for name in names]).norm()).item()

    assert error(found) < 1.3 * error(plain) + 1e-3 < 0.5


def test_numerical_gradients():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    norm = nn.BatchNorm2d(4)
    cases = [
        (Interaction(4, 2), lambda module: module),
        (Interaction(4, 2, project=False), lambda module: module),
        (Integration(4), lambda module: module),
        (nn.ModuleList([MLP(4), norm]), lambda module: lambda x: module[0](x, module[1])),
        (nn.ModuleList([AdditiveTokenMixer(4), norm]), lambda module: lambda x: module[0](x, module[1])),
        (
            nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 3, 2, 2), nn.ReLU()),
            lambda module: lambda x: chain(x, *module),
        ),
        (nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, 1, 1)), lambda module: lambda x: chain(x, *module)),
    ]
    for module, of in cases:
        module = module.double().train()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
                for tensor in (layer.running_mean, layer.running_var, layer.weight.data, layer.bias.data):
                    tensor.uniform_(0.5, 1.5)
        assert torch.autograd.gradcheck(
            lambda x, *_, module=module, of=of: of(module)(x), (x, *module.parameters()), fast_mode=True
        )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "layers",
    [
        lambda: [nn.BatchNorm2d(8).eval(), nn.Conv2d(8, 12, 1)],
        lambda: [nn.Conv2d(8, 16, 1), nn.GELU(), nn.Conv2d(16, 12, 1)],
        lambda: [nn.Conv2d(8, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12)],
        lambda: [nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12).train()],
    ],
    ids=["norm and convolution", "in parts", "depth-wise last", "by itself last"],
)
def test_a_chain_that_is_split(layers, layout, monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 2**8)
    monkeypatch.setattr(parts, "MIN_PART_CHANNELS", 2)
    torch.manual_seed(0)
    layers = nn.ModuleList(layers()).double()
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    factors = torch.randn(3, 2, 4, 6, 6, dtype=torch.float64)

    def run():
        split = chain_and_split(x, 3, *layers)
        assert all(part.is_contiguous(memory_format=layout) for part in split)
        out = torch.stack([factor * part for factor, part in zip(factors, split, strict=True)])
        return [out.detach(), *torch.autograd.grad(out.sum(), [x, *layers.parameters()])]

    with everything_saved():
        wanted = run()
    torch.testing.assert_close(run(), wanted)


def test_the_gradient_that_comes_in_stays_as_it_is():
    torch.manual_seed(0)
    x, conv = torch.randn(1, 4, 5, 5, requires_grad=True), nn.Conv2d(4, 4, 1)
    grad = torch.randn(1, 4, 5, 5)
    kept = grad.clone()
    chain(x, conv, nn.GELU()).backward(grad)
    assert torch.equal(grad, kept)


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
    def saving(batch):
        x = images(batch=batch)
        saved = kept_for_backward(lambda: model(x), model)
        with everything_saved():
            return kept_for_backward(lambda: model(x), model) - saved

    model = build(family)
    assert saving(batch=1) > 0
    for limit, value in (("FEW_PIXELS", 64 * 64), ("SMALL_CHAIN", 2**20)):
        with monkeypatch.context() as small:
            small.setattr(recompute, limit, value)
            small.setattr(recompute, "SMALL_PART", 2**20)
            assert saving(batch=1) == 0
    with monkeypatch.context() as small:
        small.setattr(recompute, "FEW_PIXELS", 64 * 64)
        small.setattr(recompute, "SMALL_PART", 2**20)
        assert saving(batch=2) > 0
    monkeypatch.undo()
    assert saving(batch=1) == 0


def test_only_wanted_gradients_are_computed():
    torch.manual_seed(0)
    for wanted in ("input", "norm.weight", "fc1.bias", "conv.weight", "fc2.weight"):
        results = []
        for context in (torch.enable_grad, everything_saved):
            torch.manual_seed(0)
            module = Interaction(4, 2).train()
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
    with everything_saved():
        wanted = gradients(model, x, twice)
    assert_same(found, wanted, 1e-9)


@families
def test_evaluation_saves_nothing_and_runs_the_plain_operations(family):
    model, x = build(family), images()
    with torch.no_grad():
        assert all(not out.requires_grad for out in model(x))
    model.eval()
    found = model(x)
    with everything_saved():
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
    # lent parameters, without a transform: the backward pass runs after the model has its own again
    lent = {name: (1.1 * value).requires_grad_() for name, value in parameters.items()}
    found = torch.autograd.grad(loss(lent), list(lent.values()))
    with everything_saved():
        plain = torch.autograd.grad(loss(lent), list(lent.values()))
    assert_same(dict(enumerate(found)), dict(enumerate(plain)), 1e-9)
    assert_same(gradients(copy.deepcopy(model), x), gradients(model, x), 1e-9)


@pytest.mark.stack
@families
@pytest.mark.parametrize("settings", [dict(), dict(norm_eval=False)], ids=str)
def test_compiles_without_a_break(family, settings):
    torch._dynamo.reset()
    # In float64: a bias before a norm with the batch's statistics has no gradient but what rounding leaves of it.
    model, x = build(family, **settings).double(), images(dtype=torch.float64)
    found = gradients(model, x, torch.compile(model, backend="aot_eager", fullgraph=True))
    assert_same(found, gradients(build(family, **settings).double(), x), 1e-4)


def test_a_layer_that_a_hook_listens_to_still_runs_itself():
    torch.manual_seed(0)
    module, seen = Interaction(4, 2).train(), []
    handle = module.fc1.register_forward_hook(lambda layer, inputs, out: seen.append(out))
    x = torch.randn(1, 4, 6, 6)
    with_hook = module(x)
    handle.remove()
    assert len(seen) == 1
    torch.testing.assert_close(with_hook, module(x))


DISTRIBUTED = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, {tests!r})
from test_training_memory import build, images, gradients, assert_same
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
    from pathlib import Path

    script = tmp_path / "run.py"
    script.write_text(DISTRIBUTED.format(tests=str(Path(__file__).parent)))
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
