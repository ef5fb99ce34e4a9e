"""Peak memory and memory stored for the backward pass are counted to the byte."""

import pytest
import torch
from torch import nn

from mmcare.benchmark import kept_for_backward, peak_memory, resolve
from mmcare.benchmark.timing import examine


class Squares(nn.Module):
    """A linear layer without bias, 4 → 8, squared twice: stores the input, a map, and a view of that map."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 8, bias=False)

    def forward(self, x):
        hidden = self.linear(x)
        return hidden.square() + hidden.view(-1, 8).square()


def test_what_is_kept_is_counted_to_the_byte():
    model, images = Squares(), torch.rand(16, 4, requires_grad=True)  # with gradients, so the weights are stored too
    assert kept_for_backward(lambda: model(images), model) == 4 * (16 * 4 + 16 * 8)
    assert kept_for_backward(lambda: model(images[:8]), model) == 4 * (16 * 4 + 8 * 8)  # a view counts its full storage
    with torch.no_grad():
        assert kept_for_backward(lambda: model(images), model) == 0


@pytest.mark.stack
def test_the_peak_of_a_call_is_counted_to_the_byte():
    side = 256
    before = torch.ones(side)

    def call():
        first = before.repeat(side)  # one map
        second = first + first  # two
        del first
        return second + second  # two again

    assert peak_memory(call, "cpu") == 2 * 4 * side * side


def test_memory_grows_with_the_batch_and_recomputing_saves_it(make_steps):
    def find(name, batch, training):
        (step,) = make_steps(resolve(name), ["eager"], (64, 64), batch, training)
        return examine(step, None)[0]

    small, large = (find("mmcare.CARE:s0", batch, training=False) for batch in (1, 2))
    assert small.kept is None
    assert large.peak == pytest.approx(2 * small.peak, rel=0.15)
    small, large = (find("mmcare.CARE:s0", batch, training=True) for batch in (1, 2))
    assert large.kept == pytest.approx(2 * small.kept, rel=0.05)
    assert large.peak - small.peak > 0.5 * small.kept  # the gradients of the weights have the same size
    saving = find("mmcare.CARE:s0,with_cp=True", 2, training=True)
    assert saving.kept < 0.5 * large.kept
    assert saving.peak < large.peak
