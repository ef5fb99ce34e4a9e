"""A user error is reported in one line by the first process of a run; a bug keeps its stack trace."""

import pytest
from torch.utils.data import DataLoader

from mmcare import UserError
from mmcare.cli import run
from mmcare.runs import LAUNCHERS


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for launcher in LAUNCHERS.values():
        monkeypatch.delenv(launcher.rank, raising=False)


def mistake():
    raise UserError("the picture is gone: bring it back")


def bug():
    raise ZeroDivisionError


class Pictures:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            bug()
        except ZeroDivisionError:
            mistake()


def load_in_a_worker():
    next(iter(DataLoader(Pictures(), num_workers=1)))


@pytest.mark.parametrize("main", [mistake, load_in_a_worker])
def test_a_mistake_is_told_in_one_line(capsys, main):
    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: the picture is gone: bring it back\n"


def test_a_bug_keeps_its_trace():
    with pytest.raises(ZeroDivisionError):
        run(bug)


@pytest.mark.parametrize(("rank", "waits"), [("0", 0), ("1", 1)])
def test_another_process_tells_a_mistake_that_the_first_one_has_not_met(monkeypatch, capsys, rank, waits):
    seconds = []
    monkeypatch.setattr("time.sleep", seconds.append)
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit):
        run(mistake)
    assert capsys.readouterr().err == "error: the picture is gone: bring it back\n"
    assert len(seconds) == waits
    assert all(time >= 10 for time in seconds)  # so that the launcher can end it
