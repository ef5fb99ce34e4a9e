"""torch.compile: one graph for each backbone and form, without recompiling for each image size.

tests/export/test_runtimes_agree.py compares what the compiled form computes.
"""

import pytest
import torch
from helpers import SMALL_ARCHS, assert_same_maps, trained

import mmcare
from mmcare.fast import parts
from mmcare.fast.casvit import FusedAdditiveTokenMixer
from mmcare.fast.convolutions import Expansion

families = pytest.mark.parametrize("family", SMALL_ARCHS)
SIZES = [(64, 96), (160, 160), (97, 65)]


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("form", ["plain", "fast", "fast, hidden maps in parts"])
@families
def test_one_graph_serves_all_sizes(family, form, monkeypatch):
    """Two graphs, to be exact: one for the first size, and a dynamic one as soon as the size changes."""
    if form == "fast, hidden maps in parts":  # compiled parts are those of 512×512, whatever the image size
        monkeypatch.setattr(parts, "PART_BYTES", 2**18)
        monkeypatch.setattr(parts, "MIN_PART_CHANNELS", 2)
    model = trained(family)
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model if form == "plain" else mmcare.reparameterize(model), fullgraph=True, backend=count)
    for size in SIZES:
        assert_same_maps(compiled, model, torch.randn(2, 3, *size))
    assert len(graphs) == 2


@families
def test_parts_are_made_as_for_512_pixels(family):
    fast = mmcare.reparameterize(trained(family))
    for stage, pixels in zip(fast.stages, (128 * 128, 64 * 64, 32 * 32, 16 * 16), strict=True):
        kinds = (Expansion, FusedAdditiveTokenMixer)
        found = [module.pixels for module in stage.modules() if isinstance(module, kinds)]
        assert found == [pixels] * ((3 if family == "CASViT" else 2) * len(stage.blocks))
