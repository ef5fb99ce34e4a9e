"""Building a Runner from a config."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from mmcare import UserError
from mmcare.runs import build_runner


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_config_from_a_work_folder_is_checked_as_this_run_needs_it(monkeypatch):
    built = []
    monkeypatch.setattr(Runner, "from_cfg", lambda cfg: built.append(cfg) or SimpleNamespace(build_dataloader=print))
    cfg = Config(dict(work_dir="run", launcher="none", custom_hooks=[dict(type="EMAHook")]))
    build_runner(cfg, require_all=True)
    assert built[-1].custom_hooks == [dict(type="EMAHook"), dict(type="mmcare.CheckpointFitHook", require_all=True)]
    build_runner(built[-1], require_all=False)
    assert built[-1].custom_hooks == [dict(type="EMAHook"), dict(type="mmcare.CheckpointFitHook", require_all=False)]


def test_a_work_folder_that_cannot_be_made():
    Path("run").write_text("a file")
    with pytest.raises(UserError, match="work folder run"):
        build_runner(Config(dict(work_dir="run", launcher="none")), require_all=True)
