"""One set of images through PyTorch's forms and every runtime: one table, one tolerance.

tests/fast/test_compile.py has the compiled form, as compiling takes as long as all of this.
"""

import copy
from functools import partial

import pytest

from mmcare.export import TARGETS
from mmcare.export.certification import run
from mmcare.export.preparation import prepare
from mmcare.runtime import ENDINGS, compare_probe, draw_probe, open_file, record_probe

SHAPE = (1, 3, 64, 96)
TOLERANCE = 2e-4
"""Of scores, of corners as a share of the longer side, of probabilities, and of pixels of masks and label maps."""
MODELS = {"retinanet": "care", "mask_rcnn": "casvit", "semantic_fpn": "casvit", "upernet": "care"}
"""The family of a model with each head."""
TARGETS_THAT_RUN = [name for name, target in TARGETS.items() if target.ending in ENDINGS]


def in_pytorch(model, form):
    """Return a function from images to the outputs by name, in a form of the backbone."""
    prepared = prepare(copy.deepcopy(model.model), model.task, form=form, shape=SHAPE[2:])
    return partial(run, prepared)


def in_runtime(model, target):
    path = model.export(f"agree{TARGETS[target].ending}", target=target, shape=SHAPE[2:])
    return open_file(path, threads=1).run


@pytest.mark.parametrize("head", MODELS)
def test_all_runtimes_agree(exported, head):
    model = exported(MODELS[head], head)
    eager = record_probe(in_pytorch(model, "plain"), SHAPE, floor=0.05, seeds=(0, 1))
    assert eager["detections"] is None or all(len(picture["scores"]) > 5 for picture in eager["detections"])
    runs = {"fast": in_pytorch(model, "fast"), **{name: in_runtime(model, name) for name in TARGETS_THAT_RUN}}
    images = draw_probe(eager["seed"], SHAPE)
    table = {name: compare_probe(eager, compute(images)) for name, compute in runs.items()}
    print(*(f"{name:12} {errors}" for name, errors in table.items()), sep="\n")
    far = {name: errors for name, errors in table.items() if max(errors.values()) > TOLERANCE}
    assert not far
