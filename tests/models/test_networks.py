"""The two backbones: agreement with the authors' networks, and their common interface."""

import subprocess
import sys
from importlib import import_module

import helpers
import pytest
import torch
from helpers import relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import MODELS
from torch import nn

from mmcare import CARE, CASViT, UserError
from mmcare.stack import check_stack

SMALLEST = {"CARE": dict(arch="s0", layer_scale_init_value=1.0), "CASViT": dict(arch="xs")}
PARAMETERS = {  # of the backbone alone, and of the classifier with both heads as in the authors' files
    ("CARE", "s0"): (5_285_904, 7_340_000),
    ("CARE", "s1"): (7_548_328, 9_602_424),
    ("CARE", "s2"): (16_401_144, 19_481_288),
    ("CASViT", "xs"): (2_759_132, 3_200_700),
    ("CASViT", "s"): (5_250_704, 5_764_224),
    ("CASViT", "m"): (11_652_224, 12_421_520),
    ("CASViT", "t"): (20_738_080, 21_763_120),
}
families = pytest.mark.parametrize("family", SMALLEST)


def build(family, **kwargs):
    torch.manual_seed(0)
    return MODELS.build(dict(type=f"mmcare.{family}", **{**SMALLEST[family], **kwargs}))


@pytest.mark.stack
@pytest.mark.parametrize(("family", "arch"), helpers.ARCHS)
def test_every_stage_gives_the_authors_outputs(family, arch, tmp_path):
    state = helpers.backbone_weights(family, arch)
    torch.save(state if family == "CARE" else {"model": state}, tmp_path / "weights.pth")
    pretrained = dict(type="Pretrained", checkpoint=str(tmp_path / "weights.pth"))
    model = MODELS.build(dict(type=f"mmcare.{family}", arch=arch, init_cfg=pretrained))
    model.init_weights()
    model.eval()
    with torch.no_grad():
        outputs = model(helpers.image())
    wanted = helpers.expected(family, arch)
    assert [tuple(output.shape) for output in outputs] == [tuple(stage.shape) for stage in wanted]
    assert [output.shape[1] for output in outputs] == list(model.out_channels)
    for output, stage in zip(outputs, wanted, strict=True):
        assert relative_error(output, stage) < 1e-5


@pytest.mark.stack
@pytest.mark.parametrize(("family", "arch"), helpers.ARCHS)
def test_parameter_counts_are_the_authors_to_the_last_parameter(family, arch):
    model = MODELS.build(dict(type=f"mmcare.{family}", arch=arch))
    backbone, classifier = PARAMETERS[family, arch]
    own = sum(parameter.numel() for parameter in model.parameters())
    assert own == backbone
    state = helpers.weights(family, arch, "classifier")
    learned = {name: value for name, value in state.items() if "running_" not in name and "num_batches" not in name}
    heads = sum(value.numel() for name, value in learned.items() if name.startswith(("head", "dist_head", "norm.")))
    pyramid_norms = 2 * sum(model.out_channels) if family == "CASViT" else 0
    assert own - pyramid_norms + heads == classifier == sum(value.numel() for value in learned.values())


@pytest.mark.stack
def test_found_by_type_alone_where_mmdet_and_mmseg_cannot_be_imported():
    code = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mmdet", "mmseg", "mmpretrain"):
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Missing())
import torch
from mmengine.registry import MODELS, Registry
project = Registry("model", parent=MODELS, scope="someproject")
for family in ("CARE", "CASViT"):
    for registry in (MODELS, project):
        model = registry.build(dict(type=f"mmcare.{family}", out_indices=(3,)))
    print(family, model(torch.rand(1, 3, 32, 32))[0].shape[1])
assert not any(name.startswith(("mmdet", "mmseg", "mmpretrain")) for name in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "CARE 1024" in result.stdout
    assert "CASViT 384" in result.stdout


@pytest.mark.stack
@pytest.mark.parametrize("project", ["mmdet", "mmseg", "mmpretrain"])
@families
def test_built_from_the_registries_of_other_projects(project, family):
    check_stack([project])  # which imports MMPretrain where there is no torchvision
    registry = import_module(f"{project}.registry").MODELS
    assert type(registry.build(dict(type=f"mmcare.{family}"))).__name__ == family


@families
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_size_any_stages_any_mode(family, data):
    height, width = data.draw(st.integers(32, 97)), data.draw(st.integers(32, 97))
    indices = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True))
    training, norm_eval, with_cp = data.draw(st.booleans()), data.draw(st.booleans()), data.draw(st.booleans())
    in_channels, batch = data.draw(st.sampled_from([1, 3, 4])), data.draw(st.integers(2, 3))
    model = build(
        family,
        in_channels=in_channels,
        out_indices=indices,
        norm_eval=norm_eval,
        with_cp=with_cp,
        drop_path_rate=data.draw(st.sampled_from([0.0, 0.3])),
        frozen_stages=data.draw(st.integers(-1, 4)),
    )
    model.train(training)
    images = torch.randn(batch, in_channels, height, width)
    maps = model(images)
    assert isinstance(maps, tuple)
    assert len(maps) == len(indices)
    for index, width_of_map, feature in zip(indices, model.out_channels, maps, strict=True):
        stride = 4 << index
        # CARE's strided convolutions are not padded, CAS-ViT's 3×3 convolutions are.
        rows, columns = (size // stride if family == "CARE" else -(-size // stride) for size in (height, width))
        assert feature.shape == (batch, width_of_map, rows, columns)
        assert feature.isfinite().all()


@families
def test_the_maps_do_not_depend_on_which_others_are_asked_for(family):
    everything = build(family).eval()
    images = torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        wanted = everything(images)
        for indices in [(3, 1), (0,), (2, 0, 1)]:
            model = build(family, out_indices=indices).eval()
            missing = model.load_state_dict(everything.state_dict(), strict=False).missing_keys
            assert not missing
            for index, feature in zip(indices, model(images), strict=True):
                torch.testing.assert_close(feature, wanted[index])


@pytest.mark.parametrize("family", [CARE, CASViT])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (dict(arch="s9"), ["'s9'", "choose one of"]),
        (dict(arch=5), ["arch=5"]),
        (dict(arch=dict(depths=(1, 1, 1, 1))), ["lacks", "channels"]),
        (dict(arch=dict(depths=(1, 1, 1, 1), channels=1, colour="red")), ["colour"]),
        (dict(out_indices=()), ["out_indices=()"]),
        (dict(out_indices=(0, 4)), ["4", "0 to 3"]),
        (dict(out_indices=(-1,)), ["-1", "0 to 3"]),
        (dict(out_indices=(1, 1)), ["(1, 1)"]),
        (dict(out_indices=2), ["out_indices=2"]),
        (dict(frozen_stages=5), ["frozen_stages=5", "-1 to 4"]),
        (dict(in_channels=0), ["in_channels=0"]),
        (dict(drop_path_rate=1.0), ["drop_path_rate=1.0"]),
        (dict(drop_path_rate=-0.1), ["drop_path_rate=-0.1"]),
    ],
)
def test_impossible_arguments_are_named_in_one_sentence(family, arguments, said):
    with pytest.raises(UserError) as error:
        family(**arguments)
    assert all(part in str(error.value) for part in said), str(error.value)
    assert "\n" not in str(error.value)


@families
@pytest.mark.parametrize("shape", [(1, 3, 31, 64), (1, 3, 64, 31), (1, 4, 64, 64), (3, 64, 64)])
def test_impossible_images_are_named_in_one_sentence(family, shape):
    with pytest.raises(UserError, match=r"\(B, 3, H, W\)"):
        build(family)(torch.zeros(shape))


def test_custom_arch():
    care = CARE(
        arch=dict(depths=(1, 1, 2, 2), memory_channels=(4, 8, 16, 32), ratios=((2, 2), (2, 2), (2, 3), (2, 3))),
    )
    assert care.out_channels == (16, 32, 64, 32 * 4 * 3)
    assert [tuple(feature.shape[1:]) for feature in care(torch.randn(1, 3, 64, 64))] == [
        (16, 16, 16),
        (32, 8, 8),
        (64, 4, 4),
        (384, 2, 2),
    ]
    casvit = CASViT(arch=dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 20)))
    assert casvit.out_channels == (8, 12, 16, 20)
    assert casvit(torch.randn(1, 3, 33, 47))[3].shape == (1, 20, 2, 2)


@families
@pytest.mark.parametrize("frozen_stages", range(-1, 5))
def test_frozen_stages_freeze_parameters_and_norms(family, frozen_stages):
    model = build(family, frozen_stages=frozen_stages, norm_eval=False).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(2, 3, 64, 64, requires_grad=True)  # so that backward() works with everything frozen, too
    sum(feature.square().mean() for feature in model(images)).backward()
    parts = {"stem.": 0, **{f"stages.{i}.": i + 1 for i in range(4)}, **{f"out_norms.{i}.": i + 1 for i in range(4)}}
    for name, parameter in model.named_parameters():
        stage = next(stage for prefix, stage in parts.items() if name.startswith(prefix))
        assert parameter.requires_grad == (parameter.grad is not None) == (stage > frozen_stages), name
    for name, value in model.state_dict().items():
        if name.endswith("running_mean"):
            stage = next(stage for prefix, stage in parts.items() if name.startswith(prefix))
            assert torch.equal(value, before[name]) == (stage <= frozen_stages), name


@families
@pytest.mark.parametrize("norm_eval", [True, False])
def test_norm_eval_keeps_the_statistics_but_trains_the_rest(family, norm_eval):
    model = build(family, norm_eval=norm_eval).train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(norm.training != norm_eval for norm in norms)
    assert all(norm.weight.requires_grad for norm in norms)
    assert model.training


@families
def test_checkpointing_gives_the_same_gradients_and_statistics_with_less_memory(family):
    images = torch.randn(2, 3, 64, 64)
    results = {}
    for with_cp in (False, True):
        model = build(family, with_cp=with_cp, norm_eval=False, drop_path_rate=0.2).train()
        saved = {}

        def keep(tensor, saved=saved):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = sum(feature.square().mean() for feature in model(images))
        held = sum(saved.values())
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results[with_cp] = (held, gradients, dict(model.named_buffers()))
    assert results[True][0] < 0.6 * results[False][0]
    for plain, checkpointed in zip(results[False][1:], results[True][1:], strict=True):
        for name, value in plain.items():
            torch.testing.assert_close(checkpointed[name], value, msg=lambda text, name=name: f"{name}: {text}")


CUSTOM = {
    CARE: dict(depths=(1, 1, 1, 1), memory_channels=(4, 8, 16, 32), ratios=((2, 2),) * 4),
    CASViT: dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 20)),
}


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        (CARE, dict(memory_channels=(4, 8, 20, 32)), "head_channels=16 .* does not divide .* memory_channels=20"),
        (CARE, dict(head_channels=(0, None, 16, 32)), "head_channels .*=0 is not valid: give a whole number"),
        (CARE, dict(head_channels=(None, None, -4, 32)), "head_channels .*=-4 is not valid"),
        (CARE, dict(head_channels=(None, None, "8", 32)), "head_channels .*='8' is not valid"),
        (CARE, dict(ratios=(2, 2, 2, 2)), r"ratios=\(2, 2, 2, 2\) .* give a pair for each stage"),
        (CARE, dict(ratios=((2, 2, 2),) * 4), "give a pair for each stage"),
        (CARE, dict(ratios=((2, 2.5),) * 4), "ratio .*=2.5 is not valid"),
        (CARE, dict(ratios=((2, 0),) * 4), "ratio .*=0 is not valid"),
        (CARE, dict(memory_channels=(4, 8, 16, 0)), "memory_channels .*=0 is not valid"),
        (CARE, dict(depths=(1, 1, 1, 0)), "depths .*=0 is not valid"),
        (CASViT, dict(channels=(7, 12, 16, 20)), r"channels=\(7, 12, 16, 20\) .* the first must be even"),
        (CASViT, dict(channels=(8, 12, 16)), "one value for each of the 4 stages"),
        (CASViT, dict(channels=(8, True, 16, 20)), "channels .*=True is not valid"),
    ],
)
def test_impossible_custom_archs_are_named_in_one_sentence(family, changes, said):
    family(arch=CUSTOM[family])
    with pytest.raises(UserError, match=said) as error:
        family(arch={**CUSTOM[family], **changes})
    assert "\n" not in str(error.value)


@families
def test_drop_path_grows_linearly_over_all_blocks(family):
    model = build(family, drop_path_rate=0.3)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    linear = [0.3 * i / (len(rates) - 1) for i in range(len(rates))]
    if family == "CARE":
        linear[-1] = 0.0  # it has no shortcut: dropping it would zero the map
    assert rates == pytest.approx(linear)
    shallow = build(family, drop_path_rate=0.3, out_indices=(0,))
    assert [block.drop_path.drop_prob for block in shallow.stages[0].blocks] == rates[: len(shallow.stages[0].blocks)]


@families
def test_drop_path_blanks_no_map(family):
    model = build(family, drop_path_rate=0.9).train()
    for feature in model(torch.randn(24, 3, 32, 32)):
        assert (feature.flatten(1).abs().amax(1) > 0).all()


def test_files_from_before_the_norms_moved_are_read():
    """Norms used to be siblings of CAS-ViT's parts, and the context mappings direct children of the token mixer."""
    before = (
        (".token_mixer.norm.", ".norm1."),
        (".mlp.norm.", ".norm2."),
        (".token_mixer.similarity.conv.", ".token_mixer.similarity."),
        (".token_mixer.similarity.query_context.", ".token_mixer.query_context."),
        (".token_mixer.similarity.key_context.", ".token_mixer.key_context."),
    )
    model, other = build("CASViT"), build("CASViT")
    state = {}
    for name, value in model.state_dict().items():
        for new, old in before:
            name = name.replace(new, old)
        state[f"backbone.{name}"] = torch.randn(value.shape) if value.is_floating_point() else value
    assert not set(state) <= {f"backbone.{name}" for name in model.state_dict()}
    nn.ModuleDict(dict(backbone=other)).load_state_dict(dict(state))
    for value, loaded in zip(state.values(), other.state_dict().values(), strict=True):
        assert torch.equal(value, loaded)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@families
def test_half_precision_holds_on_large_images(family, dtype):
    """With activations at ten times the usual scale, sums over all positions must not overflow."""
    model = build(family).eval()
    model.load_state_dict(helpers.backbone_weights(family, SMALLEST[family]["arch"]), strict=False)
    images = 10 * torch.randn(1, 3, 480, 800, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(images)
        with torch.autocast("cpu", dtype):
            outputs = model(images)
    for output, stage in zip(outputs, wanted, strict=True):
        assert output.isfinite().all()
        assert relative_error(output, stage) < (0.02 if dtype == torch.float16 else 0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_linear_attention_alone_holds_in_half_precision(dtype):
    """Sums of φ(k)ᵀv over all positions far exceed float16's range here; their mean does not."""
    from mmcare.models.care import LinearAttention

    torch.manual_seed(0)
    attention = LinearAttention(32, 16)
    x = 10 * torch.randn(1, 32, 100, 167)
    with torch.no_grad():
        wanted = attention(x)
        output = attention.to(dtype)(x.to(dtype))
    assert (torch.nn.functional.elu(x) + 1).sum((2, 3)).max() > 65504
    assert output.dtype == dtype
    assert relative_error(output, wanted) < 0.02


def test_initialization_is_the_authors():
    model = CARE("s0")
    model.init_weights()
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    values = torch.cat([conv.weight.flatten() for conv in convolutions])
    assert values.std().item() == pytest.approx(0.02, rel=0.02)
    assert all(not conv.bias.any() for conv in convolutions)
    assert all((block.layer_scale.weight == 1e-6).all() for block in model.stages[0].blocks)
