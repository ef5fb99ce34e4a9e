"""Training on a GPU: the gradients of the plain form, in less memory."""

import pytest
import torch
from helpers import trained
from mmengine.registry import MODELS

from mmcare.memory import chain, frozen_norms, keep_everything

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
families = pytest.mark.parametrize("family", ["CARE", "CASViT"])


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """Compute float32 convolutions in float32, which torch does in TF32 by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def step(model, images, dtype=None, scale=1.0):
    """Return all gradients of a step as one vector, and the buffers after it."""
    torch.manual_seed(2)  # for drop path
    with torch.autocast("cuda", dtype, enabled=dtype is not None):
        maps = model(images)
    generator = torch.Generator("cuda").manual_seed(3)
    loss = sum((out.float() * torch.randn(out.shape, generator=generator, device="cuda")).mean() for out in maps)
    (loss * scale).backward()
    found = torch.cat([parameter.grad.double().flatten() / scale for parameter in model.parameters()])
    return found, [buffer.double() for buffer in model.buffers()]


def error(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("folded", [0, 2**60])
@pytest.mark.parametrize("norm_eval", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-5), (torch.bfloat16, 5e-2), (torch.float16, 1e-2)])
@families
def test_gradients_are_those_of_the_plain_form(family, dtype, tolerance, norm_eval, folded, monkeypatch):
    monkeypatch.setattr(chain, "FEW_VALUES", {"cuda": 0, "cpu": 0})
    monkeypatch.setattr(chain, "FEW_PIXELS", 0)
    monkeypatch.setattr(frozen_norms, "FOLDED_VALUES", {"cuda": folded, "cpu": folded})
    monkeypatch.setattr(frozen_norms, "PIXELS_PER_WEIGHT", 0)
    images = torch.randn(4, 3, 64, 96, device="cuda")
    scale = 1024.0 if dtype is torch.float16 else 1.0
    build = dict(norm_eval=norm_eval, drop_path_rate=0.2)
    with keep_everything():
        wanted, buffers = step(trained(family, **build).cuda().train(), images, dtype, scale)
    for with_cp in (False, True):
        found, own = step(trained(family, with_cp=with_cp, **build).cuda().train(), images, dtype, scale)
        assert found.isfinite().all()
        assert error(found, wanted) < tolerance
        assert all(error(a, b) < max(tolerance, 1e-3) for a, b in zip(own, buffers, strict=True) if b.norm() > 0)


def peak(model, images):
    def run():
        maps = model(images)
        torch.autograd.backward(maps, [torch.ones_like(out) for out in maps])
        model.zero_grad(set_to_none=True)

    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize(("family", "arch"), [("CARE", "s0"), ("CASViT", "xs")])
def test_a_step_on_large_maps_takes_half_the_memory(family, arch):
    images = torch.randn(32, 3, 512, 512, device="cuda")
    model = MODELS.build(dict(type=f"mmcare.{family}", arch=arch)).cuda().train()
    with keep_everything():
        plain = peak(model, images)
    assert peak(model, images) < 0.55 * plain
    again = MODELS.build(dict(type=f"mmcare.{family}", arch=arch, with_cp=True)).cuda().train()
    assert peak(again, images) < 0.4 * plain
