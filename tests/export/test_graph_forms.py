"""The forms of a backbone compute the same maps as the trained one."""

import copy

import pytest
import torch
from helpers import relative_error

from mmcare import Predictor
from mmcare.export.forms import FORMS
from mmcare.export.preparation import prepare


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["care", "casvit"])
def test_a_form_computes_what_the_trained_backbone_computes(exported, pictures, family, form):
    model = exported(family, "semantic_fpn")
    trained, images = model.model, pictures(2, 70, 96)
    data = trained.data_preprocessor({"inputs": list(images.flip(1)), "data_samples": [None, None]})
    prepared = prepare(Predictor(model.config, model.checkpoint, fast=False).model, "segmentation", "backbone", form)
    assert (prepared.form, prepared.outputs) == (form, ("c2", "c3", "c4", "c5"))
    with torch.no_grad():
        wanted = trained.backbone(data["inputs"])
        found = prepared.module(images.float())
    for name, map_, trained_map in zip(prepared.outputs, found, wanted, strict=True):
        assert relative_error(map_, trained_map) < 1e-5, name


def test_no_map_of_casvit_is_cut(exported):
    """A runtime would copy it."""
    trained = copy.deepcopy(exported("casvit", "semantic_fpn").model)
    prepared = prepare(trained, "segmentation", "backbone", "folded-apart", (64, 96))
    graph = torch.export.export(prepared.module, (prepared.images,)).graph
    called = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    assert not [name for name in called if any(word in name for word in ("chunk", "split", "slice"))]
