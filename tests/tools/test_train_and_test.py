"""tools/train.py and tools/test.py: MMDetection's options, one sentence for a mistake, a training from end to end."""

import importlib.util
import os
import pickle
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from helpers import CONFIGS, DETECTION, IN_PROCESS, ROOT, write_ground
from torch import nn

from mmcare import UserError, cli
from mmcare.runs.amp import CpuAmpOptimWrapper


def load_module(path):
    spec = importlib.util.spec_from_file_location(f"tool_{path.stem}_{len(path.parts)}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


train, test = (load_module(ROOT / f"tools/{name}.py") for name in ("train", "test"))


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for _, rank in cli._LAUNCHERS.values():
        monkeypatch.delenv(rank, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")  # the tools set it: whatever they set is undone with this


@pytest.fixture
def parse(monkeypatch):
    def parse(module, *args):
        monkeypatch.setattr(sys, "argv", ["tool", *map(str, args)])
        return module.parse_args()

    return parse


@pytest.fixture
def fails(monkeypatch, capsys):
    """Runs a tool that is to refuse, and returns what it says."""

    def fails(tool, *args):
        monkeypatch.setattr(sys, "argv", ["tool", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            cli.run(tool.main)
        assert ended.value.code == 2
        return capsys.readouterr().err

    return fails


def run_tool(name, *args, cwd):
    # One thread each: on a small machine several that wait for each other take longer.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / f"tools/{name}.py", *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def succeed(name, *args, cwd):
    done = run_tool(name, *args, cwd=cwd)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return done.stdout


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
    ours = {"sample": False, **({"reparameterize": False} if name == "test" else {})}
    assert vars(parse({"train": train, "test": test}[name], *args)) == {**expected, **ours}


def config(tmp_path, text, name="mine.py"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_work_dir_is_the_options_then_the_configs_then_named_for_the_config(parse, tmp_path):
    plain = config(tmp_path, "default_scope = 'mmdet'")
    own = config(tmp_path, "default_scope = 'mmdet'\nwork_dir = 'own'", "own.py")
    assert cli.load_run_config(parse(train, plain), []).work_dir == "./work_dirs/mine"
    assert cli.load_run_config(parse(train, own), []).work_dir == "own"
    assert cli.load_run_config(parse(train, own, "--work-dir", "given"), []).work_dir == "given"


def test_the_users_options_win_over_the_sample_data(parse, monkeypatch, tmp_path):
    monkeypatch.setattr("mmcare.sample.prepare", lambda: tmp_path / "made")
    args = parse(train, DETECTION, "--sample", "--cfg-options", "train_dataloader.batch_size=3")
    cfg = cli.load_run_config(args, [])
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
@pytest.mark.parametrize(
    ("device", "expected"), [("cpu", "mmcare.runs.amp.CpuAmpOptimWrapper"), ("cuda", "AmpOptimWrapper")]
)
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


def test_amp_on_the_cpu_computes_in_bfloat16_and_hands_on_float32():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.head, self.seen = nn.Linear(4, 4), nn.Linear(4, 2), []
            self.backbone.register_forward_hook(lambda part, inputs, output: self.seen.append(output.dtype))

        def forward(self, x):
            features = self.backbone(x)
            self.seen.append(features.dtype)
            return self.head(features)

    model = Model()
    wrapper = CpuAmpOptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0))
    before = model.head.weight.clone()
    with wrapper.optim_context(model):
        loss = model(torch.randn(3, 4)).square().sum()
    assert model.seen == [torch.bfloat16, torch.float32]
    wrapper.update_params(loss)
    assert not torch.equal(model.head.weight, before)
    assert len(model.backbone._forward_hooks) == 1  # the test's own


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
    cfg = Config(dict(work_dir="run", resume=resume, load_from=load_from))
    if refused:
        with pytest.raises(UserError, match="--resume"):
            train.refuse_overwriting(cfg)
    else:
        train.refuse_overwriting(cfg)


def args_for_test(**changes):
    return Namespace(**{**dict(show=False, show_dir=None, wait_time=2.0), **changes})


def test_pictures():
    cfg = detection_config()
    test.visualize(cfg, args_for_test(show_dir="d"), detection=True)
    assert cfg.default_hooks.visualization == dict(type="DetVisualizationHook", draw=True, test_out_dir="d")
    cfg = Config.fromfile(CONFIGS / "_base_/runtime/segmentation.py")
    test.visualize(cfg, args_for_test(show_dir="d", show=True), detection=False)
    assert cfg.visualizer.save_dir == "d"
    assert cfg.default_hooks.visualization == dict(
        type="SegVisualizationHook", draw=True, show=True, wait_time=2.0, interval=1
    )
    del cfg.default_hooks["visualization"]
    with pytest.raises(UserError, match="SegVisualizationHook"):
        test.visualize(cfg, args_for_test(show=True), detection=False)


def test_default_augmentation_in_detection():
    cfg = detection_config()
    cfg.test_dataloader.dataset = dict(type="RepeatDataset", dataset=cfg.test_dataloader.dataset.to_dict())
    test.augment(cfg, detection=True)
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
        test.augment(cfg, detection=True)


def test_augmentation_in_segmentation_is_the_configs():
    dataset = dict(type="ADE20KDataset", pipeline=[dict(type="LoadImageFromFile")])
    cfg = Config(dict(model=dict(type="EncoderDecoder"), test_dataloader=dict(dataset=dataset)))
    with pytest.raises(UserError, match="tta_pipeline"):
        test.augment(cfg, detection=False)
    cfg.tta_model = dict(type="SegTTAModel")
    cfg.tta_pipeline = [dict(type="TestTimeAug")]
    test.augment(cfg, detection=False)
    assert cfg.model == dict(type="SegTTAModel", module=dict(type="EncoderDecoder"))
    assert cfg.test_dataloader.dataset.pipeline == [dict(type="TestTimeAug")]


def test_a_config_from_a_work_folder_is_checked_as_this_run_needs_it(monkeypatch):
    monkeypatch.setattr("mmcare.checkpoint.guard_checkpoint_loading", lambda: None)
    monkeypatch.setattr("mmengine.runner.Runner.from_cfg", lambda cfg: cfg)
    monkeypatch.setattr("mmcare.data_errors.name_bad_data", lambda runner: runner)
    cfg = Config(dict(work_dir="run", launcher="none", custom_hooks=[dict(type="EMAHook")]))
    written = cli.build_runner(cfg, require_all=True)
    assert written.custom_hooks == [dict(type="EMAHook"), dict(type="mmcare.CheckpointFitHook", require_all=True)]
    again = cli.build_runner(written, require_all=False)
    assert again.custom_hooks == [dict(type="EMAHook"), dict(type="mmcare.CheckpointFitHook", require_all=False)]


def test_a_work_folder_that_cannot_be_made():
    cfg = Config(dict(work_dir="run", launcher="none"))
    Path("run").write_text("a file")
    with pytest.raises(UserError, match="work folder run"):
        cli.build_runner(cfg, require_all=True)


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
def test_a_mistake_is_told_in_one_line(fails, tmp_path, tool, args, told):
    config(tmp_path, "a = 1", "config.txt")
    config(tmp_path, "a = (", "syntax.py")
    config(tmp_path, "a = 1\nb = 1 / 0", "crash.py")
    config(tmp_path, "_base_ = ['missing_base.py']", "based.py")
    config(tmp_path, "default_scope = 'mmpose'", "scope.py")
    config(tmp_path, "", "empty.py")
    Path("here.pth").write_bytes(b"content")
    error = fails(tool, *args)
    assert error.startswith("error: ")
    assert told in error
    assert error.count("\n") == 1


def test_the_first_process_of_a_distributed_run_tells_a_mistake_for_all(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [ROOT / "tools/train.py", "nowhere.py", "--launcher", "pytorch"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert len(re.findall("^error: .*nowhere.py", done.stderr, re.MULTILINE)) == 1


def test_another_process_tells_a_mistake_that_the_first_one_has_not_met(fails, monkeypatch):
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    assert "nowhere.py" in fails(train, "nowhere.py")
    assert waits == []
    monkeypatch.setenv("RANK", "1")
    assert "nowhere.py" in fails(train, "nowhere.py")
    assert waits == [cli._PATIENCE]


def test_a_bug_keeps_its_trace():
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 / 0)
    with pytest.raises(KeyError):
        cli.run(lambda: {}["x is not in the mmdet::model registry"])


@pytest.mark.parametrize(
    ("model", "told"), [(dict(type="mmcare.CAREE"), "CAREE"), (dict(type="mmcare.CARE", colour=1), "colour")]
)
def test_a_model_that_does_not_exist_is_told_in_one_line(capsys, model, told):
    with pytest.raises(SystemExit):
        cli.run(lambda: MODELS.build(model))
    error = capsys.readouterr().err
    assert re.fullmatch(rf"error: .*{told}.*\n", error)


def test_a_mistake_found_in_a_worker_process_is_told_without_its_trace(monkeypatch, capsys):
    from torch._utils import ExceptionWrapper

    def main():
        try:
            raise UserError("the picture is gone: bring it back")
        except UserError:
            ExceptionWrapper(where="in DataLoader worker process 0").reraise()

    with pytest.raises(SystemExit):
        cli.run(main)
    assert capsys.readouterr().err == "error: the picture is gone: bring it back\n"


def test_a_missing_data_set_is_told_by_the_real_command(tmp_path):
    done = run_tool("train", DETECTION, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "data/coco/train2017/" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []  # nothing was begun


# -- from end to end ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ground")
    return SimpleNamespace(folder=folder, options=write_ground(folder))


@pytest.fixture(scope="module")
def trained(ground):
    epochs = "train_cfg.max_epochs=40"
    log = succeed("train", "detector.py", "--sample", *ground.options, epochs, cwd=ground.folder)
    return SimpleNamespace(work_dir=ground.folder / "work_dirs/detector", log=log)


def bbox_map(log):
    return float(re.findall(r"coco/bbox_mAP: (\S+)", log)[-1])


@pytest.mark.stack
@pytest.mark.parametrize("form", [[], ["--reparameterize"]], ids=["plain", "fast"])
def test_a_tested_checkpoint_scores_what_training_said(ground, trained, form):
    checkpoint = trained.work_dir / "epoch_40.pth"
    outputs = ["--out", "detections.pkl", "--show-dir", "pictures", "--work-dir", f"tested{len(form)}", *form]
    log = succeed("test", "detector.py", checkpoint, "--sample", *outputs, *ground.options, cwd=ground.folder)
    assert ("fast form" in log) == bool(form)
    assert bbox_map(log) == bbox_map(trained.log)
    assert bbox_map(log) > 0.1  # an untrained detector has 0
    with (ground.folder / "detections.pkl").open("rb") as file:
        assert len(pickle.load(file)) == 8
    assert len([*ground.folder.glob(f"tested{len(form)}/*/pictures/*")]) == 8


def test_augmented_testing(ground, trained):
    checkpoint = trained.work_dir / "epoch_40.pth"
    command = ["detector.py", checkpoint, "--sample", "--tta", *ground.options]
    log = succeed("test", *command, cwd=ground.folder)
    assert bbox_map(log) > 0.1
    fast = succeed("test", "--reparameterize", *command, cwd=ground.folder)
    assert "fast form" in fast
    assert bbox_map(fast) == bbox_map(log)


@pytest.mark.stack
def test_training_is_refused_where_it_would_overwrite_and_resumed_where_told(ground, trained):
    kept = (trained.work_dir / "epoch_40.pth").stat().st_mtime_ns
    command = ["detector.py", "--sample", *ground.options, "train_cfg.max_epochs=41"]
    refused = run_tool("train", *command, cwd=ground.folder)
    assert refused.returncode == 2
    assert re.fullmatch(r"error: .*--resume.*--work-dir\n", refused.stderr)

    log = succeed("train", *command, "default_hooks.checkpoint.interval=41", "--resume", cwd=ground.folder)
    assert "Epoch(train) [41]" in log
    assert "Epoch(train) [40]" not in log
    assert (trained.work_dir / "epoch_40.pth").stat().st_mtime_ns == kept

    table = succeed("analyze_logs", trained.work_dir, cwd=ground.folder)
    assert re.match(r"loss \S+ at iteration 1, \S+ at iteration 41\n", table)  # both runs
    assert (trained.work_dir / "curves.png").is_file()


@pytest.mark.stack
def test_a_segmentor_with_mixed_precision(ground):
    short = ["train_cfg.max_iters=4", "train_cfg.val_interval=4", "default_hooks.checkpoint.interval=4"]
    few = ["val_dataloader.dataset.indices=4", "test_dataloader.dataset.indices=4"]
    options = ["--sample", "--work-dir", "seg", "--cfg-options", *IN_PROCESS, *short, *few]
    log = succeed("train", "segmentor.py", "--amp", *options, cwd=ground.folder)
    outputs = ["--out", "maps", "--show-dir", "drawn"]
    tested = succeed("test", "segmentor.py", "seg/iter_4.pth", *outputs, *options, cwd=ground.folder)
    fast = succeed("test", "segmentor.py", "seg/iter_4.pth", "--reparameterize", *options, cwd=ground.folder)
    assert "fast form" in fast
    mean_iou = r"mIoU: (\S+)"
    for other in (tested, fast):
        assert re.findall(mean_iou, other)[-1] == re.findall(mean_iou, log)[-1]
    assert len([*ground.folder.glob("maps/*.png")]) == 4
    assert len([*ground.folder.glob("drawn/vis_data/vis_image/*.png")]) == 4


def test_a_model_that_cannot_be_built_is_told_by_the_real_command(ground):
    options = ["--sample", "--work-dir", "unbuilt", "--cfg-options", "model.backbone.arch=s9"]
    done = run_tool("train", DETECTION, *options, cwd=ground.folder)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "s9" in last
