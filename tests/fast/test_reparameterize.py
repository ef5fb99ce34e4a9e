"""The fast form: the same outputs as the trained model, all possible norms folded, the trained model unchanged."""

import copy
import os
import platform
import subprocess
import sys
from functools import partial
from itertools import chain
from typing import ClassVar

import helpers
import pytest
import torch
from helpers import CONFIGS, DETECTOR, SEGMENTOR, SMALL_ARCHS, assert_same_maps, relative_error, shake, trained
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mmcv.cnn import ConvModule
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn

import mmcare
from mmcare import UserError
from mmcare.fast.care import FusedLinearAttention
from mmcare.models.care import LinearAttention

families = pytest.mark.parametrize("family", SMALL_ARCHS)


def count_norms(model):
    return sum(isinstance(module, nn.BatchNorm2d.__base__) for module in model.modules())


# -- backbones ---------------------------------------------------------------------------------------------------------


@pytest.mark.stack
@pytest.mark.parametrize(("family", "arch"), helpers.ARCHS)
def test_all_seven_give_the_trained_models_outputs_with_no_norm_but_the_outputs_own(family, arch):
    model = MODELS.build(dict(type=f"mmcare.{family}", arch=arch)).eval()
    assert not model.load_state_dict(helpers.backbone_weights(family, arch), strict=False).missing_keys
    fast = mmcare.reparameterize(model)
    for size in [(32, 32), (33, 65), (64, 96), (224, 224)]:
        assert_same_maps(fast, model, torch.randn(1, 3, *size))
    assert count_norms(fast) == (0 if family == "CARE" else 4)
    for output, stage in zip(fast(helpers.image()), helpers.expected(family, arch), strict=True):
        assert relative_error(output, stage) < 1e-5


ARCHS = {
    "CARE": st.builds(
        lambda depths, heads, ratios: dict(
            depths=depths, memory_channels=(4, 8, 12, 8), ratios=ratios, head_channels=heads
        ),
        depths=st.tuples(*[st.integers(1, 2)] * 4),
        heads=st.tuples(*[st.sampled_from([None, 1, 2, 4])] * 4),
        ratios=st.tuples(*[st.tuples(st.integers(1, 2), st.integers(1, 3))] * 4),
    ),
    "CASViT": st.builds(
        lambda depths, channels: dict(depths=depths, channels=channels),
        depths=st.tuples(*[st.integers(1, 2)] * 4),
        channels=st.tuples(st.sampled_from([2, 6, 8]), *[st.integers(1, 9)] * 3),
    ),
}


@families
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_network_any_size(family, data):
    indices = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True))
    model = trained(
        family,
        arch=data.draw(ARCHS[family]),
        out_indices=indices,
        in_channels=data.draw(st.sampled_from([1, 3, 4])),
        with_cp=data.draw(st.booleans()),
        drop_path_rate=data.draw(st.sampled_from([0.0, 0.3])),
        frozen_stages=data.draw(st.integers(-1, 4)),
        norm_eval=data.draw(st.booleans()),
    )
    model.train(data.draw(st.booleans()))
    fast = mmcare.reparameterize(model)
    assert not any(module.training for module in fast.modules())
    assert count_norms(fast) == (0 if family == "CARE" else len(indices))
    size = data.draw(st.tuples(st.integers(32, 97), st.integers(32, 97)))
    images = torch.randn(data.draw(st.integers(1, 3)), model.in_channels, *size)
    exact = copy.deepcopy(model.eval()).double()
    # In some random networks, with heads of one channel, rounding alone moves the maps of the trained form.
    with torch.no_grad():
        assume(all(relative_error(*maps) < 2e-6 for maps in zip(model(images), exact(images.double()), strict=True)))
    assert_same_maps(fast, model, images)


@families
def test_the_trained_model_stays_as_it_was(family):
    model = trained(family, frozen_stages=1)
    model.train()
    seen = []
    model.stages[2].register_forward_hook(lambda module, inputs, output: seen.append(module))
    before = {name: (tensor.clone(), tensor.stride()) for name, tensor in model.state_dict().items()}
    modes = {name: (type(module), module.training) for name, module in model.named_modules()}
    gradients = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    generator = torch.get_rng_state()

    fast = mmcare.reparameterize(model)
    assert torch.equal(torch.get_rng_state(), generator)
    fast(torch.randn(1, 3, 64, 64))
    for tensor in chain(fast.parameters(), fast.buffers()):
        assert not tensor.requires_grad
        tensor.fill_(7)  # nothing is shared with the trained model

    assert modes == {name: (type(module), module.training) for name, module in model.named_modules()}
    assert gradients == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    after = model.state_dict()
    assert list(after) == list(before)
    for name, (tensor, stride) in before.items():
        assert torch.equal(after[name], tensor)
        assert after[name].stride() == stride
    assert len(seen) == 1  # the hook ran in the fast form
    model(torch.randn(2, 3, 64, 64))[-1].sum().backward()
    assert len(seen) == 2


def test_what_hooks_are_bound_to_is_not_copied():
    class Runner:
        def __deepcopy__(self, memo):
            raise AssertionError

    def hook(runner, *_):
        assert isinstance(runner, Runner)
        seen.append(runner)

    seen, runner, model = [], Runner(), trained("CARE")
    model.register_forward_hook(partial(hook, runner))
    model.register_forward_pre_hook(partial(hook, runner))
    mmcare.reparameterize(model)(torch.randn(1, 3, 64, 64))
    assert seen == [runner, runner]


@families
def test_a_fast_form_is_copied(family):
    model = trained(family)
    fast = mmcare.reparameterize(model)
    again = mmcare.reparameterize(fast)
    assert again is not fast
    assert_same_maps(again, model, torch.randn(1, 3, 64, 64))
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == {
        name: tensor.shape for name, tensor in fast.state_dict().items()
    }


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float16, 0.01), (torch.bfloat16, 0.06)], ids=str
)
@families
def test_other_types(family, dtype, tolerance):
    """Weights converted before or after folding, and autocast."""
    model = trained(family)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        wanted = model(images)
        outputs = [
            mmcare.reparameterize(trained(family).to(dtype))(images.to(dtype)),
            mmcare.reparameterize(model).to(dtype)(images.to(dtype)),
        ]
        if dtype != torch.float64:
            with torch.autocast("cpu", dtype):
                outputs.append(mmcare.reparameterize(model)(images))
    for maps in outputs:
        for output, stage in zip(maps, wanted, strict=True):
            assert relative_error(output, stage) < tolerance
    assert all(output.dtype == dtype for maps in outputs[:2] for output in maps)


def test_the_attention_alone_holds_in_half_precision():
    """Sums over all positions far exceed float16's range here."""
    torch.manual_seed(0)
    attention = LinearAttention(32, 16)
    x = 10 * torch.randn(1, 32, 100, 167)
    with torch.no_grad():
        wanted = attention(x)
        output = FusedLinearAttention(attention.half())(x.half())
    assert output.dtype == torch.float16
    assert relative_error(output, wanted) < 0.02


@families
def test_maps_stay_channels_last_inside_whatever_comes_in(family):
    fast = mmcare.reparameterize(trained(family))
    inputs = []
    for module in fast.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, args, output: inputs.append(output))
    for layout in (torch.contiguous_format, torch.channels_last):
        inputs.clear()
        maps = fast(torch.randn(2, 3, 64, 96).contiguous(memory_format=layout))
        assert inputs
        assert all(output.is_contiguous(memory_format=torch.channels_last) for output in (*inputs, *maps))


@families
def test_gradients_reach_the_images(family):
    model = trained(family)
    gradients = []
    for form in (model, mmcare.reparameterize(model)):
        images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
        sum(output.square().mean() for output in form(images)).backward()
        gradients.append(images.grad)
    assert relative_error(gradients[1], gradients[0]) < 1e-4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tests glibc's allocator")
def test_freed_memory_is_kept_where_asked_for():
    code = """
import ctypes, torch, mmcare
from mmengine.registry import MODELS

class Memory(ctypes.Structure):  # mallinfo2(3)
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks",
                                                     "fsmblks", "uordblks", "fordblks", "keepcost")]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Memory
def blocks_of_a_map():
    before = mallinfo().hblks
    a_map = torch.ones(7 * 2**20)  # 28 MiB
    return mallinfo().hblks - before

tiny = dict(depths=(1, 1, 1, 1), memory_channels=(8, 8, 16, 32), ratios=((1, 1),) * 4)
mmcare.reparameterize(MODELS.build(dict(type="mmcare.CARE", arch=tiny)))
print(blocks_of_a_map())
mmcare.keep_freed_memory()
print(blocks_of_a_map())
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    # reparameterize changes no process-wide setting: after it, a map still gets its own block from the system.
    assert done.stdout.split() == ["1", "0"]


def test_wrappers_are_taken_off_and_other_models_refused(tmp_path):
    model = trained("CARE")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        fast = mmcare.reparameterize(wrapped)
    finally:
        torch.distributed.destroy_process_group()
    assert type(fast) is mmcare.CARE
    assert_same_maps(fast, model, torch.randn(1, 3, 64, 64))
    with pytest.raises(UserError, match="was given a Sequential without one$"):
        mmcare.reparameterize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    with pytest.raises(UserError, match="compile the result$"):
        mmcare.reparameterize(torch.compile(model))
    model.stages[1].downsample.norm = nn.GroupNorm(1, 16)
    with pytest.raises(UserError, match="GroupNorm.* cannot be folded"):
        mmcare.reparameterize(model)


# -- necks and heads ---------------------------------------------------------------------------------------------------

FOLDED = {
    "batch norm": dict(norm_cfg=dict(type="BN")),
    "own bias": dict(norm_cfg=dict(type="BN"), bias=True),
    "no scale and shift": dict(norm_cfg=dict(type="BN", affine=False)),
    "synchronized": dict(norm_cfg=dict(type="SyncBN")),
    "activation first": dict(norm_cfg=dict(type="BN"), order=("act", "conv", "norm")),
    "padded by reflection": dict(norm_cfg=dict(type="BN"), padding_mode="reflect"),
    "padded in a circle": dict(norm_cfg=dict(type="BN"), padding_mode="circular"),
    "folded in each pass": dict(norm_cfg=dict(type="BN"), efficient_conv_bn_eval=True),
}
KEPT = {
    "norm first": dict(norm_cfg=dict(type="BN"), order=("norm", "conv", "act")),
    "activation between": dict(norm_cfg=dict(type="BN"), order=("conv", "act", "norm")),
    "weights standardized in each pass": dict(norm_cfg=dict(type="BN"), conv_cfg=dict(type="ConvAWS")),
    "spectral norm": dict(norm_cfg=dict(type="BN"), with_spectral_norm=True),
    "statistics of the batch": dict(norm_cfg=dict(type="BN", track_running_stats=False)),
    "group norm": dict(norm_cfg=dict(type="GN", num_groups=2)),
    "no norm": dict(),
}


@pytest.mark.stack
@pytest.mark.parametrize("kind", [*FOLDED, *KEPT])
def test_norms_after_a_convolution_are_folded_in_necks_and_heads(kind):
    torch.manual_seed(0)
    layer = ConvModule(4, 6, 3, padding=1, **{**FOLDED, **KEPT}[kind])
    model = shake(nn.ModuleDict(dict(backbone=trained("CARE"), neck=layer))).eval()
    fast = mmcare.reparameterize(model)
    assert isinstance(fast["neck"].norm, nn.Identity) == (kind in FOLDED)
    x = torch.randn(2, 4, 9, 9)
    with torch.no_grad():
        assert relative_error(fast["neck"](x), model["neck"](x)) < 1e-6


MASK_RCNN = f"""
_base_ = ["{CONFIGS}/detection/mask_rcnn_care_s1.py"]
model = dict(backbone=dict(arch=dict({helpers.TINY}, _delete_=True)), neck=dict(in_channels=[32, 32, 64, 128]))
"""
UPERNET = f"""
_base_ = ["{CONFIGS}/_base_/models/upernet.py"]
default_scope = "mmseg"
model = dict(
    backbone=dict(type="mmcare.CARE", arch=dict({helpers.TINY})),
    decode_head=dict(in_channels=[32, 32, 64, 128], channels=16),
    auxiliary_head=dict(in_channels=64, channels=16),
)
"""


@pytest.fixture
def build_whole(tmp_path):
    """Build a detector or segmentor, as if trained, from the text of a config."""

    def build_whole(text, **changes):
        (tmp_path / "config.py").write_text(text)
        cfg = Config.fromfile(tmp_path / "config.py")
        cfg.merge_from_dict(changes)
        init_default_scope(cfg.default_scope)
        torch.manual_seed(0)
        return revert_sync_batchnorm(shake(MODELS.build(cfg.model))).eval()

    yield build_whole
    init_default_scope("mmengine")


BN = dict(type="BN")
DETECTORS = {
    "RetinaNet": {"model.neck.norm_cfg": BN, "model.bbox_head.norm_cfg": BN},
    # One convolution for all levels, with a separate norm for each
    "shared convolutions": {
        "model.bbox_head.type": "RetinaSepBNHead",
        "model.bbox_head.num_ins": 5,
        "model.bbox_head.norm_cfg": BN,
    },
    "CAS-ViT": {
        "model.backbone": dict(
            _delete_=True, type="mmcare.CASViT", arch=dict(depths=[1] * 4, channels=[32, 32, 64, 128])
        )
    },
}


@pytest.mark.stack
@pytest.mark.parametrize("changes", DETECTORS.values(), ids=DETECTORS)
def test_detectors_predict_the_same(changes, build_whole):
    model = build_whole(DETECTOR, **changes)
    fast = mmcare.reparameterize(model)
    assert count_norms(fast) == (4 if isinstance(model.backbone, mmcare.CASViT) else 0)
    images = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        for outputs, wanted in zip(fast(images, mode="tensor"), model(images, mode="tensor"), strict=True):
            for output, level in zip(outputs, wanted, strict=True):
                assert relative_error(output, level) < 1e-5


def test_roi_align_reads_the_maps_as_they_lie(build_whole):
    """mmcv's operators ignore strides: on a channels-last map they would compute nonsense."""
    model = build_whole(MASK_RCNN)
    images, rois = torch.randn(1, 3, 96, 128), torch.tensor([[0.0, 5, 7, 60, 50], [0, 20, 3, 120, 90]])
    features = []
    with torch.no_grad():
        for form in (model, mmcare.reparameterize(model), mmcare.reparameterize(mmcare.reparameterize(model))):
            maps = form.backbone(images)
            assert all(feature.is_contiguous() for feature in maps)
            features.append(form.roi_head.bbox_roi_extractor(form.neck(maps)[:4], rois))
    assert relative_error(features[1], features[0]) < 1e-5
    assert torch.equal(features[2], features[1])


@pytest.mark.stack
@pytest.mark.parametrize("text", [SEGMENTOR, UPERNET], ids=["Semantic FPN", "UperNet"])
def test_segmentors_predict_the_same(text, build_whole):
    model = build_whole(text)
    fast = mmcare.reparameterize(model)
    assert count_norms(model) > count_norms(model.backbone)
    assert count_norms(fast) == 0
    images = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        assert relative_error(fast(images, mode="tensor"), model(images, mode="tensor")) < 1e-5


# -- testing with it ---------------------------------------------------------------------------------------------------


class Toy(BaseModel):
    """Return the mean of each map; record in ``seen`` which type of block computed it, and in which training step."""

    seen: ClassVar[list] = []

    def __init__(self):
        super().__init__()
        self.backbone = trained("CARE")
        self.steps = nn.Parameter(torch.zeros(()))

    def forward(self, inputs, mode="tensor"):
        means = torch.stack([feature.mean() for feature in self.backbone(torch.stack(inputs))])
        if mode == "loss":
            return dict(loss=means.sum() - self.steps)
        self.seen.append((type(self.backbone.stages[0].blocks[0]).__name__, float(self.steps)))
        return [dict(means=means)]


class Means(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [sample["means"] for sample in data_samples]

    def compute_metrics(self, results):
        return {str(i): float(value) for i, value in enumerate(torch.stack(results).mean(0))}


def toy_runner(work_dir, **kwargs):
    images = list(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    loader = dict(
        dataset=[dict(inputs=image) for image in images],
        batch_size=2,
        num_workers=0,
        sampler=dict(type="DefaultSampler", shuffle=False),
    )
    return Runner(
        model=Toy(),
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=1.0), clip_grad=dict(max_norm=1e-3)),
        test_dataloader=loader,
        test_cfg=dict(),
        test_evaluator=[Means()],
        experiment_name=work_dir.name,
        **kwargs,
    )


def test_the_hook_tests_with_the_fast_form_of_the_weights_to_test_with(tmp_path):
    Toy.seen.clear()
    hooks = [dict(type="mmcare.ReparameterizeHook"), dict(type="EMAHook", momentum=0.5, begin_epoch=0)]
    runner = toy_runner(tmp_path, custom_hooks=[*hooks, dict(type="mmcare.FiniteLossHook")])
    model = runner.model
    runner.train()
    metrics = runner.test_loop.run()
    last = float(model.steps)
    kinds, steps = zip(*Toy.seen, strict=True)
    assert set(kinds) == {"FusedBlock"}
    assert 0 < steps[0] < last  # the averaged weights, not the last ones
    assert runner.model is model
    assert model.backbone.stages[0].blocks[0].layer_scale is not None
    assert len(metrics) == 4


def test_the_hook_compiles_the_fast_form_where_the_config_says_so(tmp_path):
    Toy.seen.clear()
    compiled = toy_runner(
        tmp_path, cfg=dict(compile=dict(backend="eager")), custom_hooks=[dict(type="mmcare.ReparameterizeHook")]
    ).test()
    assert {kind for kind, _ in Toy.seen} == {"FusedBlock"}
    plain = toy_runner(tmp_path).test()
    assert {kind for kind, _ in Toy.seen} == {"FusedBlock", "Block"}
    assert compiled == pytest.approx(plain, rel=1e-4)
