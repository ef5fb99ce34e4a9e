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
