"""The building blocks of the fast form: the same outputs as the plain operations on every path."""

import copy
import pickle

import pytest
import torch
from helpers import SMALL_ARCHS, assert_same_maps, relative_error, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mmcare
from mmcare.fast import onednn, parts
from mmcare.fast.convolutions import Expansion, FusedConv

families = pytest.mark.parametrize("family", SMALL_ARCHS)
fuses = pytest.mark.skipif(not onednn.types(), reason="torch has no fused convolutions on this machine")


def channels_last(*size, dtype=torch.float32):
    return torch.randn(size, dtype=dtype).contiguous(memory_format=torch.channels_last)


def expansion(channels=8, hidden=32, depthwise=True, project=True):
    torch.manual_seed(0)
    layers = [(nn.Conv2d(channels, hidden, 1), True)]
    layers += [(nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden), False)] * depthwise
    layers += [(nn.Conv2d(hidden, channels, 1, bias=channels % 2 == 0), False)] * project
    plain = nn.Sequential(*(module for conv, gelu in layers for module in (conv, *[nn.GELU()] * gelu)))
    fast = Expansion(*layers, project=project).requires_grad_(False)
    return plain.requires_grad_(False), copy.deepcopy(fast).to(memory_format=torch.channels_last)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 2**10)
    monkeypatch.setattr(parts, "MIN_PART_CHANNELS", 2)


@pytest.fixture
def ordered(monkeypatch):
    """The map sizes for which weights were reordered."""
    sizes, order = [], onednn.order
    monkeypatch.setattr(onednn, "order", lambda *args: sizes.append(list(args[-1])) or order(*args))
    return sizes


@settings(deadline=None, max_examples=40)
@given(
    channels=st.integers(1, 9),
    hidden=st.sampled_from([1, 6, 16, 32, 40]),
    depthwise=st.booleans(),
    project=st.booleans(),
    size=st.tuples(st.integers(1, 3), st.integers(1, 17), st.integers(1, 17)),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    added=st.sampled_from([None, "another map", "the input"]),
)
def test_parts_add_up_to_the_whole(channels, hidden, depthwise, project, size, layout, added):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_BYTES", 2**10)
        patch.setattr(parts, "MIN_PART_CHANNELS", 2)
        plain, fast = expansion(channels, hidden, depthwise, project)
        x = torch.randn(size[0], channels, *size[1:]).contiguous(memory_format=layout)
        wanted, to = plain(x), None
        if added:
            own = added == "the input" and wanted.shape == x.shape
            to = x if own else torch.randn(wanted.shape).contiguous(memory_format=layout)
            wanted = wanted + to
        assert relative_error(fast(x, to=to), wanted) < 1e-5


@fuses
def test_large_hidden_maps_are_made_in_parts(small_parts, ordered):
    _, fast = expansion(hidden=32)
    fast(channels_last(1, 8, 4, 4))  # a hidden map of 2 KiB: two parts
    assert ordered == [[1, 8, 4, 4], [1, 16, 4, 4], [1, 16, 4, 4]] * 2
    ordered.clear()
    fast(channels_last(1, 8, 64, 64))  # parts of at least two channels
    assert len(ordered) == 3 * 16


@fuses
def test_context_mappings_of_large_maps_run_one_by_one(small_parts, ordered):
    mixer = mmcare.reparameterize(trained("CASViT")).stages[0].blocks[0].token_mixer
    channels = mixer.project.in_channels
    for size, widths in ((1, {channels, 2 * channels}), (8, {channels})):
        mixer(channels_last(1, channels, size, size))
        assert {shape[1] for shape in ordered} == widths
        ordered.clear()


@fuses
def test_weights_are_ordered_once_for_a_size(ordered):
    _, fast = expansion()
    for size in (8, 8, 8):
        fast(channels_last(1, 8, size, size))
    assert len(ordered) == 3
    fast(channels_last(1, 8, 9, 9))
    assert len(ordered) == 6


@pytest.mark.stack
@pytest.mark.parametrize("inference", [True, False])
def test_changed_weights_are_used(inference):
    """However they change: in place, through ``data``, loaded, replaced, or converted to another type."""
    plain, fast = expansion()
    other, _ = expansion()
    for parameter in other.parameters():
        parameter.mul_(1.5)
    x = channels_last(1, 8, 8, 8)
    with torch.inference_mode(inference):
        fast(x)
        for parameter in (*fast.parameters(), *plain.parameters()):
            parameter.mul_(0.5)
        assert relative_error(fast(x), plain(x)) < 1e-5
        for parameter in (*fast.parameters(), *plain.parameters()):
            parameter.data.mul_(3.0)
        assert relative_error(fast(x), plain(x)) < 1e-5
        for parameter, given in zip(fast.parameters(), plain.parameters(), strict=True):
            parameter.data.copy_(2 * given)
            given.data = 2 * given
        assert relative_error(fast(x), plain(x)) < 1e-5
        for layer, given in zip(fast.layers, (plain[0], plain[2], plain[3]), strict=True):
            layer.weight = nn.Parameter(3 * given.weight, requires_grad=False)
            given.weight.mul_(3)
            fast(x)
            layer.weight.data.mul_(0.5)
            given.weight.data.mul_(0.5)
        assert relative_error(fast(x), plain(x)) < 1e-5
        fast.load_state_dict(dict(zip(fast.state_dict(), other.state_dict().values(), strict=True)))
        assert relative_error(fast(x), other(x)) < 1e-5
        half, wanted = fast.to(torch.bfloat16), copy.deepcopy(other).to(torch.bfloat16)
        assert relative_error(half(x.bfloat16()).float(), wanted(x.bfloat16()).float()) < 1e-2


def test_copies_and_pickles_compute_the_same_with_weights_of_their_own():
    _, fast = expansion()
    x = channels_last(1, 8, 8, 8)
    wanted = fast(x)
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(twin(x), wanted)
        for parameter in twin.parameters():
            parameter.data.mul_(2.0)
        assert relative_error(twin(x), wanted) > 0.5
        assert torch.equal(fast(x), wanted)


@families
def test_a_network_in_parts_is_the_trained_one(family, small_parts):
    model = trained(family)
    fast = mmcare.reparameterize(model)
    for size in [(1, 3, 64, 64), (2, 3, 97, 65)]:
        assert_same_maps(fast, model, torch.randn(size))


@families
def test_gradients_flow_through_the_fast_form(family, small_parts):
    model = trained(family)
    gradients = []
    for form in (model, mmcare.reparameterize(model)):
        x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        sum(out.square().sum() for out in form(x)).backward()
        gradients.append(x.grad)
    assert relative_error(*reversed(gradients)) < 1e-4


@families
@pytest.mark.parametrize("context", ["autocast", "float64", "no oneDNN", "traced", "exported"])
def test_where_nothing_can_be_fused_the_plain_operations_run(family, context, ordered):
    model = trained(family)
    fast = mmcare.reparameterize(model)
    x = torch.randn(1, 3, 64, 96)
    tolerance = 1e-5
    with torch.no_grad():
        wanted = model(x)
        if context == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                found = fast(x)
                assert [out.dtype for out in found] == [out.dtype for out in model(x)]
            tolerance = 3e-2
        elif context == "float64":
            found = fast.double()(x.double())
        elif context == "no oneDNN":
            with torch.backends.mkldnn.flags(enabled=False):
                found = fast(x)
        elif context == "traced":
            found = torch.jit.trace(fast, torch.randn(1, 3, 64, 96), check_trace=False)(x)
        else:
            program = torch.export.export(fast, (torch.randn(1, 3, 64, 96),))
            assert not any("mkldnn" in str(node.target) for node in program.graph.nodes)
            found = program.module()(x)
    assert not ordered
    for output, stage in zip(found, wanted, strict=True):
        assert relative_error(output.float(), stage) < tolerance


@fuses
@families
def test_the_fast_form_fuses(family, ordered):
    """Every convolution except those on parts of a map, whose layout oneDNN does not support."""
    fast = mmcare.reparameterize(trained(family))
    with torch.inference_mode():
        fast(channels_last(1, 3, 64, 64))
    layers = [module for module in fast.modules() if isinstance(module, FusedConv)]
    assert not any(type(module) is nn.Conv2d for module in fast.modules())
    assert len(ordered) > len(layers) * 2 / 3


def test_convolutions_in_groups():
    conv = nn.Conv2d(8, 16, 3, groups=4).requires_grad_(False)
    x = channels_last(1, 8, 9, 9)
    assert relative_error(FusedConv(conv)(x), conv(x)) < 1e-5


@pytest.mark.parametrize("adapt", ["spectral norm", "circular padding", "a hook"])
def test_adapted_convolutions_stay_as_they_are(adapt):
    model = trained("CARE")
    conv = model.stem.conv
    if adapt == "spectral norm":
        torch.nn.utils.spectral_norm(conv).eval()
        model.stem.norm = nn.Identity()  # a norm cannot be folded into weights that are recomputed in each pass
    elif adapt == "circular padding":
        model.stem.conv = nn.Conv2d(3, conv.out_channels, 4, stride=4, padding=2, padding_mode="circular")
    else:
        conv.register_forward_hook(lambda module, inputs, output: 2 * output)
        model.stem.norm = nn.Identity()
    model.eval()
    assert_same_maps(mmcare.reparameterize(model), model, torch.randn(1, 3, 64, 64))


@families
def test_1x1_convolutions_are_the_same_as_matrix_products(family, monkeypatch):
    """As on GPUs in half precision; in float32 on a CPU the difference can be measured."""
    model = trained(family)
    products = []

    def is_product(conv, x):
        products.append(conv.kernel_size == (1, 1))
        return products[-1]

    monkeypatch.setattr(FusedConv, "_is_fused", lambda conv, x: False)
    monkeypatch.setattr(FusedConv, "_is_product", is_product)
    fast = mmcare.reparameterize(model)
    for size in [(32, 32), (97, 65)]:
        assert_same_maps(fast, model, torch.randn(2, 3, *size))
    assert any(products) and not all(products)
