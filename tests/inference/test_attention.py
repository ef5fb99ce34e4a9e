"""The attention weights and context maps are those with which the networks compute: multiplied out, they give the same.

They are compared with explicit N×N matrices and with the outputs of the networks' own modules, in float64.
"""

import pytest
import torch
import torch.nn.functional as F
from helpers import SMALL_ARCHS, relative_error, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import MODELS

import mmcare
from mmcare.inference import attention_of, context_maps
from mmcare.torch_internals import has_hooks

HEIGHT, WIDTH = 96, 160
IMAGE = torch.randn(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)).double()
STRIDES = (4, 8, 16, 32)


@pytest.fixture(scope="module")
def care():
    """Return a small CARE in float64, with weights of some size, so that attention is far from uniform."""
    arch = dict(SMALL_ARCHS["CARE"], head_channels=(None, None, 8, 8))
    backbone = trained("CARE", arch=arch).double()
    for stage in backbone.stages[2:]:
        for block in stage.blocks:
            torch.nn.init.normal_(block.token_mixer.far.query_key.weight, std=0.7)
    return backbone


@pytest.fixture(scope="module")
def casvit():
    return trained("CASViT").double()


def recorded(backbone, modules, image=IMAGE):
    """Return the first input and the output of modules in a forward pass."""
    found = {}
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: found.update({module: (inputs[0], output)}))
        for module in modules
    ]
    with torch.no_grad():
        backbone(image[None])
    for hook in hooks:
        hook.remove()
    return [found[module] for module in modules]


def attention_matrix(layer, x):
    """Return the N×N matrix of each head, (heads, N, N), and the values, (heads, head_channels, N), of one image."""
    channels, positions = x.shape[1], x[0, 0].numel()
    query, key = (
        F.elu(t.reshape(layer.heads, channels // layer.heads, positions)) + 1 for t in layer.query_key(x)[0].chunk(2)
    )
    similarity = query.transpose(1, 2) @ key  # every query with every key
    normalizer = (query * key.mean(2, keepdim=True)).sum(1) + 1e-6
    value = x[0].reshape(layer.heads, channels // layer.heads, positions)
    return similarity / positions / normalizer[:, :, None], value


# -- CARE --------------------------------------------------------------------------------------------------------------


@pytest.mark.stack
@pytest.mark.parametrize("point", [(0, 0), (159, 95), (70.5, 33), (64, 32), (63.9, 31.9)])
def test_the_weights_are_a_row_of_the_attention_matrix(care, point):
    attention = attention_of(care, IMAGE, point)
    assert [len(blocks) for blocks in attention] == [0, 0, 1, 2]
    for stage in (2, 3):
        layers = [block.token_mixer.far for block in care.stages[stage].blocks]
        for weights, layer, (x, out) in zip(attention[stage], layers, recorded(care, layers), strict=True):
            matrix, value = attention_matrix(layer, x)
            width = WIDTH // STRIDES[stage]
            position = int(point[1] / STRIDES[stage]) * width + int(point[0] / STRIDES[stage])
            assert weights.shape == (layer.heads, HEIGHT // STRIDES[stage], width)
            assert relative_error(weights.flatten(1), matrix[:, position].detach()) < 1e-6
            # the row times the values is what the token mixer computes there
            product = torch.einsum("hn,hcn->hc", weights.flatten(1), value).flatten()
            assert relative_error(product, out.flatten(2)[0, :, position]) < 1e-6
            assert weights.sum((1, 2)) == pytest.approx(1, abs=1e-3)
            assert weights.max() > 2 * weights.min()  # a test on uniform weights would prove nothing


@settings(deadline=None, max_examples=15)
@given(st.tuples(st.integers(32, 130), st.integers(32, 130)), st.floats(0, 1, exclude_max=True), st.floats(0, 0.999999))
def test_images_of_any_size_have_weights_at_any_point(care, size, right, down):
    height, width = size
    image = torch.ones(3, height, width, dtype=torch.float64)
    attention = attention_of(care, image, (right * width, down * height))
    with torch.no_grad():
        maps = care(image[None])
    for weights, feature in zip(attention[2] + attention[3], [maps[2], maps[3], maps[3]], strict=True):
        assert weights.shape[1:] == feature.shape[2:]
        assert weights.sum((1, 2)) == pytest.approx(1, abs=1e-3)


def test_half_precision_is_summed_in_single():
    backbone = trained("CARE").bfloat16()
    attention = attention_of(backbone, IMAGE.bfloat16(), (5, 5))
    assert attention[2][0].dtype == torch.float32
    assert attention[2][0].sum((1, 2)) == pytest.approx(1, abs=1e-3)


def test_the_published_network_looks_from_all_its_heads():
    backbone = MODELS.build(dict(type="mmcare.CARE", arch="s2", out_indices=(2,)))
    attention = attention_of(backbone, IMAGE.float(), (80, 48))
    assert [[tuple(weights.shape) for weights in blocks] for blocks in attention] == [[], [], [(3, 6, 10)] * 10]


# -- CAS-ViT -----------------------------------------------------------------------------------------------------------


@pytest.mark.stack
def test_the_context_maps_give_the_token_mixers_output(casvit):
    found = context_maps(casvit, IMAGE)
    assert [len(blocks) for blocks in found] == [1, 1, 2, 1]
    for stage, blocks in zip(casvit.stages, found, strict=True):
        for block, maps in zip(stage.blocks, blocks, strict=True):
            mixer = block.token_mixer
            (_, qkv), (_, out) = recorded(casvit, [mixer.qkv, mixer])
            query, key, value = qkv[0].chunk(3)
            summed = query * maps.query_spatial * maps.query_channels[:, None, None]
            summed = summed + key * maps.key_spatial * maps.key_channels[:, None, None]
            with torch.no_grad():
                assert relative_error(mixer.similarity.conv(summed[None])[0], maps.context) < 1e-6
                assert relative_error(mixer.project((maps.context * value)[None]), out) < 1e-6
            for gate in (maps.query_spatial, maps.query_channels, maps.key_spatial, maps.key_channels):
                assert 0 < gate.min() < gate.max() < 1
            assert relative_error(maps.query_spatial, maps.key_spatial) > 1e-3


# -- the backbone stays as it was --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["CARE", "CASViT"])
def test_a_backbone_in_training_is_looked_at_in_eval_mode_and_left_as_it_was(family):
    backbone = trained(family, norm_eval=False, drop_path_rate=0.9, with_cp=True, frozen_stages=1)
    look = (lambda: attention_of(backbone, IMAGE.float(), (9, 9))) if family == "CARE" else None
    look = look or (lambda: [[maps.context for maps in blocks] for blocks in context_maps(backbone, IMAGE.float())])
    wanted = look()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.train()
    modes = [module.training for module in backbone.modules()]
    assert len(set(modes)) == 2
    for blocks, others in zip(look(), wanted, strict=True):
        for maps, other in zip(blocks, others, strict=True):
            assert torch.equal(maps, other)
            assert not maps.requires_grad
    assert [module.training for module in backbone.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


def test_no_hooks_stay(care, casvit):
    attention_of(care, IMAGE, (5, 5))
    context_maps(casvit, IMAGE)
    with pytest.raises(mmcare.UserError, match="H and W of at least 32"):
        attention_of(care, IMAGE[:, :20], (5, 5))
    assert not any(map(has_hooks, [*care.modules(), *casvit.modules()]))


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", [(-1, 5), (160, 5), (5, 96), (float("nan"), 5)])
def test_a_point_outside_is_refused(care, point):
    with pytest.raises(mmcare.UserError, match="is outside the image, which is 160 wide and 96 high"):
        attention_of(care, IMAGE, point)


def test_other_backbones_are_refused(care, casvit):
    with pytest.raises(mmcare.UserError, match="^a CARE backbone is needed here, but a CASViT was given$"):
        attention_of(casvit, IMAGE, (5, 5))
    with pytest.raises(mmcare.UserError, match="^a CASViT backbone is needed here, but a CARE was given$"):
        context_maps(care, IMAGE)


def test_the_fast_form_is_refused(care, casvit):
    with pytest.raises(mmcare.UserError, match="has no LinearAttention: give a backbone that has, and not its fast"):
        attention_of(mmcare.reparameterize(care), IMAGE, (5, 5))
    with pytest.raises(mmcare.UserError, match="has no AdditiveTokenMixer"):
        context_maps(mmcare.reparameterize(casvit), IMAGE)
