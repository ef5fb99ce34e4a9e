import logging

import pytest
import torch

torch.manual_seed(0)


@pytest.fixture
def log():
    """What is logged through MMEngine during the test, as a list of messages."""
    from mmengine.logging import MMLogger

    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)
