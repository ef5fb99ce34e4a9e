import gc
import logging
import sys
from collections import OrderedDict
from contextlib import contextmanager

import pytest
import torch
from helpers import load_tool
from hypothesis import settings
from mmengine.config import config
from yapf.yapflib import yapf_api

torch.manual_seed(0)
settings.register_profile("repeatable", derandomize=True)  # the same examples in each run
settings.load_profile("repeatable")
# Converters make millions of objects that stay, and would be searched for cycles again and again.
gc.set_threshold(50_000, 20, 20)


def _once(format_code):
    """Return a formatter that formats each text once: a run writes its config four times, which takes it a second."""
    formatted = {}

    def format_once(text, **options):
        if text not in formatted:
            formatted[text] = format_code(text, **options)
        return formatted[text]

    return format_once


# MMEngine has it under a name of its own, the successors look it up when they format.
yapf_api.FormatCode = config.FormatCode = _once(yapf_api.FormatCode)


def pytest_collection_finish():
    gc.freeze()  # data sets search for cycles when they are built; what was imported has none


@pytest.fixture
def log():
    """Return a list of the messages that are logged through MMEngine during the test."""
    from mmengine.logging import MMLogger

    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.fixture
def in_process(monkeypatch, capsys):
    """Run a tool's main function in this process, as the command line would."""

    def run(main, name, *args):
        """Return the exit status and the output."""
        from mmcare import cli

        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        status = 0
        try:
            cli.run(main)
        except SystemExit as ended:
            status = ended.code
        return status, capsys.readouterr()

    return run


@pytest.fixture
def refusal(in_process):
    """Run a tool in this process that must fail with a user error; return the message."""

    def refusal(main, name, *args):
        status, printed = in_process(main, name, *args)
        assert status == 2, printed.out[-2000:] + printed.err
        last = printed.err.splitlines()[-1]
        assert last.startswith("error: ")
        return last.removeprefix("error: ")

    return refusal


@pytest.fixture
def own_process(monkeypatch):
    """Undo the changes that a command line, or ``make_loading_safe``, makes to its process."""
    with _own_process(monkeypatch):
        yield


@contextmanager
def _own_process(monkeypatch):
    for name in ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.registry import DefaultScope
    from mmengine.runner import CheckpointLoader
    from mmengine.runner.checkpoint import load_from_http, load_from_local
    from mmengine.visualization import Visualizer

    # The default name is the start time in seconds, which two runs may share.
    for manager in (DefaultScope, MessageHub, MMLogger):
        monkeypatch.setattr(manager, "_instance_dict", OrderedDict(manager._instance_dict))
    # Configs give it a name, by which a later run would get the one of an earlier run, with that one's output folder.
    for manager in (Visualizer, *Visualizer.__subclasses__()):
        monkeypatch.setattr(manager, "_instance_dict", OrderedDict())
    yield
    CheckpointLoader.register_scheme("", load_from_local, force=True)
    CheckpointLoader.register_scheme(("http://", "https://"), load_from_http, force=True)


@pytest.fixture(scope="module")
def train():
    """Train in this process as ``tools/train.py`` does in a folder; return the work folder."""
    from mmcare import cli

    tool = load_tool("train")

    def train(folder, config, *args):
        with pytest.MonkeyPatch.context() as monkeypatch, _own_process(monkeypatch):
            monkeypatch.setattr(logging, "raiseExceptions", True)
            monkeypatch.chdir(folder)
            monkeypatch.setattr(sys, "argv", ["train.py", config, *map(str, args)])
            cli.run(tool.main)
        return folder / "work_dirs" / config.removesuffix(".py")

    return train
