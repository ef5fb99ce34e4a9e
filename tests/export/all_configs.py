"""Every config with random weights, in onnxruntime: ``python -m pytest tests/export/all_configs.py``.

It is not part of the suite, which does the same with tiny models, as it takes an hour.
"""

import pytest
from test_onnx import assert_same

from mmcare import get_config, list_configs

SIZE = (96, 128)


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("name", [name for name in list_configs() if not name.startswith("classification/")])
def test_the_file_of_a_config_equals_the_model(exported_config, run, pictures, tmp_path, name, dynamic):
    config = tmp_path / f"{name.rpartition('/')[2]}.py"
    get_config(name).dump(config)
    model = exported_config(config)
    path = model.export("model.onnx", **(dict(dynamic=True) if dynamic else dict(shape=SIZE)))
    for batch, *size in [(1, *SIZE), (2, 160, 97)][: 1 + dynamic]:
        images = pictures(batch, *size)
        samples = model.predict(images)
        assert model.task == "segmentation" or any(len(sample.pred_instances) for sample in samples)
        assert_same(run(path, images), samples, size)
