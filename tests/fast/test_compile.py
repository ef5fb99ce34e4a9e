"""torch.compile: one graph for each backbone in either form, and not a new one for each size."""

import pytest
import torch
from test_reparameterize import assert_same, families, trained
from torch._dynamo.testing import CompileCounterWithBackend

import mmcare
from mmcare.memory import parts
from mmcare.models.casvit import FusedAdditiveTokenMixer
from mmcare.fast.convolutions import Expansion

SIZES = [(64, 96), (96, 128), (160, 160), (97, 65), (192, 224)]


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("form", ["plain", "fast", "fast, hidden maps in parts"])
@families
def test_one_graph_serves_all_sizes(family, form, monkeypatch):
    """Two, to be exact: the first is made for its size alone, the second when a size is found to change."""
    if form == "fast, hidden maps in parts":  # not by the size of the images, then, but as for 512×512
        monkeypatch.setattr(parts, "PART_BYTES", 2**18)
        monkeypatch.setattr(parts, "MIN_PART_CHANNELS", 2)
    model = trained(family)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        model if form == "plain" else mmcare.reparameterize(model), fullgraph=True, backend=counter
    )
    for size in SIZES:
        assert_same(compiled, model, torch.randn(2, 3, *size))
    assert counter.frame_count == 2


@families
def test_parts_are_made_as_for_512_pixels(family):
    fast = mmcare.reparameterize(trained(family))
    for stage, pixels in zip(fast.stages, (128 * 128, 64 * 64, 32 * 32, 16 * 16), strict=True):
        kinds = (Expansion, FusedAdditiveTokenMixer)
        found = [module.pixels for module in stage.modules() if isinstance(module, kinds)]
        assert found == [pixels] * ((3 if family == "CASViT" else 2) * len(stage.blocks))


@families
def test_the_fast_form_compiled_to_machine_code(family):
    model = trained(family)
    compiled = torch.compile(mmcare.reparameterize(model), fullgraph=True, dynamic=True)
    for size in SIZES[:2]:
        assert_same(compiled, model, torch.randn(1, 3, *size))
