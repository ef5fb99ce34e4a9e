"""torch.compile: one graph for each backbone in either form, and not a new one for each size."""

import pytest
import torch
from test_reparameterize import assert_same, families, trained
from torch._dynamo.testing import CompileCounterWithBackend

import mmcare

SIZES = [(64, 96), (96, 128), (160, 160), (97, 65), (192, 224)]


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("form", ["plain", "fast"])
@families
def test_one_graph_serves_all_sizes(family, form):
    """Two, to be exact: the first is made for its size alone, the second when a size is found to change."""
    model = trained(family)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        model if form == "plain" else mmcare.reparameterize(model), fullgraph=True, backend=counter
    )
    for size in SIZES:
        assert_same(compiled, model, torch.randn(2, 3, *size))
    assert counter.frame_count == 2


@families
def test_the_fast_form_compiled_to_machine_code(family):
    model = trained(family)
    compiled = torch.compile(mmcare.reparameterize(model), fullgraph=True, dynamic=True)
    for size in SIZES[:2]:
        assert_same(compiled, model, torch.randn(1, 3, *size))
