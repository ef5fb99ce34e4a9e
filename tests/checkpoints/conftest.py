import logging
import sys
from collections import OrderedDict, defaultdict
from contextlib import contextmanager

import pytest
from helpers import load_tool
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_from_http, load_from_local

from mmcare import cli, make_loading_safe


@pytest.fixture
def own_process(monkeypatch):
    """Undo the changes that a command line, or ``make_loading_safe``, makes to its process."""
    with _own_process(monkeypatch):
        yield


@contextmanager
def _own_process(monkeypatch):
    for name in ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    # The default name is the start time in seconds, which two runs may share.
    for manager in (DefaultScope, MessageHub, MMLogger):
        monkeypatch.setattr(manager, "_instance_dict", OrderedDict(manager._instance_dict))
    yield
    CheckpointLoader.register_scheme("", load_from_local, force=True)
    CheckpointLoader.register_scheme(("http://", "https://"), load_from_http, force=True)


@pytest.fixture
def safe_loading(own_process):
    make_loading_safe()


@pytest.fixture(scope="module")
def train():
    """Train in this process as ``tools/train.py`` does in a folder; return the work folder."""
    tool = load_tool("train")

    def train(folder, config, *args):
        with pytest.MonkeyPatch.context() as monkeypatch, _own_process(monkeypatch):
            monkeypatch.setattr(logging, "raiseExceptions", True)
            monkeypatch.chdir(folder)
            monkeypatch.setattr(sys, "argv", ["train.py", config, *map(str, args)])
            cli.run(tool.main)
        return folder / "work_dirs" / config.removesuffix(".py")

    return train


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
