"""Mixed precision on the CPU: bfloat16 within the model's parts, float32 between them, for all types of outputs."""

from collections import OrderedDict, namedtuple

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.structures import BaseDataElement, InstanceData
from torch import nn

Maps = namedtuple("Maps", ["low", "high"])


class Model(nn.Module):
    """Two linear layers, the first of which returns its output in a given type of container."""

    def __init__(self, form=lambda output: output):
        super().__init__()
        self.backbone, self.head = Backbone(form), nn.Linear(4, 2)

    def forward(self, x):
        self.received = self.backbone(x)
        return self.head(self.backbone.output)


class Backbone(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.layer, self.form = nn.Linear(4, 4), form

    def forward(self, x):
        self.output = self.layer(x)
        return self.form(self.output)


def wrap(model):
    optimizer = dict(type="SGD", lr=1.0)
    return build_optim_wrapper(model, dict(type="mmcare.CpuAmpOptimWrapper", optimizer=optimizer))


def test_the_parts_compute_in_bfloat16_and_a_step_is_taken_in_float32():
    model = Model()
    wrapper = wrap(model)
    before = model.head.weight.clone()
    with wrapper.optim_context(model):
        loss = model(torch.randn(3, 4)).square().sum()
    assert model.backbone.output.dtype == torch.bfloat16
    assert model.received.dtype == loss.dtype == torch.float32
    wrapper.update_params(loss)
    assert model.head.weight.dtype == torch.float32
    assert not torch.equal(model.head.weight, before)


def test_nothing_of_it_stays_in_the_model():
    model = Model()
    with wrap(model).optim_context(model):
        model(torch.randn(3, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.randn(3, 4))
    assert model.received.dtype == torch.bfloat16


FORMS = {
    "tuple": (lambda x: (x, [x]), lambda out: [out[0], out[1][0]]),
    "dict": (lambda x: {"a": x, "b": {"c": x}}, lambda out: [out["a"], out["b"]["c"]]),
    "ordered dict": (lambda x: OrderedDict(a=x), lambda out: [out["a"]]),
    "namedtuple": (lambda x: Maps(x, high=(x,)), lambda out: [out.low, out.high[0]]),
    "instances": (lambda x: InstanceData(scores=x), lambda out: [out.scores]),
    "data element": (lambda x: BaseDataElement(metainfo=dict(path="a.jpg"), maps=x), lambda out: [out.maps]),
    "dict of lists of data elements": (
        lambda x: dict(found=[InstanceData(scores=x)]),
        lambda out: [out["found"][0].scores],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_whatever_a_part_returns_is_handed_on_in_float32(form):
    build, tensors = FORMS[form]
    model = Model(build)
    with wrap(model).optim_context(model):
        model(torch.randn(3, 4))
    assert type(model.received) is type(build(torch.zeros(3, 4)))
    for tensor in tensors(model.received):
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, model.backbone.output.float())
    if form == "data element":
        assert model.received.path == "a.jpg"


def test_what_is_no_bfloat16_is_left_alone():
    outputs = dict(number=1, text="a", none=None, labels=torch.tensor([3]), exact=torch.ones(1, dtype=torch.float64))
    model = Model(lambda x: outputs)
    with wrap(model).optim_context(model):
        model(torch.randn(3, 4))
    assert model.received == outputs
