"""A training starts from a detector or segmentor for other classes: rows go by name, and all else must fit."""

import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from helpers import CONFIGS, DETECTOR, IN_PROCESS, SMALL_ARCHS, load_tool
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.registry import MODELS, init_default_scope

from mmcare import UserError
from mmcare.checkpoints import read_checkpoint
from mmcare.data.sample import CLASSES, SEMANTIC_CLASSES, overlay_sample, prepare
from mmcare.runs import build_runner

HEADS = {
    "retinanet": ("detection", ["bbox_head"]),
    "mask_rcnn": ("detection", ["roi_head.bbox_head", "roi_head.mask_head"]),
    "semantic_fpn": ("segmentation", ["decode_head"]),
    "upernet": ("segmentation", ["decode_head", "auxiliary_head"]),
}
LAYERS = {
    "retinanet": ["bbox_head.retina_cls"],
    "mask_rcnn": ["roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg", "roi_head.mask_head.conv_logits"],
    "semantic_fpn": ["decode_head.conv_seg"],
    "upernet": ["decode_head.conv_seg", "auxiliary_head.conv_seg"],
}
# The rows of class i of n, as MMDetection and MMSegmentation read the outputs of a layer
ROWS = {
    "retina_cls": lambda i, n: [anchor * n + i for anchor in range(9)],
    "fc_cls": lambda i, n: [i],
    "fc_reg": lambda i, n: [4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3],
    "conv_logits": lambda i, n: [i],
    "conv_seg": lambda i, n: [i],
}
OTHERS = ("zebra", "star", "kite", "moon", "disc")


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(sample, tmp_path):
    """Return a config for the sample data, with a small network."""

    def config(head, family="CARE", arch=None, **options):
        task, _ = HEADS[head]
        cfg = Config.fromfile(CONFIGS / task / f"{head}_{'care_s0' if family == 'CARE' else 'casvit_xs'}.py")
        overlay_sample(cfg, sample)
        cfg.model.backbone.arch = arch or SMALL_ARCHS[family]
        channels = list(MODELS.build(cfg.model.backbone).out_channels)
        if head == "upernet":
            cfg.model.decode_head.update(in_channels=channels, channels=16)
            cfg.model.auxiliary_head.update(in_channels=channels[2], channels=16)
        else:
            cfg.model.neck.in_channels = channels
        cfg.merge_from_dict({f"model.{key.replace('__', '.')}": value for key, value in options.items()})
        # MMEngine formats the config three times: without what is not used here it takes a tenth of the time.
        for part in ("train_pipeline", "test_pipeline", "tta_pipeline", "visualizer", "vis_backends"):
            cfg.pop(part, None)
        for part in ("dataloader", "cfg", "evaluator"):
            cfg[f"val_{part}"] = cfg[f"test_{part}"] = None
        cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
        cfg.update(work_dir=str(tmp_path / "work"), launcher="none")
        return cfg

    return config


def weights_for(cfg, classes):
    """Return random weights of the config's model, made for so many classes."""
    cfg = deepcopy(cfg)
    task, heads = HEADS[Path(cfg.filename).stem.partition("_ca")[0]]
    cfg.merge_from_dict({f"model.{head}.num_classes": classes for head in heads})
    init_default_scope(cfg.default_scope)
    generator = torch.Generator().manual_seed(0)
    state = MODELS.build(cfg.model).state_dict()
    return {
        name: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in state.items()
    }


def start(cfg, file):
    """Build a Runner to train with, and load the file; return the model's weights before and after."""
    cfg.load_from = str(file)
    runner = build_runner(cfg, require_all=False)
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    runner.load_or_resume()
    return before, runner.model.state_dict()


def assert_rows_by_name(head, state, before, after, old, new):
    """The rows of shared classes, the background's, and all other layers are the file's; other rows are as before."""
    layers = [f"{layer}.{leaf}" for layer in LAYERS[head] for leaf in ("weight", "bias")]
    for name in layers:
        rows = ROWS[name.split(".")[-2]]
        for label, word in enumerate(new):
            wanted = (
                state[name][rows(old.index(word), len(old))] if word in old else before[name][rows(label, len(new))]
            )
            assert torch.equal(after[name][rows(label, len(new))], wanted), (name, word)
        if "fc_cls" in name:
            assert torch.equal(after[name][len(new)], state[name][len(old)])
    assert all(torch.equal(after[name], state[name]) for name in after if name not in layers)


def classes_of(head):
    return CLASSES if HEADS[head][0] == "detection" else SEMANTIC_CLASSES


# -- what is taken -----------------------------------------------------------------------------------------------------


@pytest.mark.stack
@pytest.mark.usefixtures("own_process")
@pytest.mark.parametrize("family", ["CARE", "CASViT"])
@pytest.mark.parametrize("head", HEADS)
def test_shared_classes_keep_their_rows_and_the_others_start_anew(head, family, config, tmp_path, capfd):
    cfg = config(head, family)
    new = classes_of(head)
    state = weights_for(cfg, len(OTHERS))
    torch.save({"state_dict": state, "meta": {"dataset_meta": {"classes": OTHERS}}}, tmp_path / "other.pth")
    before, after = start(cfg, tmp_path / "other.pth")
    assert_rows_by_name(head, state, before, after, OTHERS, new)
    (said,) = re.findall(r"INFO - (.*other\.pth has .*)", "".join(capfd.readouterr()))
    shared = [name for name in new if name in OTHERS]
    fresh = [name for name in new if name not in OTHERS]
    assert said.endswith(
        f"other.pth has 5 classes, the model {len(new)}; in {', '.join(LAYERS[head])}, the rows of "
        f"{len(shared)} ({', '.join(shared)}) are taken by name, those of {len(fresh)} ({', '.join(fresh)}) start anew"
    )


REORDERED = (*CLASSES[1:], CLASSES[0])
RENAMED = ("cat", *CLASSES[:-1])
NAMES = {
    "other order": (
        {"dataset_meta": {"classes": list(REORDERED)}},
        REORDERED,
        f"the rows of 4 ({', '.join(CLASSES)}) are taken by name\n",
    ),
    "other names": ({"dataset_meta": {"classes": RENAMED}}, RENAMED, f"those of 1 ({CLASSES[-1]}) start anew"),
    "MMDetection 2.x": ({"CLASSES": RENAMED}, RENAMED, f"those of 1 ({CLASSES[-1]}) start anew"),
    "early MMEngine": ({"dataset_meta": {"CLASSES": RENAMED}}, RENAMED, f"those of 1 ({CLASSES[-1]}) start anew"),
    "none": ({}, CLASSES, "rows are taken as they are, because other.pth names no classes"),
    "too few": ({"CLASSES": ("cat",)}, CLASSES, "rows are taken as they are, because other.pth names 1 classes"),
    "no list": ({"CLASSES": "cats"}, CLASSES, "rows are taken as they are, because other.pth names no classes"),
    "twice the same": ({"CLASSES": ["cat"] * len(CLASSES)}, CLASSES, "because other.pth names no classes"),
}


@pytest.mark.usefixtures("own_process")
@pytest.mark.parametrize(("meta", "old", "told"), NAMES.values(), ids=NAMES)
def test_as_many_classes_by_name_or_where_there_are_none_as_they_are(
    meta, old, told, config, tmp_path, capfd, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    cfg = config("mask_rcnn")
    state = weights_for(cfg, len(CLASSES))
    torch.save({"state_dict": state, "meta": meta}, "other.pth")
    before, after = start(cfg, "other.pth")
    assert_rows_by_name("mask_rcnn", state, before, after, old, CLASSES)
    assert told in "".join(capfd.readouterr())


@pytest.mark.usefixtures("own_process")
def test_the_same_classes_are_taken_without_a_word(config, tmp_path, capfd):
    cfg = config("retinanet")
    state = weights_for(cfg, len(CLASSES))
    torch.save({"state_dict": state, "meta": {"dataset_meta": {"classes": CLASSES}}}, tmp_path / "same.pth")
    _, after = start(cfg, tmp_path / "same.pth")
    assert all(torch.equal(after[name], value) for name, value in state.items())
    assert "classes, the model" not in "".join(capfd.readouterr())


@pytest.mark.usefixtures("own_process")
def test_without_names_another_number_of_classes_starts_anew(config, tmp_path, capfd):
    cfg = config("retinanet")
    state = weights_for(cfg, 80)
    torch.save(state, tmp_path / "bare.pth")
    before, after = start(cfg, tmp_path / "bare.pth")
    assert_rows_by_name("retinanet", state, before, after, tuple(map(str, range(80))), CLASSES)
    assert re.search(
        r"bare\.pth has 80 .*retina_cls, all rows start anew, because .*bare\.pth names no", capfd.readouterr().out
    )


AGNOSTIC = dict(roi_head__bbox_head__reg_class_agnostic=True, roi_head__mask_head__class_agnostic=True)


@pytest.mark.usefixtures("own_process")
def test_layers_that_serve_all_classes_alike_are_taken_whole(config, tmp_path):
    cfg = config("mask_rcnn", **AGNOSTIC)
    state = weights_for(cfg, len(OTHERS))
    torch.save({"state_dict": state, "meta": {"CLASSES": OTHERS}}, tmp_path / "other.pth")
    _, after = start(cfg, tmp_path / "other.pth")
    for layer in LAYERS["mask_rcnn"][1:]:
        assert torch.equal(after[f"{layer}.weight"], state[f"{layer}.weight"])
    disc = after["roi_head.bbox_head.fc_cls.weight"][CLASSES.index("disc")]
    assert torch.equal(disc, state["roi_head.bbox_head.fc_cls.weight"][OTHERS.index("disc")])


# -- what is refused ---------------------------------------------------------------------------------------------------

# As wide as another, so that neck and head match
WIDE = dict(depths=(1, 1, 1, 1), channels=(32, 32, 64, 128))
NARROW = dict(depths=(1, 1, 1, 1), memory_channels=(8, 8, 16, 32), ratios=((1, 1), (1, 1), (1, 1), (1, 1)))
DEEP = dict(NARROW, depths=(1, 2, 1, 1))
MISFITS = {
    "another family": (("retinanet", "CASViT", WIDE), ("retinanet", "CARE", NARROW), r"such as backbone\."),
    "another kind of head": (("mask_rcnn", "CARE", NARROW), ("retinanet", "CARE", NARROW), "differ in shape|lacks"),
    "another depth": (("retinanet", "CARE", NARROW), ("retinanet", "CARE", DEEP), r"lacks \d+ of .*: backbone\."),
    "another detector": (("retinanet", "CARE", NARROW), ("mask_rcnn", "CARE", NARROW), "differ in shape|lacks"),
    "another segmentor": (("upernet", "CARE", NARROW), ("semantic_fpn", "CARE", NARROW), "differ in shape|lacks"),
}


@pytest.mark.usefixtures("own_process")
@pytest.mark.parametrize("same_number", [True, False])
@pytest.mark.parametrize(("theirs", "ours", "told"), MISFITS.values(), ids=MISFITS)
def test_another_backbone_or_head_is_refused(theirs, ours, told, same_number, config, tmp_path, capfd):
    classes = classes_of(ours[0]) if same_number else OTHERS
    torch.save(weights_for(config(*theirs), len(classes)), tmp_path / "misfit.pth")
    with pytest.raises(UserError, match=rf"misfit\.pth does not fit the \w+ of this config: .*({told})"):
        start(config(*ours), tmp_path / "misfit.pth")
    assert "start anew" not in "".join(capfd.readouterr())


@pytest.mark.usefixtures("own_process")
def test_a_backbone_alone_is_refused_with_the_way_to_take_it(config, tmp_path):
    cfg = config("retinanet", arch=NARROW)
    state = {name: value for name, value in weights_for(cfg, 4).items() if name.startswith("backbone.")}
    torch.save(state, tmp_path / "backbone.pth")
    with pytest.raises(
        UserError, match=r"backbone\.pth .* lacks \d+ of .*backbone alone, which model\.backbone\.init_cfg"
    ):
        start(cfg, tmp_path / "backbone.pth")


@pytest.mark.usefixtures("own_process")
@pytest.mark.parametrize("agnostic", ["file", "model"])
def test_boxes_for_all_classes_alike_are_not_those_of_each(agnostic, config, tmp_path):
    option = dict(roi_head__bbox_head__reg_class_agnostic=True)
    theirs, ours = (option, {}) if agnostic == "file" else ({}, option)
    torch.save(weights_for(config("mask_rcnn", **theirs), len(OTHERS)), tmp_path / "misfit.pth")
    told = {"file": r"bbox_head is for 5 classes, but \S+fc_reg for 1;.*agnostic", "model": r"such as \S+fc_reg\."}
    with pytest.raises(UserError, match=rf"misfit\.pth does not fit .*({told[agnostic]})"):
        start(config("mask_rcnn", **ours), tmp_path / "misfit.pth")


# -- from the command line ---------------------------------------------------------------------------------------------

SETTINGS = [
    *IN_PROCESS,
    *(f"val_{part}=None" for part in ("dataloader", "cfg", "evaluator")),
    "train_dataloader.dataset.indices=4",
    "train_dataloader.batch_size=2",
    "train_cfg.max_epochs=1",
    # The weights after the training are those that it started from.
    "optim_wrapper.optimizer.lr=0",
    "optim_wrapper.optimizer.weight_decay=0",
    "optim_wrapper.paramwise_cfg=None",
    "param_scheduler=None",
]


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ground")
    (folder / "detector.py").write_text(
        DETECTOR + "custom_hooks = [dict(type='EMAHook', momentum=0.5, strict_load=True)]"
    )
    prepare(folder / "data/sample")
    return folder


@pytest.fixture(scope="module")
def trained(ground, train):
    """Return the checkpoint of a training for two of the classes, whose raw and averaged weights differ."""
    two = ["train_dataloader.dataset.metainfo.classes=[triangle,star]", "model.bbox_head.num_classes=2"]
    settings = [*(setting for setting in SETTINGS if "lr=" not in setting), "optim_wrapper.optimizer.lr=0.01", *two]
    train(ground, "detector.py", "--sample", "--work-dir", "two", "--cfg-options", *settings)
    return ground / "two/epoch_1.pth"


TWO = ("triangle", "star")


def assert_two_of_four(state, found):
    """Weights of a detector that was for two of the four classes have their rows."""
    layer = "bbox_head.retina_cls.weight"
    for name in TWO:
        rows, old = ROWS["retina_cls"](CLASSES.index(name), 4), ROWS["retina_cls"](TWO.index(name), 2)
        assert torch.equal(found[layer][rows], state[layer][old])
    moving = ("running_mean", "running_var", "num_batches_tracked")
    others = [name for name in state if "retina_cls" not in name and not name.endswith(moving)]
    assert all(torch.equal(found[name], state[name]) for name in others)


@pytest.mark.stack
def test_averaged_weights_are_taken_by_the_model_and_by_its_average(ground, trained, train):
    given = read_checkpoint(trained)
    raw = given["ema_state_dict"]["module.bbox_head.retina_cls.weight"]
    assert not torch.equal(given["state_dict"]["bbox_head.retina_cls.weight"], raw)
    options = ["--sample", "--work-dir", "four", "--cfg-options", *SETTINGS, f"load_from={trained}"]
    train(ground, "detector.py", *options)
    found = read_checkpoint(ground / "four/epoch_1.pth")
    assert_two_of_four(given["state_dict"], found["state_dict"])
    assert_two_of_four(given["state_dict"], {k.removeprefix("module."): v for k, v in found["ema_state_dict"].items()})


@pytest.mark.usefixtures("own_process")
def test_a_resumed_training_has_its_raw_and_its_averaged_weights(ground, trained, monkeypatch):
    monkeypatch.chdir(ground)
    cfg = Config.fromfile(ground / "two/detector.py")
    cfg.update(work_dir="again", resume=True, load_from=str(trained))
    runner = build_runner(cfg, require_all=True)
    runner.call_hook("before_run")  # makes EMAHook's copy of the model
    runner.load_or_resume()
    (average,) = (hook.ema_model.state_dict() for hook in runner.hooks if isinstance(hook, EMAHook))
    given = read_checkpoint(trained)
    assert all(torch.equal(average[f"module.{name}"], value) for name, value in given["state_dict"].items())
    found = runner.model.state_dict()
    assert all(torch.equal(found[name], given["ema_state_dict"][f"module.{name}"]) for name in found)


@pytest.mark.parametrize("release", ["raw.safetensors", "raw.pth"])
def test_a_release_brings_its_class_names(release, ground, trained, train, in_process, monkeypatch):
    monkeypatch.chdir(ground)
    publish = load_tool("publish_model").main
    assert in_process(publish, "publish_model.py", trained, release, "--weights", "raw")[0] == 0
    stem, _, ending = release.partition(".")
    (file,) = ground.glob(f"{stem}-*.{ending}")
    options = ["--sample", "--work-dir", release, "--cfg-options", *SETTINGS, f"load_from={file}"]
    train(ground, "detector.py", *options)
    raw = {k.removeprefix("module."): v for k, v in read_checkpoint(trained)["ema_state_dict"].items() if k != "steps"}
    assert_two_of_four(raw, read_checkpoint(ground / release / "epoch_1.pth")["state_dict"])


@pytest.mark.usefixtures("own_process")
def test_testing_and_resuming_stay_with_the_same_classes(ground, trained, refusal, monkeypatch):
    monkeypatch.chdir(ground)
    told = "epoch_1.pth does not fit the RetinaNet of this config: it has 2 classes, the model has 4;"
    options = ["--work-dir", "resumed", "--cfg-options", *SETTINGS, "train_cfg.max_epochs=2"]
    assert told in refusal(
        load_tool("train").main, "train.py", "detector.py", "--sample", "--resume", trained, *options
    )
    options = ["--work-dir", "tested", "--cfg-options", *IN_PROCESS]
    assert told in refusal(load_tool("test").main, "test.py", "detector.py", trained, "--sample", *options)
