import logging
import os

import pytest
import torch

# Tests run beside each other's subprocesses on small machines, where threads that spin for each other cost more than
# they give.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
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
