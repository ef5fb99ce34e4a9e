"""What takes too long for the suite: ``python -m pytest tests/export/all_configs.py``, which takes an hour.

Every config with random weights in onnxruntime, which the suite does with tiny models, and the tiny models in the
runtimes that test_runtimes_agree.py leaves out for them.
"""

import pytest
import torch
from test_onnx import assert_same
from test_runtimes_agree import HEADS, SHAPES, SLOW, WITH_SLOW, check_agreement

from mmcare import get_config, list_configs

SIZE = (96, 128)


def shifted(images):
    return (images.roll(pixels, 3) for pixels in range(8))


def is_decided(model, images):
    """Return whether rounding does not decide what the model finds, as in random weights it sometimes does."""
    if model.task == "segmentation":
        return True
    generator = torch.Generator().manual_seed(0)
    nudges = [1e-3 * torch.randn(images.shape, generator=generator) for _ in range(8)]
    wanted = [sample.pred_instances.scores for sample in model.predict(images)]
    found = [[sample.pred_instances.scores for sample in model.predict(images + nudge)] for nudge in nudges]
    return all(
        len(a) == len(b) and torch.allclose(a, b, atol=1e-5)
        for scores in found
        for a, b in zip(wanted, scores, strict=True)
    )


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("name", [name for name in list_configs() if not name.startswith("classification/")])
def test_the_file_of_a_config_equals_the_model(exported_config, run, pictures, tmp_path, name, dynamic):
    config = tmp_path / f"{name.rpartition('/')[2]}.py"
    get_config(name).dump(config)
    model = exported_config(config)
    path = model.export("model.onnx", **(dict(dynamic=True) if dynamic else dict(shape=SIZE)))
    for batch, *size in [(1, *SIZE), (2, 160, 97)][: 1 + dynamic]:
        images = next(images for images in shifted(pictures(batch, *size)) if is_decided(model, images))
        samples = model.predict(images)
        assert model.task == "segmentation" or any(len(sample.pred_instances) for sample in samples)
        assert_same(run(path, images), samples, size)


@pytest.mark.parametrize(
    ("family", "head"), [(family, head) for family in SHAPES for head in HEADS if (family, head) not in WITH_SLOW]
)
def test_the_other_models_agree(exported, family, head):
    check_agreement(exported(family, head), SHAPES[family], SLOW)
