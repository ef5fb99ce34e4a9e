"""The ablations of both networks: what each switches off, what it costs, and that everything else stays as it is."""

import copy
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from helpers import SMALL_ARCHS, assert_same_maps, relative_error, shake, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import MODELS
from torch import nn

import mmcare
from mmcare import UserError
from mmcare.benchmark import count, resolve
from mmcare.data.sample import overlay_sample
from mmcare.memory import keep_everything
from mmcare.runs import get_config
from mmcare.visualization import attention_of, context_maps

ABLATIONS = {
    "CARE": ("symmetric", "stacked", "no_local_bias", "no_second_interaction", "no_memory"),
    "CASViT": ("no_spatial_context", "no_channel_context", "identity", "product"),
}
ARCHS = {
    "CARE": dict(depths=(1, 2, 1, 2), memory_channels=(4, 8, 16, 32), ratios=((1, 2), (2, 1), (1, 3), (2, 2))),
    "CASViT": SMALL_ARCHS["CASViT"],
}
SIDE = 64
each = pytest.mark.parametrize(
    ("family", "ablation"), [(family, name) for family, names in ABLATIONS.items() for name in names]
)


def build(family, ablation=None, **arguments):
    """Return a small network with weights as after a training; the whole one if no ablation is given."""
    arguments = dict(dict(arch=ARCHS[family]), **arguments)
    if ablation is None:
        return trained(family, **arguments)
    torch.manual_seed(0)
    return shake(MODELS.build(dict(type=f"mmcare.{family}Ablation", ablation=ablation, **arguments))).eval()


# -- what all of them have in common -----------------------------------------------------------------------------------


@pytest.mark.stack
@each
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_the_maps_have_the_whole_networks_shapes(family, ablation, data):
    size = data.draw(st.tuples(st.integers(32, 97), st.integers(32, 97)))
    indices = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True))
    arguments = dict(out_indices=indices, with_cp=data.draw(st.booleans()), drop_path_rate=0.2)
    whole, ablated = (build(family, name, **arguments) for name in (None, ablation))
    assert ablated.out_channels == whole.out_channels
    images = torch.randn(2, 3, *size)
    for found, wanted in zip(ablated.train()(images), whole.train()(images), strict=True):
        assert found.shape == wanted.shape
        assert found.isfinite().all()


@pytest.mark.stack
@each
def test_gradients_reach_every_parameter_and_are_those_without_saving_memory(family, ablation):
    images = torch.randn(3, 3, 160, 160)  # so large that chains compute maps again
    gradients = []
    for memory in (nullcontext(), keep_everything()):
        model = build(family, ablation).train()  # with frozen norms: others take away what a bias before them adds
        with memory:
            maps = model(images)
        torch.manual_seed(1)
        sum((feature * torch.randn_like(feature)).mean() for feature in maps).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, wanted in gradients[1].items():
        assert wanted.abs().max() > 0, name
        assert relative_error(gradients[0][name], wanted) < 1e-3, name


@each
def test_frozen_stages_freeze_what_an_ablation_brings_along(family, ablation):
    model = MODELS.build(dict(type=f"mmcare.{family}Ablation", ablation=ablation, arch=ARCHS[family], frozen_stages=2))
    for index, stage in enumerate(model.stages):
        assert all(parameter.requires_grad == (index >= 2) for parameter in stage.parameters())
        assert stage.blocks[0].token_mixer.training == (index >= 2)
        assert index >= 2 or not any(module.training for module in stage.modules())


@each
def test_the_fast_form_computes_the_same_and_leaves_what_is_not_the_networks_own(family, ablation):
    model = build(family, ablation)
    before = copy.deepcopy(model.state_dict())
    fast = mmcare.reparameterize(model)
    images = torch.randn(2, 3, 64, 96)
    assert_same_maps(fast, model, images)
    assert_same_maps(mmcare.reparameterize(fast), model, images)
    kept = type(model.stages[2].blocks[0] if family == "CARE" else model.stages[2].blocks[0].token_mixer)
    assert any(type(module) is kept for module in fast.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", ABLATIONS)
def test_the_whole_network_stays_as_it_is(family):
    before = build(family)
    for ablation in ABLATIONS[family]:
        build(family, ablation)
    after = build(family)
    assert [type(module) for module in before.modules()] == [type(module) for module in after.modules()]
    assert list(before.state_dict()) == list(after.state_dict())
    images = torch.randn(1, 3, SIDE, SIDE)
    assert all(torch.equal(*maps) for maps in zip(before(images), after(images), strict=True))


@each
def test_published_archs_and_initial_weights(family, ablation):
    arch = next(iter(getattr(mmcare, family).arch_settings))
    model = MODELS.build(dict(type=f"mmcare.{family}Ablation", ablation=ablation, arch=arch, drop_path_rate=0.1))
    model.init_weights()
    assert (model.arch_name, model.ablation, model.drop_path_rate) == (arch, ablation, 0.1)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.2), name
            assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize(
    ("family", "arguments", "said"),
    [
        ("CARE", dict(ablation="no_memry"), "CARE has no ablation 'no_memry': did you mean no_memory?"),
        ("CARE", dict(ablation="x"), f"CARE has no ablation 'x': choose one of {', '.join(ABLATIONS['CARE'])}"),
        ("CARE", dict(), f"CAREAblation lacks the argument ablation: choose one of {', '.join(ABLATIONS['CARE'])}"),
        ("CASViT", dict(arch="xs"), "CASViTAblation lacks the argument ablation: choose one of no_spatial_context"),
        ("CARE", dict(ablation=["stacked"]), "CARE has no ablation ['stacked']: did you mean stacked?"),
        ("CARE", dict(ablation="stacked", arch="s9"), "CAREAblation has no arch 's9': choose one of s0, s1, s2"),
        (
            "CARE",
            dict(ablation="symmetric", arch=dict(ARCHS["CARE"], memory_channels=(5, 8, 16, 32))),
            "the ablation 'symmetric' cannot halve the features of memory_channels=5 with head_channels=None",
        ),
        (
            "CARE",
            dict(ablation="symmetric", arch=dict(ARCHS["CARE"], head_channels=(None, 1, 16, 32))),
            "the ablation 'symmetric' cannot halve the features of memory_channels=8 with head_channels=1",
        ),
        ("CASViT", dict(ablation="products"), "CASViT has no ablation 'products': did you mean product?"),
        ("CASViT", dict(ablation=3), f"CASViT has no ablation 3: choose one of {', '.join(ABLATIONS['CASViT'])}"),
        ("CASViT", dict(ablation="identity", out_indices=(4,)), "an index in out_indices=4 is not valid"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(family, arguments, said):
    with pytest.raises(UserError) as raised:
        getattr(mmcare, f"{family}Ablation")(**arguments)
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)


# -- parameters and multiply-accumulates, by hand ----------------------------------------------------------------------


class Cost(Counter):
    """Parameters and multiply-accumulates; costs can be added."""


def dense(inputs, outputs, positions, kernel=1, bias=True):
    weights = inputs * outputs * kernel
    return Cost(parameters=weights + bias * outputs, macs=weights * positions)


def depthwise(channels, kernel, positions):
    return Cost(parameters=channels * (kernel + 1), macs=channels * kernel * positions)


def norm(channels):
    return Cost(parameters=2 * channels)


def far(channels, head, positions):
    """Two strips of length 11, or linear attention: q and k, φ(k)ᵀv, φ(q) times that, and φ(q) times the mean key."""
    if head is None:
        return depthwise(channels, 11, positions) + depthwise(channels, 11, positions)
    products = Cost(macs=channels * head * positions + channels * head * positions + channels * positions)
    return dense(channels, 2 * channels, positions) + products


def near(small, large, positions):
    return depthwise(small, 9, positions) + depthwise(large, 49, positions)


def interaction(channels, hidden, positions, project=True):
    branch = norm(channels) + dense(channels, hidden, positions) + depthwise(hidden, 9, positions)
    return branch + dense(hidden, channels, positions) if project else branch


def care_block(ablation, g, ratios, head, n, last):
    mixer = {
        "symmetric": lambda: far(3 * g // 2, head and 3 * head // 2, n) + near(3 * g // 4, 3 * g // 4, n),
        "stacked": lambda: far(3 * g, head, n) + near(3 * g, 3 * g, n),
        "no_local_bias": lambda: far(g, head, n),
        "no_memory": lambda: far(g, head, n) + near(3 * g // 2, 3 * g // 2, n),
    }.get(ablation, lambda: far(g, head, n) + near(g, g, n))()
    second = interaction(4 * g, 4 * g * ratios[1], n, project=not last)
    if ablation == "no_memory":
        both = interaction(4 * g, 9 * g * ratios[0] // 4, n) + second
    elif ablation == "no_second_interaction" and not last:
        both = interaction(3 * g, 3 * g * ratios[0] + 16 * g * ratios[1] // 3, n)
    else:
        both = interaction(3 * g, 3 * g * ratios[0], n) + second
    return mixer + both + Cost(parameters=0 if last else 4 * g)  # γ


def care(ablation, depths, memory_channels, ratios, head_channels=(None, None, 16, 32)):
    widths = [4 * g for g in memory_channels]
    positions = [(SIDE // (4 << i)) ** 2 for i in range(4)]
    total = dense(3, widths[0], positions[0], kernel=16) + norm(widths[0])
    for i, (g, depth, n) in enumerate(zip(memory_channels, depths, positions, strict=True)):
        if i:
            total += norm(widths[i - 1]) + dense(widths[i - 1], widths[i], n, kernel=4)
        for j in range(depth):
            total += care_block(ablation, g, ratios[i], head_channels[i], n, last=i == 3 and j == depth - 1)
    return total


def casvit_block(ablation, c, n):
    spatial = depthwise(c, 9, n) + norm(c) + dense(c, 1, n, bias=False)
    channel = dense(c, c, 1, bias=False)
    if ablation == "no_spatial_context":
        spatial = Cost()
    if ablation == "no_channel_context":
        channel = Cost()
    context = spatial + channel
    gamma = Cost() if ablation == "identity" else depthwise(c, 9, n)
    mixer = norm(c) + dense(c, 3 * c, n, bias=False) + context + context + gamma + depthwise(c, 9, n)
    integration = dense(c, c, n) + norm(c) + depthwise(c, 9, n) + dense(c, c, n)
    return integration + mixer + norm(c) + dense(c, 4 * c, n) + dense(4 * c, c, n)


def casvit(ablation, depths, channels):
    half, positions = channels[0] // 2, [(SIDE // (4 << i)) ** 2 for i in range(4)]
    total = dense(3, half, 4 * positions[0], kernel=9) + norm(half)
    total += dense(half, channels[0], positions[0], kernel=9) + norm(channels[0])
    for i, (c, depth, n) in enumerate(zip(channels, depths, positions, strict=True)):
        if i:
            total += dense(channels[i - 1], c, n, kernel=9) + norm(c)
        for _ in range(depth):
            total += casvit_block(ablation, c, n)
        total += norm(c)  # the map's own
    return total


@pytest.mark.stack
@pytest.mark.parametrize(
    ("family", "ablation"), [(family, name) for family, names in ABLATIONS.items() for name in (None, *names)]
)
def test_parameters_and_macs_are_those_by_hand(family, ablation):
    by_hand = dict(CARE=care, CASViT=casvit)[family](ablation, **ARCHS[family])
    [(_, parameters, macs)] = count(build(family, ablation), SIDE, SIDE)
    assert (parameters, macs) == (by_hand["parameters"], by_hand["macs"])


@pytest.mark.parametrize("ablation", ["no_second_interaction", "no_memory"])
def test_what_an_idea_takes_along_is_made_up_for(ablation):
    whole, ablated = (
        count(MODELS.build(dict(type=f"mmcare.{kind}", arch="s2", **settings)), 224, 224)[0]
        for kind, settings in (("CARE", {}), ("CAREAblation", dict(ablation=ablation)))
    )
    assert ablated[1:] == pytest.approx(whole[1:], rel=0.01)


def test_the_benchmark_takes_them_by_name():
    subject = resolve("mmcare.CAREAblation:s0,ablation=no_local_bias")
    assert subject.model.ablation == "no_local_bias"
    assert subject.cost("backbone", 64, 64)[0] < resolve("mmcare.CARE:s0").cost("backbone", 64, 64)[0]


# -- what each of them does --------------------------------------------------------------------------------------------


def reaches(mixer, channels):
    """Return how many output channels a single position influences how many positions away; 9 is everywhere."""
    x = torch.randn(1, channels, 19, 19, dtype=torch.float64)
    moved = x.clone()
    moved[:, :, 9, 9] += 1
    with torch.no_grad():
        changed = (mixer(moved) - mixer(x))[0].abs() > 1e-9
    rows, columns = torch.meshgrid(torch.arange(19), torch.arange(19), indexing="ij")
    distance = torch.maximum((rows - 9).abs(), (columns - 9).abs())
    return Counter((changed * distance).flatten(1).amax(1).tolist())


@pytest.mark.parametrize(
    ("ablation", "wanted"),
    [
        (None, {9: 16, 3: 16, 1: 16}),
        ("symmetric", {9: 24, 3: 12, 1: 12}),
        ("stacked", {9: 48}),
        ("no_local_bias", {9: 16, 0: 32}),
        ("no_second_interaction", {9: 16, 3: 16, 1: 16}),
        ("no_memory", {9: 16, 3: 24, 1: 24}),
    ],
)
def test_so_many_channels_go_through_attention_and_through_each_convolution(ablation, wanted):
    """In the third stage, with g = 16: d₁ is what reaches everywhere, d₂ what reaches as far as a kernel."""
    model = build("CARE", ablation).double()
    assert reaches(model.stages[2].blocks[0].token_mixer, sum(wanted.values())) == wanted


def influence(module, block, g):
    """Return whether a change of a block's first g channels, and of its others, changes a module's output."""
    x = torch.randn(1, 4 * g, 6, 6)
    outputs = []
    hook = module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        for channels in (slice(0), slice(g), slice(g, None)):
            moved = x.clone()
            moved[:, channels] += torch.randn_like(moved[:, channels])
            block(moved)
    hook.remove()
    whole, by_memory, by_features = outputs
    return tuple(
        [not torch.equal(output[:, part], whole[:, part]) for part in (slice(g), slice(g, None))]
        for output in (by_memory, by_features)
    )


@pytest.mark.parametrize("ablation", [None, *ABLATIONS["CARE"]])
def test_memory_and_features_meet_in_the_second_interaction_only(ablation):
    """Of (memory, features), what the memory changes and what the features change in a block's output."""
    g = ARCHS["CARE"]["memory_channels"][1]
    block = build("CARE", ablation).stages[1].blocks[0]
    if ablation == "no_second_interaction":
        assert influence(block, block, g) == ([True, False], [False, True])
        x = torch.randn(1, 4 * g, 6, 6)
        scale = 1 + block.layer_scale.weight[:g, None, None]
        torch.testing.assert_close(block(x)[:, :g], scale * x[:, :g])  # nothing writes to the memory
    else:
        assert influence(block, block, g) == ([True, True], [True, True])
    early = influence(block.first_interaction, block, g)
    assert any(early[0]) == (ablation == "no_memory")  # elsewhere the memory passes the first interaction by
    assert any(early[1])


def test_without_the_memory_a_block_is_its_formula():
    block = build("CARE", "no_memory").stages[1].blocks[0]
    x = torch.randn(2, 32, 6, 7)
    branch = block.second_interaction(block.first_interaction(block.token_mixer(x)))
    torch.testing.assert_close(block(x), x + block.layer_scale.weight[:, None, None] * branch)


def test_without_the_second_interaction_the_last_map_is_as_wide():
    model = build("CARE", "no_second_interaction")
    assert model.stages[3].blocks[0].second_interaction(torch.ones(1)).equal(torch.ones(1))
    assert model(torch.randn(1, 3, SIDE, SIDE))[3].shape[1] == 4 * 32 * 2


def gated(context, x, ablation):
    """Return Φ(x) in plain formulas."""
    if ablation != "no_spatial_context":
        spatial = context.spatial
        moved = F.conv2d(x, spatial.conv.weight, spatial.conv.bias, padding=1, groups=x.shape[1])
        moved = F.batch_norm(
            moved, spatial.norm.running_mean, spatial.norm.running_var, spatial.norm.weight, spatial.norm.bias
        )
        x = x * F.conv2d(moved.clamp_min(0), spatial.fc.weight).sigmoid()
    if ablation != "no_channel_context":
        x = x * F.conv2d(x.mean((2, 3), keepdim=True), context.channel.fc.weight).sigmoid()
    return x


@pytest.mark.parametrize("ablation", [None, *ABLATIONS["CASViT"]])
def test_the_similarity_is_the_formula_with_its_change(ablation):
    model = build("CASViT", ablation)
    mixer = model.stages[2].blocks[1].token_mixer
    x = torch.randn(2, 16, 7, 9)
    with torch.no_grad():
        query, key, value = mixer.qkv(mixer.norm(x)).chunk(3, dim=1)
        contexts = [
            gated(mapping, t, ablation)
            for mapping, t in ((mixer.similarity.query_context, query), (mixer.similarity.key_context, key))
        ]
        context = contexts[0] * contexts[1] if ablation == "product" else contexts[0] + contexts[1]
        if ablation != "identity":
            conv = mixer.similarity.conv
            context = F.conv2d(context, conv.weight, conv.bias, padding=1, groups=16)
        assert relative_error(mixer(x), mixer.project(context * value)) < 1e-5


# -- the rest of the package -------------------------------------------------------------------------------------------


def test_attention_can_be_looked_at_and_what_is_missing_cannot():
    image = torch.randn(3, 64, 64)
    for ablation in ABLATIONS["CARE"]:
        stages = attention_of(build("CARE", ablation), image, (10, 20))
        assert [len(blocks) for blocks in stages] == [0, 0, 1, 2]
        assert all(weights.sum((1, 2)).allclose(torch.ones(1), atol=1e-3) for blocks in stages for weights in blocks)
    for ablation in ABLATIONS["CASViT"]:
        with pytest.raises(UserError, match="^this CASViT has no AdditiveTokenMixer"):
            context_maps(build("CASViT", ablation), image)


def test_on_the_sample_data_layer_scale_starts_as_for_care(tmp_path):
    scales = []
    for changes in ({}, dict(type="mmcare.CAREAblation", ablation="stacked")):
        cfg = get_config("detection/retinanet_care_s0")
        cfg.model.backbone.update(changes)
        overlay_sample(cfg, tmp_path)
        scales.append(cfg.model.backbone.layer_scale_init_value)
    assert scales[0] == scales[1] > 0.1
