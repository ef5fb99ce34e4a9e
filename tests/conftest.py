import logging
import sys

import pytest
import torch

torch.manual_seed(0)


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
