import logging
import sys

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


@pytest.fixture
def in_process(monkeypatch, capsys):
    """Runs a tool's main function in this process, as the command line would."""

    def run(main, name, *args):
        """Returns the exit status and what was printed."""
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
    """Runs a tool that has to refuse, in this process; returns the one sentence that it ends with."""

    def refusal(main, name, *args):
        status, printed = in_process(main, name, *args)
        assert status == 2, printed.out[-2000:] + printed.err
        last = printed.err.splitlines()[-1]
        assert last.startswith("error: ")
        return last.removeprefix("error: ")

    return refusal
