"""Every config in configs/ builds and trains for a step with a gradient for every parameter.

Those of each head with the smallest backbone of each family are also trained, saved and evaluated by command; the other
sizes go the same way.

The gradients are read from the optimizer, also in checkpoints: after AdamW's first step its ``exp_avg`` is a tenth of
each clipped gradient. A parameter without a gradient has no entry; it would break training on several GPUs.
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import helpers
import pytest
from helpers import load_tool
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, set_random_seed

from mmcare.checkpoints import read_checkpoint
from mmcare.data.sample import overlay_sample, prepare
from mmcare.runs import read_curves

CONFIGS = {path.stem: path for path in sorted(helpers.CONFIGS.glob("*/*_ca*_*.py"))}
METRICS = {
    "retinanet": ["coco/bbox_mAP", "coco/bbox_AR@100"],
    "mask_rcnn": ["coco/bbox_mAP", "coco/bbox_AR@100", "coco/segm_mAP", "coco/segm_AR@100"],
    "semantic_fpn": ["aAcc", "mIoU", "mAcc"],
    "upernet": ["aAcc", "mIoU", "mAcc"],
}
BY_COMMAND = [f"{head}_{backbone}" for head in METRICS for backbone in ("care_s0", "casvit_xs")]
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
IMAGES = 2


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """Return a folder with the sample data, and options that limit a run to one step and a short evaluation."""
    folder = tmp_path_factory.mktemp("ground")
    data = prepare(folder / "data/sample")
    coco = json.loads((data / "coco/annotations/instances_val2017.json").read_text())
    coco["images"] = coco["images"][:IMAGES]
    kept = {image["id"] for image in coco["images"]}
    coco["annotations"] = [mark for mark in coco["annotations"] if mark["image_id"] in kept]
    (folder / "few.json").write_text(json.dumps(coco))

    every = {"train_dataloader.batch_size": IMAGES, "default_hooks.checkpoint.save_best": None}
    every |= {"default_hooks.logger.interval": 1}
    for split in ("train", "val", "test"):
        every |= {f"{split}_dataloader.num_workers": 0, f"{split}_dataloader.persistent_workers": False}
        every |= {f"{split}_dataloader.dataset.indices": IMAGES}
    detection = {**every, "train_cfg.max_epochs": 1}
    for split in ("val", "test"):
        detection |= {f"{split}_evaluator.ann_file": f"{folder}/few.json"}
        detection |= {f"{split}_evaluator.metric_items": ["mAP", "AR@100"]}
    segmentation = {**every, "train_cfg.max_iters": 1}
    return SimpleNamespace(
        folder=folder,
        data=data,
        short={
            "retinanet": {**detection, "model.test_cfg.score_thr": 0.0},  # an untrained one has low scores only
            "mask_rcnn": {**detection, "model.test_cfg.rcnn.max_per_img": 20},  # each mask takes time
            "semantic_fpn": segmentation,
            "upernet": segmentation,
        },
    )


def head_of(name):
    return next(head for head in METRICS if name.startswith(head))


def config_on_samples(name, ground):
    cfg = Config.fromfile(CONFIGS[name])
    overlay_sample(cfg, ground.data)
    cfg.merge_from_dict(ground.short[head_of(name)])
    return cfg


def gradients_of(model, optimizer):
    return {name: optimizer.state.get(parameter, {}).get("exp_avg") for name, parameter in model.named_parameters()}


def gradients_in(checkpoint):
    """Return the same from a checkpoint, whose optimizer numbers the parameters in the model's order."""
    weights = {name: weight for name, weight in checkpoint["state_dict"].items() if not name.endswith(BUFFERS)}
    optimizer = checkpoint["optimizer"]
    numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
    found = [optimizer["state"].get(number, {}).get("exp_avg") for number in numbers]
    gradients = dict(zip(weights, found, strict=True))
    assert all(g is None or g.shape == weights[name].shape for name, g in gradients.items())
    return gradients


def assert_every_gradient(gradients, may_vanish=None):
    """Assert that every parameter has a finite gradient, and a nonzero one unless its name matches ``may_vanish``."""
    wrong = {}
    for name, gradient in gradients.items():
        if gradient is None:
            wrong[name] = "none"
        elif not gradient.isfinite().all():
            wrong[name] = "not finite"
        elif not gradient.any() and not (may_vanish and re.fullmatch(may_vanish, name)):
            wrong[name] = "zero"
    assert wrong == {}


# With --sample the backbones' batch norms use batch statistics and so cancel a bias before them. The gradient of such a
# bias is only rounding error, and may be zero.
CANCELLED = r"backbone\..*\.bias"


def assert_metrics(name, metrics):
    """Assert that the head's metrics are all there and in range (MMDetection has none if nothing is predicted)."""
    assert sorted(metrics) == sorted(METRICS[head_of(name)])
    for key, value in metrics.items():
        assert 0 <= value <= (1 if key.startswith("coco/") else 100), (key, value)


# -- as configured -----------------------------------------------------------------------------------------------------


@pytest.mark.stack
@pytest.mark.parametrize("name", CONFIGS)
def test_the_model_and_the_optimizer_of_the_config_take_a_step(name, ground):
    samples = config_on_samples(name, ground)
    cfg = Config.fromfile(CONFIGS[name])
    # Without drop path, as a block that is dropped for both images has no gradient.
    cfg.model.backbone.update(init_cfg=None, drop_path_rate=0.0)
    # The size of the sample images, and the number of proposals for Mask R-CNN
    cfg.model.update(data_preprocessor=samples.model.data_preprocessor, train_cfg=samples.model.train_cfg)
    init_default_scope(cfg.default_scope)
    set_random_seed(0)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    model.train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    batch = next(iter(Runner.build_dataloader(samples.train_dataloader, seed=0)))
    model.train_step(batch, wrapper)
    assert_every_gradient(gradients_of(model, wrapper.optimizer))


# -- on the sample data ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(in_process, monkeypatch, ground):
    """Run a tool on the sample data, as its command line would."""
    monkeypatch.chdir(ground.folder)
    monkeypatch.setenv("LOCAL_RANK", "0")  # the tools set it; monkeypatch restores it

    def run(tool, name, *args):
        settings = [f"{key}={value}" for key, value in ground.short[head_of(name)].items()]
        # MMEngine keeps one visualizer of each name in a process, with the output folder of the first run.
        settings.append(f"visualizer.name={tool}_{name}")
        command = [CONFIGS[name], *args, "--sample", "--cfg-options", *settings]
        status, printed = in_process(load_tool(tool).main, tool, *command)
        assert status == 0, printed.out[-2000:] + printed.err

    return run


@pytest.mark.parametrize("name", BY_COMMAND)
def test_the_commands_train_and_test_on_the_sample_data(name, ground, run):
    run("train", name)
    work_dir = ground.folder / "work_dirs" / name
    (trained,) = read_curves(work_dir).metrics.values()
    assert_metrics(name, trained)
    path = Path((work_dir / "last_checkpoint").read_text())
    assert_every_gradient(gradients_in(read_checkpoint(path)), CANCELLED)
    run("test", name, path)
    (file,) = work_dir.glob("*/*.json")  # written by MMEngine, with the metrics of the test
    tested = json.loads(file.read_text())
    assert {key: tested[key] for key in trained} == trained
    path.unlink()  # hundreds of megabytes that pytest would keep
