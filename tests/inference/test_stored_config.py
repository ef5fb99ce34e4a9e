"""The config in a checkpoint is read, never run, and can name nothing but OpenMMLab's registered classes."""

import re

import pytest
import torch
from helpers import DETECTION
from mmengine.config import Config

import mmcare
from mmcare.inference.stored_config import stored_config

DENSE = [
    name
    for name in mmcare.list_configs()
    if name.endswith(("care_s1", "casvit_m")) and not name.startswith("classification/")
]


@pytest.fixture(scope="module")
def whole():
    return Config.fromfile(DETECTION)


def carried(cfg, text=None):
    return stored_config({"cfg": cfg.pretty_text if text is None else text}, "file.pth")


@pytest.mark.stack
@pytest.mark.parametrize("name", DENSE)
def test_a_config_of_ours_is_read_as_it_was_written(name):
    cfg = mmcare.get_config(name)
    found = carried(cfg)
    assert found.default_scope == cfg.default_scope
    wanted = Config.fromstring(cfg.pretty_text, ".py")
    del wanted.model.backbone["init_cfg"]
    for step in wanted.test_dataloader.dataset.pipeline:
        step.pop("backend_args", None)
    assert found.model.backbone == wanted.model.backbone
    assert found.test_pipeline == wanted.test_dataloader.dataset.pipeline
    assert found.model.keys() == wanted.model.keys()


def test_values_that_python_writes_as_names_and_keys_that_are_no_names():
    text = (
        "default_scope = 'mmdet'\nmodel = dict(type='RetinaNet', low=-inf, high=(inf, -1.5), odd=nan, "
        "none=None, by={'a-b': [dict(x=1)], 3: True})\ntest_pipeline = [dict(type='LoadImageFromFile')]"
    )
    model = carried(None, text).model
    assert (model.low, model.high, model.none) == (-float("inf"), (float("inf"), -1.5), None)
    assert model.odd != model.odd
    assert model.by == {"a-b": [dict(x=1)], 3: True}


PROGRAMS = {
    "an import": "import os",
    "a call": "model = __import__('os').system('touch ran')",
    "a call in a dict": "model = dict(type=open('ran', 'w'))",
    "an argument of dict": "model = dict([open('ran', 'w')])",
    "unpacking": "model = dict(**open('ran', 'w'))",
    "unpacking in a literal": "model = {**open('ran', 'w')}",
    "a comprehension": "model = [open('ran', 'w') for _ in (1,)]",
    "an f-string": 'model = f\'{open("ran", "w")}\'',
    "an attribute": "model = dict.__base__",
    "an expression": "open('ran', 'w')",
    "a loop": "while True: pass",
    "assignment to an attribute": "dict.x = 1",
    "a lambda": "model = lambda: 1",
    "arithmetic": "model = 9 ** 9 ** 9 ** 9",
    "depth": "model = " + "[" * 5000 + "]" * 5000,
    "signs": "model = " + "-" * 100_000 + "1",
    "length": "model = '" + "a" * 2**20 + "'",
    "no Python": "model = {",
    "a list as a key": "model = {[1]: 2}",
    "zeros": "model = '\0'",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_refused_and_not_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(mmcare.UserError) as refused:
        carried(None, "default_scope = 'mmdet'\n" + PROGRAMS[name])
    told = str(refused.value)
    assert re.match(r"the config in file\.pth is not made of plain values \(.+\), and a program from a ", told)
    assert told.endswith("is not run: give the config that it was trained with, too")
    assert list(tmp_path.iterdir()) == []


HOSTILE = {
    "a function by its path": {"model.neck.type": "os.system"},
    "a module": {"model.neck.type": "hostile"},
    "a class of another project": {"model.neck.type": "hostile.Neck"},
    "an unregistered class": {"model.neck.type": "mmengine.config.Config"},
    "another scope": {"model.neck._scope_": "hostile"},
    "an expression where mmcv evaluates": {"model.test_cfg.nms.type": "__import__('hostile')"},
    "a path": {"model.neck.weights": "/tmp/hostile.pth"},
    "an address": {"model.neck.weights": "https://example.com/hostile.pth"},
    "a config": {"model.teacher_config": "hostile"},
    "a checkpoint": {"model.teacher_ckpt": "hostile"},
    "a class that downloads": {"model.backbone": dict(type="mmdet.BertModel", name="hostile")},
    "a transform that downloads": {"model.neck.type": "mmdet.RandomSamplingNegPos"},
    "a type that is no string": {"model.neck.type": ["FPN"]},
    "a scope that is no string": {"model.neck._scope_": ["mmdet"]},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_config_that_names_other_code_or_files_is_refused(name, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "hostile.py").write_text("open('ran', 'w')")
    (tmp_path / "registry.py").write_text("open('ran', 'w')")
    cfg = Config(whole.to_dict())
    cfg.merge_from_dict(HOSTILE[name])
    with pytest.raises(mmcare.UserError, match=r"the config in file\.pth has model\.\S+=.+, (which|another) .*give"):
        carried(cfg)
    assert not (tmp_path / "ran").exists()


def test_what_would_be_loaded_before_the_weights_is_left_out(whole):
    cfg = Config(whole.to_dict())
    cfg.model.backbone.init_cfg = dict(type="Pretrained", checkpoint="https://example.com/x.pth")
    cfg.model.pretrained = "open-mmlab://x"
    cfg.custom_imports = dict(imports=["hostile"])
    cfg.test_dataloader.dataset.pipeline[0].backend_args = dict(backend="http")
    text = carried(cfg).pretty_text
    assert not re.search("init_cfg|pretrained|custom_imports|backend", text)


OTHERS = {
    "no config": ({}, "file.pth carries no config: give the config that it was trained with, too"),
    "no meta": (None, "file.pth carries no config: give"),
    "an empty one": ({"cfg": " "}, "file.pth carries no config: give"),
    "another task": ({"cfg": "default_scope = 'mmpretrain'"}, "file.pth has a model of mmpretrain, not a detector of "),
    "no project": ({"cfg": "a = 1"}, "file.pth has a model of an unknown project, not a detector of MMDetection or"),
    "a list of projects": ({"cfg": "default_scope = ['mmdet']"}, "file.pth has a model of an unknown project, not a"),
    "odd datasets": (
        {"cfg": "default_scope = 'mmdet'\nmodel = {}\ntest_dataloader = {'dataset': {'datasets': 3}}"},
        "the config in file.pth has no model and test pipeline: give a ",
    ),
    "no model": ({"cfg": "default_scope = 'mmdet'"}, "the config in file.pth has no model and test pipeline: give a "),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_without_a_config_for_prediction(name):
    meta, told = OTHERS[name]
    with pytest.raises(mmcare.UserError) as refused:
        stored_config(meta, "file.pth")
    assert str(refused.value).startswith(told)


def test_the_predictor_asks_for_a_config(tmp_path):
    torch.save({"state_dict": {"a.weight": torch.zeros(3)}}, tmp_path / "bare.pth")
    with pytest.raises(mmcare.UserError, match=r"bare\.pth carries no config: give the config"):
        mmcare.Predictor(tmp_path / "bare.pth")
