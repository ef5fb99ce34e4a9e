"""tools/train.py --track: MMEngine's backends, with which nothing leaves the machine by default.

A training that TensorBoard records is in test_recipes.py. Weights & Biases and MLflow are stood in for by modules that
record their calls.
"""

import sys
from collections import OrderedDict
from types import SimpleNamespace
from unittest.mock import MagicMock

import mmengine.visualization  # noqa: F401  (registers the backends)
import pytest
from helpers import DETECTION, load_tool
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import VISBACKENDS

from mmcare import UserError
from mmcare.runs import TRACKERS, track

tool = load_tool("train")


@pytest.fixture(autouse=True)
def _installed(monkeypatch):
    monkeypatch.setattr("mmcare.runs.tracking.find_spec", lambda name: SimpleNamespace(name=name))
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def tracked(name, **changes):
    """Return the backends of a tracked config."""
    cfg = Config(dict(visualizer=dict(vis_backends=[dict(type="LocalVisBackend")]), **changes))
    track(cfg, name)
    return cfg.visualizer.vis_backends


@pytest.fixture
def built(monkeypatch, tmp_path):
    """Return a tracker's backend, and the module that records its calls."""
    # MLflow's backend opens files again for loggers whose stream is closed, as are those of earlier tests.
    monkeypatch.setattr(MMLogger, "_instance_dict", OrderedDict())

    def built(name):
        package = MagicMock()
        monkeypatch.setitem(sys.modules, name, package)
        return VISBACKENDS.build(dict(tracked(name)[-1], save_dir=str(tmp_path))), package

    return built


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_is_one_more_backend(name):
    first, second = tracked(name)
    assert (first.type, second.type) == ("LocalVisBackend", TRACKERS[name])
    assert VISBACKENDS.get(second.type)


def test_a_tracker_of_the_config_is_replaced_and_a_visualizer_is_not_needed():
    cfg = Config(dict(visualizer=dict(vis_backends=[dict(type="TensorboardVisBackend")])))
    track(cfg, "tensorboard")
    assert [backend.type for backend in cfg.visualizer.vis_backends] == ["TensorboardVisBackend"]
    cfg = Config({})
    track(cfg, "tensorboard")
    assert [backend["type"] for backend in cfg.visualizer.vis_backends] == ["LocalVisBackend", "TensorboardVisBackend"]


@pytest.mark.parametrize("mode", [None, "online"])
def test_wandb_is_offline_unless_told(built, monkeypatch, mode, tmp_path):
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    backend, wandb = built("wandb")
    backend.add_scalars({"loss": 1.5}, step=3)
    wandb.init.assert_called_once_with(mode=mode or "offline", dir=str(tmp_path))
    wandb.log.assert_called_once_with({"loss": 1.5}, commit=True)


@pytest.mark.parametrize("server", [None, "http://10.0.0.1:5000"])
def test_mlflow_writes_a_file_in_the_current_folder_unless_told(built, monkeypatch, server):
    if server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    backend, mlflow = built("mlflow")
    backend.add_scalars({"loss": 1.5}, step=3)
    mlflow.set_tracking_uri.assert_called_once_with(server or "sqlite:///mlflow.db")
    mlflow.log_metrics.assert_called_once_with({"loss": 1.5}, 3)


def test_options_win(monkeypatch, in_process, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "0")  # the tools set it; monkeypatch restores it
    configs = []
    monkeypatch.setattr(tool, "train", lambda cfg, args, start: configs.append(cfg))
    project = "visualizer.vis_backends.1.init_kwargs.project=coins"
    status, printed = in_process(tool.main, "train", DETECTION, "--track", "wandb", "--cfg-options", project)
    assert status == 0, printed.err
    assert configs[0].visualizer.vis_backends[1].init_kwargs == dict(mode="offline", project="coins")


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_told(monkeypatch, name):
    monkeypatch.setattr("mmcare.runs.tracking.find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"--track {name} .* not installed: run `pip install {name}`"):
        track(Config({}), name)
