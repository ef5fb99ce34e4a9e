"""The classification configs: the authors' networks by size, and the recipes."""

from functools import cache

import helpers
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, HOOKS, MODELS, TRANSFORMS, DefaultScope
from PIL import Image
from torch import nn

from mmcare.benchmark import count
from mmcare.stack import check_stack

check_stack(["mmpretrain"])

# Millions of parameters with both heads, reported by the authors, and GMACs at 224². Those of CARE are reported by the
# authors, those of CAS-ViT were counted by hand for its layers.
SIZES = {
    "care_s0": (7.3, 0.7),
    "care_s1": (9.6, 1.0),
    "care_s2": (19.5, 1.9),
    "casvit_xs": (3.20, 0.55),
    "casvit_s": (5.76, 0.91),
    "casvit_m": (12.42, 1.86),
    "casvit_t": (21.76, 3.56),
}
FINE_TUNING = [f"{name}_384" for name in SIZES if name.startswith("casvit")]
every = pytest.mark.parametrize("name", [*SIZES, *FINE_TUNING])
one_of_each = pytest.mark.parametrize("name", ["care_s0", "casvit_xs", "casvit_xs_384"])


@cache
def _read(name):
    return Config.fromfile(helpers.CONFIGS / f"classification/{name}.py")


def read(name):
    return _read(name).copy()


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        yield


def test_there_is_a_config_for_each_network_and_for_the_fine_tuning_of_casvit():
    found = [path.stem for path in (helpers.CONFIGS / "classification").glob("*.py")]
    assert sorted(found) == sorted([*SIZES, *FINE_TUNING])


@pytest.mark.stack
@pytest.mark.parametrize("name", SIZES)
def test_parameters_and_gmacs_at_224_are_the_papers(name):
    parameters, gmacs = SIZES[name]
    *parts, whole = count(MODELS.build(read(name).model).eval(), 224, 224)
    assert [part for part, _, _ in parts] == ["backbone", "head"]
    decimals = 1 if name.startswith("care") else 2
    assert (round(whole[1] / 1e6, decimals), round(whole[2] / 1e9, decimals)) == (parameters, gmacs)


@every
def test_the_model_is_the_one_in_the_name(name):
    cfg = read(name)
    family, arch = name.removesuffix("_384").split("_")
    kind = {"care": "mmcare.CARE", "casvit": "mmcare.CASViT"}[family]
    assert (cfg.model.backbone.type, cfg.model.backbone.arch, cfg.model.head.type) == (kind, arch, f"{kind}Head")
    assert not cfg.model.backbone.norm_eval
    assert "init_cfg" not in cfg.model.backbone
    assert cfg.model.backbone.drop_path_rate == (0 if name.endswith("384") else 0.1)
    assert cfg.load_from == (f"checkpoints/cas-vit-{arch}.pth" if name.endswith("384") else None)


@one_of_each
def test_a_step_of_training_changes_every_part(name):
    """Of the model that the config builds, on images of 64², with the batch augmentations and the optimizer."""
    torch.manual_seed(0)
    cfg = read(name)
    cfg.model.backbone.drop_path_rate = 0.0
    model = MODELS.build(cfg.model)
    model.init_weights()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {key: value.clone() for key, value in model.named_parameters()}
    from mmpretrain.structures import DataSample

    data = dict(
        inputs=torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8),
        data_samples=[DataSample().set_gt_label(index) for index in range(4)],
    )
    for _ in range(cfg.optim_wrapper.get("accumulative_counts", 1)):
        losses = model.train_step(data, wrapper)
    assert float(losses["loss"]) == pytest.approx(6.9, abs=0.3)  # the logarithm of 1,000 classes
    same = [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    assert not same


@one_of_each
def test_no_weight_decay_on_vectors(name):
    cfg = read(name)
    model = MODELS.build(cfg.model)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for key, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0 if parameter.ndim == 1 else 0.05), key


def test_care_mixes_and_erases_and_casvit_does_not():
    cares, casvits = read("care_s0"), read("casvit_xs")
    assert [augment.type for augment in cares.model.train_cfg.augments] == ["Mixup", "CutMix"]
    assert cares.model.backbone.layer_scale_init_value == 1e-6
    assert "train_cfg" not in casvits.model
    erasing = [[step.type for step in cfg.train_pipeline].count("RandomErasing") for cfg in (cares, casvits)]
    assert erasing == [1, 0]
    assert [step.type for step in cares.train_dataloader.dataset.pipeline][-2:] == ["RandomErasing", "PackInputs"]


@pytest.mark.parametrize(
    ("name", "epochs", "peak", "last", "step"),
    [
        ("care_s0", 300, 1e-3, 1e-5, 1024),
        ("casvit_xs", 300, 6e-3, 1e-6, 2048),
        ("casvit_xs_384", 30, 5e-5, 5e-5, 1024),
    ],
)
def test_schedule_and_images_in_a_step_of_8_gpus(name, epochs, peak, last, step):
    from mmengine.registry import PARAM_SCHEDULERS

    cfg = read(name)
    assert cfg.train_cfg == dict(type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=1)
    batch = cfg.train_dataloader.batch_size * cfg.optim_wrapper.get("accumulative_counts", 1)
    assert 8 * batch == step
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=8 * cfg.train_dataloader.batch_size)
    wrapper = build_optim_wrapper(nn.Linear(2, 2), cfg.optim_wrapper)
    schedulers = [
        PARAM_SCHEDULERS.get(scheduler.pop("type")).build_iter_from_epoch(
            optimizer=wrapper.optimizer, epoch_length=4, **{k: v for k, v in scheduler.items() if k[:7] != "convert"}
        )
        for scheduler in cfg.param_scheduler
    ]
    rates = []
    for _ in range(4 * epochs):
        rates.append(wrapper.optimizer.param_groups[0]["lr"])
        wrapper.optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert rates[0] < 2e-3 * peak
    assert max(rates) == pytest.approx(peak, rel=1e-3)
    assert rates[-1] == pytest.approx(last, rel=0.05)


@one_of_each
def test_the_average_of_the_weights_is_taken_once_a_step(name):
    cfg = read(name)
    (hook,) = [HOOKS.build(hook) for hook in cfg.custom_hooks]
    assert type(hook).__module__.startswith("mmpretrain")
    assert hook.ema_cfg.get("interval", 1) == cfg.optim_wrapper.get("accumulative_counts", 1)
    assert 1 - hook.ema_cfg["momentum"] == pytest.approx(0.9998 if name == "care_s0" else 0.9995)


@one_of_each
def test_the_pipelines_give_images_of_the_size_and_labels(name, tmp_path):
    cfg = read(name)
    for index, folder in enumerate(("n01440764", "n01443537")):
        for split in ("train", "val"):
            (tmp_path / split / folder).mkdir(parents=True)
            colour = (250 * index, 20, 120)
            Image.new("RGB", (500, 375), colour).save(tmp_path / split / folder / f"{split}_{index}.JPEG")
    size = 384 if name.endswith("384") else 224
    for split in ("train", "val"):
        loader = cfg[f"{split}_dataloader"]
        dataset = DATASETS.build(
            dict(loader.dataset, data_root=str(tmp_path), metainfo=dict(classes=["tench", "goldfish"]))
        )
        assert [int(dataset[index]["data_samples"].gt_label) for index in range(2)] == [0, 1]
        assert dataset[1]["inputs"].shape == (3, size, size)
    packed = dataset[1]
    model = MODELS.build(cfg.model).eval()
    found = model.data_preprocessor(dict(inputs=[packed["inputs"]], data_samples=[packed["data_samples"]]))["inputs"]
    wanted = [
        (value - mean) / std for value, mean, std in zip((250, 20, 120), (124, 116, 104), (58, 57, 57), strict=True)
    ]
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.tensor(wanted), atol=0.1, rtol=0.05)


@every
def test_every_transform_exists(name):
    cfg = read(name)
    for split in ("train", "val"):
        for step in cfg[f"{split}_dataloader"].dataset.pipeline:
            assert TRANSFORMS.build(step)
