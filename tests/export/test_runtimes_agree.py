"""One set of images through the mm packages, PyTorch's forms and every runtime: one table, one tolerance."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from test_onnx import assert_same

from mmcare.export import TARGETS
from mmcare.export.certification import run
from mmcare.export.forms import backbones
from mmcare.export.preparation import prepare
from mmcare.runtime import ENDINGS, compare_probe, draw_probe, open_file, record_probe

HEADS = ("retinanet", "mask_rcnn", "semantic_fpn", "upernet")
SHAPES = {"care": (1, 3, 64, 96), "casvit": (2, 3, 90, 128)}
"""Of the images of each family: once several, which are padded and whose maps have odd sides."""
TOLERANCE = 2e-4
"""Of scores, of corners as a share of the longer side, of probabilities, and of pixels of masks and label maps."""
SLOW = ("executorch", "litert")
"""Targets to which a model is converted in about a minute."""
WITH_SLOW = {("care", "retinanet"), ("casvit", "mask_rcnn"), ("casvit", "semantic_fpn"), ("care", "upernet")}
"""Families and heads that are converted to these, too: each head once. all_configs.py does it with the others."""
RUNNING = [name for name, target in TARGETS.items() if target.ending in ENDINGS]


@pytest.fixture(autouse=True)
def _nothing_compiled():
    yield
    torch.compiler.reset()


def in_pytorch(model, shape, form, compiled=False):
    """Return a function from images to the outputs by name, in a form of the backbone."""
    prepared = prepare(copy.deepcopy(model.model), model.task, form=form, shape=shape[2:])
    if compiled:
        for backbone in backbones(prepared.module):
            backbone.compile(fullgraph=True)
    return partial(run, prepared)


def in_runtime(model, shape, target):
    batch, _, *size = shape
    path = model.export(f"agree{TARGETS[target].ending}", target=target, shape=tuple(size), batch=batch)
    file = open_file(path, threads=1)
    assert file.takes == (batch, *size)
    return file.run


def check_agreement(model, shape, targets):
    """Compare what a model finds in images of a shape in PyTorch's forms and in the files of targets."""
    eager = in_pytorch(model, shape, "plain")
    wanted = record_probe(eager, shape, floor=0.05, seeds=(0, 1))
    assert wanted["detections"] is None or all(len(picture["scores"]) > 5 for picture in wanted["detections"])
    images = draw_probe(wanted["seed"], shape)
    outputs = {name: torch.from_numpy(value) for name, value in eager(images).items()}
    assert_same(SimpleNamespace(**outputs, names=list(outputs)), model.predict(torch.from_numpy(images)), shape[2:])
    runs = {"fast": in_pytorch(model, shape, "fast"), "compiled": in_pytorch(model, shape, "fast", compiled=True)}
    runs |= {target: in_runtime(model, shape, target) for target in targets}
    table = {name: compare_probe(wanted, compute(images)) for name, compute in runs.items()}
    print(*(f"{name:12} {errors}" for name, errors in table.items()), sep="\n")
    far = {name: errors for name, errors in table.items() if max(errors.values()) > TOLERANCE}
    assert not far


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", SHAPES)
def test_all_agree(exported, family, head):
    targets = [target for target in RUNNING if target not in SLOW or (family, head) in WITH_SLOW]
    check_agreement(exported(family, head), SHAPES[family], targets)
