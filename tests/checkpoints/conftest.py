import logging
from collections import defaultdict

import pytest
from mmengine.logging import MMLogger
from mmengine.registry import MODELS

from mmcare import make_loading_safe


@pytest.fixture
def safe_loading(own_process):
    make_loading_safe()


@pytest.fixture
def levels():
    """Return MMEngine's log messages during the test, by level."""
    messages = defaultdict(list)
    handler = logging.Handler()
    handler.emit = lambda record: messages[record.levelno].append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.fixture(scope="session")
def pretrained():
    """Build a backbone whose config names a file of pretrained weights."""

    def pretrained(family, arch, file, out_indices=(0, 1, 2, 3), **init):
        init_cfg = dict(type="Pretrained", checkpoint=str(file), **init)
        model = MODELS.build(dict(type=f"mmcare.{family}", arch=arch, out_indices=out_indices, init_cfg=init_cfg))
        model.init_weights()
        return model.eval()

    return pretrained
