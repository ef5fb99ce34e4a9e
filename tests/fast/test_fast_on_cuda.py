"""The fast form on a GPU: the same outputs in every type, layout and way to run it."""

import copy

import helpers
import pytest
import torch
from helpers import SMALL_ARCHS, assert_same_maps, relative_error, trained
from mmengine.registry import MODELS

import mmcare

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
families = pytest.mark.parametrize("family", SMALL_ARCHS)
SIZES = [(32, 32), (97, 65), (224, 320)]


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """Compute float32 convolutions in float32, which torch does in TF32 by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def worst_error(found, wanted):
    return max(relative_error(output.cpu(), stage.cpu()) for output, stage in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("family", "arch"), helpers.ARCHS)
def test_all_seven_give_the_authors_outputs(family, arch):
    model = MODELS.build(dict(type=f"mmcare.{family}", arch=arch)).eval()
    model.load_state_dict(helpers.backbone_weights(family, arch), strict=False)
    model, image, wanted = model.cuda(), helpers.image().cuda(), helpers.expected(family, arch)
    for network in (model, mmcare.reparameterize(model)):
        with torch.inference_mode():
            assert worst_error(network(image), wanted) < 1e-5
            for dtype, tolerance in ((torch.float16, 3e-3), (torch.bfloat16, 3e-2)):
                assert worst_error(copy.deepcopy(network).to(dtype)(image.to(dtype)), wanted) < tolerance
                with torch.autocast("cuda", dtype):
                    assert worst_error(network(image), wanted) < tolerance


@families
def test_any_size_and_layout(family):
    model = trained(family).cuda()
    fast = mmcare.reparameterize(model)
    for size in SIZES:
        images = torch.randn(2, 3, *size, device="cuda")
        for layout in (torch.contiguous_format, torch.channels_last):
            assert_same_maps(fast, model, images.contiguous(memory_format=layout))
            with torch.inference_mode():
                found = copy.deepcopy(fast).half()(images.half().contiguous(memory_format=layout))
                assert worst_error(found, model(images)) < 5e-3


@families
def test_a_model_moves_to_the_gpu_and_back(family):
    model = trained(family)
    fast = mmcare.reparameterize(model)
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        wanted = fast(images)  # stores weights in oneDNN's order
        assert worst_error(fast.cuda()(images.cuda()), wanted) < 1e-5
        assert worst_error(copy.deepcopy(fast)(images.cuda()), wanted) < 1e-5
        assert worst_error(fast.cpu()(images), wanted) < 1e-5
        assert worst_error(mmcare.reparameterize(model.cuda())(images.cuda()), wanted) < 1e-5


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_cuda_graph_of_the_fast_form(family, dtype):
    fast = mmcare.reparameterize(trained(family)).to("cuda", dtype)
    images = torch.randn(2, 3, 64, 96, device="cuda", dtype=dtype)
    with torch.inference_mode():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            fast(images)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = fast(images)
        images.copy_(torch.randn_like(images))
        graph.replay()
        assert worst_error(found, fast(images)) < 1e-6


@families
def test_the_fast_form_compiled_for_few_launches(family):
    torch.compiler.reset()
    model = trained(family).cuda()
    compiled = torch.compile(mmcare.reparameterize(model).half(), mode="reduce-overhead", fullgraph=True)
    images = torch.randn(2, 3, 64, 96, device="cuda")
    with torch.inference_mode():
        for _ in range(3):
            found = [output.clone() for output in compiled(images.half())]
        assert worst_error(found, model(images)) < 5e-3
