"""tools/train.py and tools/test.py: MMDetection's options, one-line errors, and a training from end to end."""

import importlib.util
import json
import pickle
import re
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import CONFIGS, DETECTION, IN_PROCESS, load_module, load_tool, run_tool, succeed, write_ground
from mmengine.config import Config

from mmcare import UserError
from mmcare.cli import parse_cfg_options, read_run_config
from mmcare.runs import LAUNCHERS, read_curves

train, test = load_tool("train"), load_tool("test")


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for launcher in LAUNCHERS.values():
        monkeypatch.delenv(launcher.rank, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")  # the tools set it; monkeypatch restores it


@pytest.fixture
def parse(monkeypatch):
    def parse(module, *args):
        monkeypatch.setattr(sys, "argv", ["tool", *map(str, args)])
        return module.parse_args()

    return parse


# -- options -----------------------------------------------------------------------------------------------------------

SHARED = [
    "--work-dir w",
    "--launcher slurm",
    "--local_rank 3",
    "--local-rank 3",
    "--cfg-options a.b=1 c=[(1,2),(x,None)] d=True e=1,2 --cfg-options f=g=h",
]
OPTIONS = {
    "train": ["--amp", "--resume"],
    "test": ["--out o.pkl --tta", "--show --show-dir d --wait-time 0.5"],
}
ONLY_IN_MMDET = ["--auto-scale-lr", "--resume auto", "--resume path.pth --work-dir w"]


@pytest.mark.parametrize(
    ("package", "name", "line"),
    [
        *(
            (package, name, line)
            for package in ("mmdet", "mmseg")
            for name in OPTIONS
            for line in SHARED + OPTIONS[name]
        ),
        *(("mmdet", "train", line) for line in ONLY_IN_MMDET),
    ],
)
def test_options_mean_what_they_mean_to_the_originals(parse, package, name, line):
    original = load_module(Path(importlib.util.find_spec(package).origin).parent / f".mim/tools/{name}.py")
    args = ["c.py", *(["c.pth"] if name == "test" else []), *line.split()]
    expected = vars(parse(original, *args))
    if package == "mmseg" and name == "train":  # its --resume takes no path
        expected.update(resume="auto" if expected["resume"] else None, auto_scale_lr=False)
    own = {"train": {"recipe": None, "track": None}, "test": {"reparameterize": False}}
    expected.update(sample=False, data=None, format=None, background=None, **own[name])
    ours = vars(parse({"train": train, "test": test}[name], *args))
    assert {**ours, "cfg_options": parse_cfg_options(ours["cfg_options"])} == expected


def config(tmp_path, text, name="mine.py"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_work_dir_is_the_options_then_the_configs_then_named_for_the_config(parse, tmp_path):
    plain = config(tmp_path, "default_scope = 'mmdet'")
    own = config(tmp_path, "default_scope = 'mmdet'\nwork_dir = 'own'", "own.py")
    assert read_run_config(parse(train, plain), []).work_dir == "./work_dirs/mine"
    assert read_run_config(parse(train, own), []).work_dir == "own"
    assert read_run_config(parse(train, own, "--work-dir", "given"), []).work_dir == "given"


def test_the_users_options_win_over_the_sample_data(parse, monkeypatch, tmp_path):
    monkeypatch.setattr("mmcare.data.sample.prepare", lambda: tmp_path / "made")
    args = parse(train, DETECTION, "--sample", "--cfg-options", "train_dataloader.batch_size=3")
    cfg = read_run_config(args, [])
    assert cfg.train_dataloader.batch_size == 3
    assert cfg.train_dataloader.dataset.data_root.startswith(str(tmp_path / "made"))


def detection_config():
    return Config.fromfile(DETECTION)


def test_auto_scale_lr():
    cfg = detection_config()
    train.scale_lr(cfg)
    assert cfg.auto_scale_lr.enable
    del cfg.auto_scale_lr["base_batch_size"]
    with pytest.raises(UserError, match="base_batch_size"):
        train.scale_lr(cfg)


@pytest.mark.parametrize("kind", ["OptimWrapper", "AmpOptimWrapper"])
@pytest.mark.parametrize(("device", "expected"), [("cpu", "mmcare.CpuAmpOptimWrapper"), ("cuda", "AmpOptimWrapper")])
def test_amp_goes_by_the_device(monkeypatch, kind, device, expected):
    monkeypatch.setattr("mmengine.device.get_device", lambda: device)
    cfg = detection_config()
    cfg.optim_wrapper.update(type=kind, **(dict(loss_scale=512.0) if kind == "AmpOptimWrapper" else {}))
    train.enable_amp(cfg)
    assert cfg.optim_wrapper.type == expected
    scale = {"cpu": None, "cuda": 512.0 if kind == "AmpOptimWrapper" else "dynamic"}[device]
    assert cfg.optim_wrapper.get("loss_scale") == scale


def test_amp_refuses_other_wrappers_and_devices(monkeypatch):
    cfg = detection_config()
    monkeypatch.setattr("mmengine.device.get_device", lambda: "mps")
    with pytest.raises(UserError, match="Apple"):
        train.enable_amp(cfg)
    cfg.optim_wrapper.type = "ApexOptimWrapper"
    with pytest.raises(UserError, match="ApexOptimWrapper"):
        train.enable_amp(cfg)


@pytest.mark.parametrize(
    ("held", "resume", "load_from", "refused"),
    [
        (False, False, None, False),
        (True, False, None, True),
        (True, False, "run/epoch_1.pth", True),
        (True, True, None, False),
        (True, True, "run/epoch_1.pth", False),
        (True, True, "other/epoch_1.pth", True),
        (False, True, "other/epoch_1.pth", False),
    ],
)
def test_checkpoints_of_another_training_are_not_overwritten(held, resume, load_from, refused):
    Path("run").mkdir()
    if held:
        Path("run/epoch_1.pth").write_bytes(b"")
    cfg = Config(dict(work_dir="run", resume=resume, **({"load_from": load_from} if load_from else {})))
    if refused:
        with pytest.raises(UserError, match="--resume"):
            train.refuse_overwriting(cfg)
    else:
        train.refuse_overwriting(cfg)


def args_for_test(**changes):
    return Namespace(**{**dict(show=False, show_dir=None, wait_time=2.0), **changes})


def test_pictures():
    cfg = detection_config()
    test.visualize(cfg, args_for_test(show_dir="d"), "detection")
    assert cfg.default_hooks.visualization == dict(type="DetVisualizationHook", draw=True, test_out_dir="d")
    cfg = Config.fromfile(CONFIGS / "_base_/runtime/segmentation.py")
    test.visualize(cfg, args_for_test(show_dir="d", show=True), "segmentation")
    assert cfg.visualizer.save_dir == "d"
    assert cfg.default_hooks.visualization == dict(
        type="SegVisualizationHook", draw=True, show=True, wait_time=2.0, interval=1
    )
    del cfg.default_hooks["visualization"]
    with pytest.raises(UserError, match="SegVisualizationHook"):
        test.visualize(cfg, args_for_test(show=True), "segmentation")


def test_default_augmentation_in_detection():
    cfg = detection_config()
    cfg.test_dataloader.dataset = dict(type="RepeatDataset", dataset=cfg.test_dataloader.dataset.to_dict())
    test.augment(cfg, "detection")
    assert cfg.model.type == "DetTTAModel"
    assert cfg.model.module.type == "RetinaNet"
    assert [step.type for step in cfg.test_dataloader.dataset.dataset.pipeline] == [
        "LoadImageFromFile",
        "Resize",
        "LoadAnnotations",
        "TestTimeAug",
    ]
    cfg = detection_config()
    cfg.model.roi_head = dict(mask_head=dict(type="FCNMaskHead"))
    with pytest.raises(UserError, match="masks"):
        test.augment(cfg, "detection")


def test_augmentation_in_segmentation_is_the_configs():
    dataset = dict(type="ADE20KDataset", pipeline=[dict(type="LoadImageFromFile")])
    cfg = Config(dict(model=dict(type="EncoderDecoder"), test_dataloader=dict(dataset=dataset)))
    with pytest.raises(UserError, match="tta_pipeline"):
        test.augment(cfg, "segmentation")
    cfg.tta_model = dict(type="SegTTAModel")
    cfg.tta_pipeline = [dict(type="TestTimeAug")]
    test.augment(cfg, "segmentation")
    assert cfg.model == dict(type="SegTTAModel", module=dict(type="EncoderDecoder"))
    assert cfg.test_dataloader.dataset.pipeline == [dict(type="TestTimeAug")]


# -- mistakes ----------------------------------------------------------------------------------------------------------

MISTAKES = {
    "no config at all": (train, [], "config"),
    "unknown option": (train, [DETECTION, "--colour"], "--colour"),
    "missing config": (train, ["nowhere.py"], "nowhere.py"),
    "folder": (train, ["."], "there is no config"),
    "other format": (train, ["config.txt"], "py/yml/yaml/json"),
    "syntax": (train, ["syntax.py"], "syntax.py"),
    "error in a config": (train, ["crash.py"], "line 2 of"),
    "missing base": (train, ["based.py"], "missing_base.py"),
    "option without value": (train, [DETECTION, "--cfg-options", "model"], "'model'"),
    "option without key": (train, [DETECTION, "--cfg-options", "model.=1"], "'model.=1'"),
    "option with half a bracket": (train, [DETECTION, "--cfg-options", "a=[1,2"], "[1,2"),
    "option into a value": (train, [DETECTION, "--cfg-options", "model.type.x=1"], "--cfg-options"),
    "option beyond a list": (train, [DETECTION, "--cfg-options", "train_pipeline.99.type=x"], "99"),
    "unknown launcher": (train, [DETECTION, "--launcher", "me"], "--launcher"),
    "launcher without its program": (train, [DETECTION, "--launcher", "slurm"], "srun"),
    "unknown scope": (train, ["scope.py"], "'mmpose'"),
    "base config": (train, [CONFIGS / "_base_/runtime/detection.py"], "no model and no train_dataloader"),
    "no scope": (test, ["empty.py", "c.pth"], "None"),
    "resume from nothing": (train, [DETECTION, "--resume", "gone.pth"], "gone.pth"),
    "start from nothing": (train, [DETECTION, "--cfg-options", "load_from=gone.pth"], "gone.pth"),
    "no checkpoint": (test, [DETECTION], "checkpoint"),
    "missing checkpoint": (test, [DETECTION, "gone.pth"], "gone.pth"),
    "output format": (test, [DETECTION, "here.pth", "--out", "out.json"], ".pkl"),
}


@pytest.mark.parametrize(("tool", "args", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_in_one_line(refusal, tmp_path, tool, args, told):
    config(tmp_path, "a = 1", "config.txt")
    config(tmp_path, "a = (", "syntax.py")
    config(tmp_path, "a = 1\nb = 1 / 0", "crash.py")
    config(tmp_path, "_base_ = ['missing_base.py']", "based.py")
    config(tmp_path, "default_scope = 'mmpose'", "scope.py")
    config(tmp_path, "", "empty.py")
    Path("here.pth").write_bytes(b"content")
    assert told in refusal(tool.main, "tool", *args)


def test_a_missing_data_set_is_told_by_the_real_command(tmp_path):
    done = run_tool("train", DETECTION, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: files that this run needs are missing")
    assert "data/coco/train2017/" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []  # nothing was started


def test_a_config_may_resume_without_naming_a_checkpoint(in_process):
    cfg = detection_config()
    cfg.pop("load_from")
    cfg.resume = True
    cfg.dump("mine.py")
    status, printed = in_process(train.main, "train", "mine.py")
    assert status == 2
    assert printed.err.startswith("error: files that this run needs are missing")


# -- from end to end ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ground")
    return SimpleNamespace(folder=folder, options=write_ground(folder))


@pytest.fixture(scope="module")
def trained(ground):
    """Return the work folder of a detector that has memorized eight images, and its score on them."""
    epochs = "train_cfg.max_epochs=40"
    succeed(run_tool("train", "detector.py", "--sample", *ground.options, epochs, cwd=ground.folder))
    work_dir = ground.folder / "work_dirs/detector"
    score = read_curves(work_dir).metrics[40]["coco/bbox_mAP"]
    assert score > 0.1  # an untrained detector has 0
    return SimpleNamespace(work_dir=work_dir, checkpoint=work_dir / "epoch_40.pth", score=score)


def metrics(work_dir):
    """Return the metrics of the only test with this work folder."""
    (file,) = work_dir.glob("*/*.json")
    return json.loads(file.read_text())


@pytest.fixture
def run_test(in_process, monkeypatch, ground):
    """Run tools/test.py in this process, and return its output."""

    def run_test(*args):
        monkeypatch.chdir(ground.folder)
        status, printed = in_process(test.main, "test", *args)
        assert status == 0, printed.out[-2000:] + printed.err
        return printed.out

    return run_test


@pytest.mark.stack
def test_a_tested_checkpoint_scores_what_training_said(ground, trained, run_test):
    command = ["detector.py", trained.checkpoint, "--sample"]
    outputs = ["--out", "detections.pkl", "--show-dir", "pictures", "--work-dir", "tested"]
    succeed(run_tool("test", *command, *outputs, *ground.options, cwd=ground.folder))
    assert metrics(ground.folder / "tested")["coco/bbox_mAP"] == trained.score
    with (ground.folder / "detections.pkl").open("rb") as file:
        assert len(pickle.load(file)) == 8
    assert len([*ground.folder.glob("tested/*/pictures/*")]) == 8
    assert "fast form" in run_test(*command, "--reparameterize", "--work-dir", "tested_fast", *ground.options)
    assert metrics(ground.folder / "tested_fast")["coco/bbox_mAP"] == trained.score


def test_augmented_testing(ground, trained, run_test):
    command = ["detector.py", trained.checkpoint, "--sample", "--tta"]
    run_test(*command, "--work-dir", "augmented", *ground.options)
    score = metrics(ground.folder / "augmented")["coco/bbox_mAP"]
    assert score > 0.1
    printed = run_test(*command, "--reparameterize", "--work-dir", "augmented_fast", *ground.options)
    assert "fast form" in printed
    assert metrics(ground.folder / "augmented_fast")["coco/bbox_mAP"] == score


@pytest.mark.stack
def test_training_is_refused_where_it_would_overwrite_and_resumed_where_told(ground, trained, refusal, monkeypatch):
    kept = trained.checkpoint.stat().st_mtime_ns
    command = ["detector.py", "--sample", *ground.options, "train_cfg.max_epochs=41"]
    monkeypatch.chdir(ground.folder)
    assert re.fullmatch(".*--resume.*--work-dir", refusal(train.main, "train", *command))

    succeed(run_tool("train", *command, "default_hooks.checkpoint.interval=41", "--resume", cwd=ground.folder))
    assert (trained.work_dir / "epoch_41.pth").is_file()
    newest = max(trained.work_dir.glob("*/vis_data/scalars.json"))
    assert {json.loads(line)["step"] for line in newest.read_text().splitlines()} == {41}
    assert trained.checkpoint.stat().st_mtime_ns == kept
    assert list(read_curves(trained.work_dir).loss) == [*range(1, 42)]  # of both runs


@pytest.mark.stack
def test_a_segmentor_with_mixed_precision(ground, run_test):
    short = ["train_cfg.max_iters=4", "train_cfg.val_interval=4", "default_hooks.checkpoint.interval=4"]
    few = ["val_dataloader.dataset.indices=4", "test_dataloader.dataset.indices=4"]
    options = ["--sample", "--cfg-options", *IN_PROCESS, *short, *few, "default_hooks.logger.interval=1"]
    succeed(run_tool("train", "segmentor.py", "--amp", "--work-dir", "seg", *options, cwd=ground.folder))
    score = read_curves(ground.folder / "seg").metrics[4]["mIoU"]
    command = ["segmentor.py", "seg/iter_4.pth"]
    outputs = ["--out", "maps", "--show-dir", "drawn", "--work-dir", "seg_tested"]
    succeed(run_tool("test", *command, *outputs, *options, cwd=ground.folder))
    assert "fast form" in run_test(*command, "--reparameterize", "--work-dir", "seg_fast", *options)
    for folder in ("seg_tested", "seg_fast"):
        assert metrics(ground.folder / folder)["mIoU"] == score
    assert len([*ground.folder.glob("maps/*.png")]) == 4
    assert len([*ground.folder.glob("drawn/vis_data/vis_image/*.png")]) == 4


def test_a_model_that_cannot_be_built_is_told(ground, refusal, monkeypatch):
    monkeypatch.chdir(ground.folder)
    options = ["--sample", "--work-dir", "unbuilt", "--cfg-options"]
    assert "s9" in refusal(train.main, "train", DETECTION, *options, "model.backbone.arch=s9")
    told = refusal(train.main, "train", DETECTION, *options, "model.backbone.colour=1")
    assert told.startswith("the config's model.backbone does not fit mmcare.CARE")
    told = refusal(train.main, "train", DETECTION, *options, "val_evaluator.type=Metric", *IN_PROCESS)
    assert told.startswith("the config's val_evaluator has type='Metric'")
