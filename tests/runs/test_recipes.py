"""tools/train.py --recipe finetune: its settings for each head, what wins over them, and a training with them."""

import json
import re
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers import CONFIGS, DETECTOR, IN_PROCESS, ROOT, SEGMENTOR, load_module, load_tool
from mmengine.config import Config

from mmcare.checkpoints import read_checkpoint
from mmcare.cli import read_run_config
from mmcare.data.sample import Recipe, overlay_sample, prepare
from mmcare.runs import LAUNCHERS, read_curves

HEADS = ("retinanet", "mask_rcnn", "semantic_fpn", "upernet")
IMAGES = 20
tool = load_tool("train")


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """Return a folder with twenty pictures, a config for them for each head, and a file in place of weights."""
    folder = tmp_path_factory.mktemp("ground")
    data = prepare(folder / "data", Recipe(train_images=IMAGES, val_images=4))
    for head in HEADS:
        task = "detection" if "rcnn" in head or "retina" in head else "segmentation"
        cfg = Config.fromfile(CONFIGS / task / f"{head}_care_s0.py")
        overlay_sample(cfg, data)
        cfg.dump(folder / f"{head}.py")
    state = dict(meta=dict(epoch=1, iter=2, seed=0), optimizer={}, message_hub={}, param_schedulers=[])
    torch.save({**state, "state_dict": {"weight": torch.zeros(1)}}, folder / "weights.pth")
    return folder


@pytest.fixture
def adapted(ground, in_process, monkeypatch):
    """Return the config with which a command line would train."""
    monkeypatch.chdir(ground)
    for launcher in LAUNCHERS.values():
        monkeypatch.delenv(launcher.rank, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")  # the tools set it; monkeypatch restores it
    configs = []
    runner = SimpleNamespace(register_hook=lambda hook: None, train=lambda: None)
    monkeypatch.setattr(tool, "build_runner", lambda cfg, require_all: configs.append(cfg) or runner)

    def adapted(config, *args, options=("load_from=weights.pth",)):
        command = [config, "--recipe", "finetune", *args, "--cfg-options", "launcher=none", *options]
        status, printed = in_process(tool.main, "train", *command)
        assert status == 0, printed.err
        return configs.pop()

    return adapted


def lengths(cfg):
    """Return the settings that follow from the number of images."""
    warm_up, cosine = cfg.param_scheduler
    return {
        "train": {key: value for key, value in cfg.train_cfg.items() if key != "type"},
        "times": cfg.train_dataloader.dataset.get("times", 1),
        "checkpoint": cfg.default_hooks.checkpoint.interval,
        "warm-up": (warm_up.begin, warm_up.end),
        "cosine": (cosine.begin, cosine.end, cosine.T_max),
    }


@pytest.mark.stack
@pytest.mark.parametrize(
    ("head", "metric"),
    [("retinanet", "coco/bbox_mAP"), ("mask_rcnn", "coco/bbox_mAP"), ("semantic_fpn", "mIoU"), ("upernet", "mIoU")],
)
def test_each_head_is_trained_for_twelve_times_fifty_steps_and_watched(adapted, head, metric):
    cfg = adapted(f"{head}.py")
    found = lengths(cfg)
    assert (found["warm-up"], found["cosine"]) == ((0, 60), (60, 600, 540))
    if cfg.default_scope == "mmdet":
        assert (found["train"], found["times"]) == (dict(max_epochs=12, val_interval=1), 20)  # 20 images, batches of 8
        assert found["checkpoint"] == 1
    else:
        assert (found["train"], found["times"]) == (dict(max_iters=600, val_interval=50), 1)
        assert found["checkpoint"] == 50
    assert cfg.default_hooks.checkpoint.save_best == metric
    average, stop = cfg.custom_hooks
    assert (average.type, stop.type, stop.monitor) == ("EMAHook", "EarlyStoppingHook", metric)
    assert stop.min_delta == (0.2 if metric == "mIoU" else 0.002)  # of 100, and of 1
    assert cfg.model.backbone.frozen_stages == 1
    assert cfg.model.backbone.norm_eval


def test_it_comes_after_the_sample_data(adapted, ground, monkeypatch):
    monkeypatch.setattr("mmcare.data.sample.prepare", lambda: next((ground / "data").iterdir()))
    cfg = adapted(CONFIGS / "detection/retinanet_care_s1.py", "--sample")
    assert cfg.train_dataloader.dataset.times == 20
    assert cfg.train_cfg.max_epochs == 12
    assert cfg.model.backbone.init_cfg is None


@pytest.mark.parametrize(
    ("batch", "images", "times", "steps"), [(1, 20, 3, 60), (8, 20, 20, 50), (2, 7, 15, 53), (20, 20, 50, 50)]
)
def test_few_images_are_repeated_for_at_least_fifty_steps(adapted, batch, images, times, steps):
    data = [f"train_dataloader.batch_size={batch}", f"train_dataloader.dataset.indices={images}"]
    cfg = adapted("retinanet.py", options=["load_from=weights.pth", *data])
    repeated = cfg.train_dataloader.dataset
    assert {**repeated, "dataset": repeated.dataset.indices} == dict(type="RepeatDataset", times=times, dataset=images)
    assert cfg.param_scheduler[1].end == 12 * steps


def test_many_images_are_not_repeated(adapted, monkeypatch):
    monkeypatch.setattr("mmcare.runs.recipes.MIN_STEPS", 2)
    cfg = adapted("retinanet.py")
    assert cfg.train_dataloader.dataset.type == "CocoDataset"
    assert cfg.param_scheduler[1].end == 12 * 3


def test_processes_share_the_images(adapted, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    cfg = adapted("retinanet.py", "--launcher", "pytorch")
    assert cfg.train_dataloader.dataset.times == 80


def test_the_users_options_win(adapted):
    own = [
        "train_cfg.max_epochs=3",
        "custom_hooks.1.patience=2",
        "default_hooks.checkpoint.max_keep_ckpts=7",
        "model.backbone.frozen_stages=-1",
        "optim_wrapper.optimizer.lr=1e-3",
        "param_scheduler.0.start_factor=0.5",
    ]
    cfg = adapted("retinanet.py", options=["load_from=weights.pth", *own])
    assert lengths(cfg)["cosine"] == (15, 150, 135)  # the schedule ends with the training
    assert cfg.custom_hooks[1].patience == 2
    assert cfg.default_hooks.checkpoint.max_keep_ckpts == 7
    assert cfg.model.backbone.frozen_stages == -1
    assert cfg.optim_wrapper.optimizer == dict(type="AdamW", lr=1e-3, weight_decay=0.05)
    assert cfg.param_scheduler[0].start_factor == 0.5
    cfg = adapted("semantic_fpn.py", options=["load_from=weights.pth", "train_cfg.max_iters=200"])
    assert lengths(cfg)["cosine"] == (20, 200, 180)


def test_the_page_names_settings_that_exist(adapted):
    page = (ROOT / "docs/fine-tuning.md").read_text()
    table = page[page.index("## The recipe") : page.index("## Following")]
    named = re.findall(r"`([a-z_0-9.]+)=…`", table)
    assert "train_cfg.max_iters" in named
    configs = adapted("retinanet.py"), adapted("semantic_fpn.py")
    for key in named:
        steps = [int(step) if step.isdecimal() else step for step in key.split(".")]
        assert any(has(cfg, steps) for cfg in configs), key


def has(node, steps):
    for step in steps:
        if not (isinstance(node, list) or step in node):
            return False
        node = node[step]
    return True


def test_a_config_needs_no_default_hooks(adapted, ground):
    cfg = Config.fromfile(ground / "retinanet.py")
    cfg.pop("default_hooks")
    cfg.dump(ground / "plain.py")
    hooks = adapted("plain.py").default_hooks
    assert (hooks.logger, hooks.checkpoint.interval) == (dict(type="LoggerHook", interval=10), 1)


def test_hooks_and_mixed_precision_of_the_config_stay(adapted, ground):
    cfg = Config.fromfile(ground / "retinanet.py")
    cfg.custom_hooks = [dict(type="EMAHook", momentum=0.1), dict(type="CheckInvalidLossHook")]
    cfg.optim_wrapper.update(
        type="AmpOptimWrapper", loss_scale=512.0, constructor="LearningRateDecayOptimizerConstructor"
    )
    cfg.dump(ground / "own.py")
    cfg = adapted("own.py")
    assert [hook.type for hook in cfg.custom_hooks] == ["EMAHook", "EarlyStoppingHook", "CheckInvalidLossHook"]
    assert "momentum" not in cfg.custom_hooks[0]
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.loss_scale) == ("AmpOptimWrapper", 512.0)
    assert "constructor" not in cfg.optim_wrapper


def test_an_ablation_is_fine_tuned_as_its_network(adapted, ground):
    for ablated in (dict(type="mmcare.CAREAblation", ablation="stacked"), dict(type="mmcare.CASViTAblation")):
        cfg = Config.fromfile(ground / "retinanet.py")
        cfg.model.backbone.update(ablated, frozen_stages=-1)
        cfg.dump(ground / "ablated.py")
        assert adapted("ablated.py").model.backbone.frozen_stages == 1


def test_the_comparison_in_the_docs_gives_both_ways_as_many_steps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "0")
    docs = load_module(ROOT / "docs/fine-tuning.py")
    docs.FOLDER.mkdir(parents=True)
    config = docs.write_config()
    for args in docs.ways(tmp_path / "weights.pth").values():
        monkeypatch.setattr(sys, "argv", ["train", str(config), *args])
        args = tool.parse_args()
        cfg = read_run_config(args, (), partial(tool.adapt, args))
        times = cfg.train_dataloader.dataset.get("times", 1)
        steps = cfg.train_cfg.max_epochs * times * docs.IMAGES // cfg.train_dataloader.batch_size
        cosine = cfg.param_scheduler[1]
        assert steps == cosine.end == cosine.begin + cosine.T_max == docs.STEPS
        assert cfg.train_cfg.max_epochs % cfg.train_cfg.val_interval == 0  # so that the last step is validated


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(ground, refusal, monkeypatch):
    monkeypatch.chdir(ground)
    monkeypatch.setenv("LOCAL_RANK", "0")

    def refused(*options):
        """Return the message with which a training is refused."""
        return refusal(tool.main, "train", "retinanet.py", "--recipe", "finetune", "--cfg-options", *options)

    return refused


def test_trained_weights_are_needed(refused, adapted):
    told = refused("work_dir=w")
    assert told.startswith("--recipe finetune needs trained weights to start from, and ")
    assert "load_from=FILE" in told
    adapted("retinanet.py", "--resume", "weights.pth", options=[])  # they are in the checkpoint to resume


def test_a_pretrained_backbone_is_a_start(adapted, ground):
    init = ["model.backbone.init_cfg.type=Pretrained", f"model.backbone.init_cfg.checkpoint={ground}/eight.json"]
    (ground / "eight.json").write_text("{}")
    cfg = Config.fromfile(ground / "retinanet.py")
    cfg.model.backbone.init_cfg = dict(type="Pretrained", checkpoint="eight.json")
    cfg.dump(ground / "pretrained.py")
    assert adapted("pretrained.py", options=init).model.backbone.init_cfg.checkpoint == f"{ground}/eight.json"
    assert adapted("pretrained.py").model.backbone.init_cfg is None  # load_from has the backbone, too


def test_an_unknown_metric_is_told(refused):
    assert "the val_evaluator of retinanet.py is CityScapesMetric" in refused(
        "load_from=weights.pth", "val_evaluator.type=CityScapesMetric"
    )


def test_broken_data_is_told(refused, ground):
    (ground / "broken.json").write_text("{")
    told = refused("load_from=weights.pth", f"train_dataloader.dataset.ann_file={ground}/broken.json")
    assert told.startswith(f"the annotation file {ground}/broken.json is not JSON")


def test_missing_data_is_told(ground, in_process, monkeypatch):
    monkeypatch.chdir(ground)
    monkeypatch.setenv("LOCAL_RANK", "0")
    options = ["--cfg-options", "load_from=weights.pth", "train_dataloader.dataset.ann_file=absent.json"]
    status, printed = in_process(tool.main, "train", "retinanet.py", "--recipe", "finetune", *options)
    assert status == 2
    assert printed.err.startswith("error: files that this run needs are missing:\n")
    assert "absent.json: CocoDataset" in printed.err or "absent.json: COCO" in printed.err


def test_an_unknown_dataset_is_told(refused):
    told = refused("load_from=weights.pth", "train_dataloader.dataset.type=Coco")
    assert told.startswith("the config's train_dataloader.dataset has type='Coco', which is not registered")


def test_an_option_that_does_not_fit_is_told(refused):
    assert refused("load_from=weights.pth", "custom_hooks.9.patience=1").startswith("--cfg-options does not fit ")


# -- training ----------------------------------------------------------------------------------------------------------

FEW = [*(setting for setting in IN_PROCESS if not setting.startswith("test_")), "val_dataloader.dataset.indices=4"]
LENGTH = ["load_from=detector.pth", "train_dataloader.batch_size=2", "train_cfg.max_epochs=2"]
STILL = "train_dataloader.dataset.pipeline.3.prob=0.0"  # no random flips, which a resumed training repeats differently


@pytest.fixture(scope="module")
def run(ground, train):
    """Train with few images in a work folder; return it."""

    def run(name, config, *args):
        # MMEngine keeps one visualizer of each name in a process, with the output folder of the first run.
        train(ground, config, "--work-dir", name, *args, *FEW, f"visualizer.name={name}")
        return ground / name

    return run


@pytest.fixture(scope="module")
def tiny(ground, run):
    """Return the folder with a tiny detector and a tiny segmentor, each with a checkpoint of an untrained one."""
    small = next((ground / "data").iterdir())
    for name, content in (("detector", DETECTOR), ("segmentor", SEGMENTOR)):
        (ground / "full.py").write_text(content)
        cfg = Config.fromfile(ground / "full.py")
        overlay_sample(cfg, small)
        cfg.randomness = dict(seed=1)
        cfg.dump(ground / f"{name}.py")
        length = ["train_cfg.max_epochs=1"] if name == "detector" else ["train_cfg.max_iters=2"]
        short = ["train_dataloader.dataset.indices=2", "train_cfg.val_interval=9", *length]
        short += ["default_hooks.checkpoint.interval=1", "default_hooks.checkpoint.save_best=None"]
        folder = run(f"untrained_{name}", f"{name}.py", "--cfg-options", *short)
        (folder / ("epoch_1.pth" if name == "detector" else "iter_2.pth")).rename(ground / f"{name}.pth")
    return ground


@pytest.fixture(scope="module")
def tuned(tiny, run):
    """Fine-tune the detector for two epochs of fifty steps, with TensorBoard; return its work folder."""
    command = ["--recipe", "finetune", "--track", "tensorboard", "--cfg-options"]
    return run("tuned", "detector.py", *command, STILL, *LENGTH)


def state_of(path):
    checkpoint = read_checkpoint(path)
    return {**checkpoint["state_dict"], **checkpoint["ema_state_dict"]}


@pytest.mark.stack
def test_the_best_checkpoint_has_averages_that_score_as_validated(tuned, tiny, in_process, monkeypatch):
    (best,) = tuned.glob("best_coco_bbox_mAP_epoch_*.pth")
    scores = read_curves(tuned).metric("coco/bbox_mAP")
    assert scores[int(best.stem.rpartition("_")[2])] == max(scores.values()) > 0
    checkpoint = read_checkpoint(best)
    weight = "bbox_head.retina_cls.weight"
    assert not torch.equal(checkpoint["state_dict"][weight], checkpoint["ema_state_dict"][f"module.{weight}"])
    frozen = "backbone.stages.0.blocks.0.layer_scale.weight"
    assert torch.equal(checkpoint["state_dict"][frozen], read_checkpoint(tiny / "detector.pth")["state_dict"][frozen])

    monkeypatch.chdir(tiny)
    test = load_tool("test")
    few = [setting for setting in IN_PROCESS if setting.startswith("test_")]
    options = ["--work-dir", "tested", "--cfg-options", *few, "test_dataloader.dataset.indices=4"]
    options += ["visualizer.name=tested", "train_dataloader.dataset.dataset.ann_file=not_needed.json"]
    status, printed = in_process(test.main, "test", "tuned/detector.py", best, *options)
    assert status == 0, printed.err
    (file,) = tiny.glob("tested/*/*.json")
    assert json.loads(file.read_text())["coco/bbox_mAP"] == max(scores.values())


@pytest.mark.stack
def test_it_resumes_with_its_averages(tuned, run):
    command = ["--recipe", "finetune", "--resume", tuned / "epoch_1.pth", "--cfg-options"]
    resumed = run("resumed", "detector.py", *command, STILL, *LENGTH)
    found, wanted = state_of(resumed / "epoch_2.pth"), state_of(tuned / "epoch_2.pth")
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, msg=name)


@pytest.mark.usefixtures("tiny")
def test_with_nothing_to_resume_it_starts_from_load_from(run, monkeypatch):
    monkeypatch.setattr("mmcare.runs.recipes.MIN_STEPS", 10)  # to be short
    command = ["--recipe", "finetune", "--resume", "--cfg-options"]
    anew = run("anew", "detector.py", *command, *LENGTH[:2], "train_cfg.max_epochs=1")
    (log,) = anew.glob("*/*.log")
    assert "no checkpoint to resume from" in log.read_text()
    assert "Load checkpoint from detector.pth" in log.read_text()


@pytest.mark.usefixtures("tiny")
def test_it_stops_when_the_metric_has_ceased_to_rise(run, monkeypatch):
    monkeypatch.setattr("mmcare.runs.recipes.MIN_STEPS", 10)  # to be short
    few = ["train_dataloader.batch_size=2", "custom_hooks.1.patience=1", "custom_hooks.1.min_delta=100"]
    command = ["--recipe", "finetune", "--cfg-options", "load_from=segmentor.pth"]
    stopped = run("stopped", "segmentor.py", *command, *few)
    curves = read_curves(stopped)
    assert list(curves.metrics) == [10, 20]  # of 120 iterations
    assert max(curves.loss) == 20
    assert len([*stopped.glob("best_mIoU_iter_*.pth")]) == 1
    assert (stopped / "iter_20.pth").is_file()


def test_tensorboard_has_the_losses_and_the_metrics(tuned):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = tuned.glob("*/vis_data")
    events = EventAccumulator(str(folder))
    events.Reload()
    curves = read_curves(tuned)
    for name, expected in (("loss", curves.loss), ("coco/bbox_mAP", curves.metric("coco/bbox_mAP"))):
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == pytest.approx(expected)
