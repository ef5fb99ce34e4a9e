"""Recording of a training's curves with a tracker, beside MMEngine's own log."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..data import type_name
from ..errors import UserError

if TYPE_CHECKING:
    from mmengine.config import Config

TRACKERS = {
    "tensorboard": "TensorboardVisBackend",
    "wandb": "WandbVisBackend",
    "mlflow": "MLflowVisBackend",
}
"""MMEngine's backend for each tracker, by the name of its package."""


def track(cfg: Config, name: str) -> None:
    """Add a tracker to a config, in place.

    Args:
        cfg: the config; its visualizer gets the backend.
        name: one of :data:`TRACKERS`.

    Raises:
        UserError: the tracker's package is not installed.
    """
    if find_spec(name) is None:
        raise UserError(f"--track {name} needs a package that is not installed: run `pip install {name}`")
    backend = dict(type=TRACKERS[name], **_settings(name))
    if not cfg.get("visualizer"):
        cfg.visualizer = dict(type="Visualizer")
    others = cfg.visualizer.get("vis_backends") or [dict(type="LocalVisBackend")]
    cfg.visualizer.vis_backends = [*(other for other in others if type_name(other) != backend["type"]), backend]


def _settings(name: str) -> dict[str, Any]:
    """Return the arguments of a tracker's backend: those of its own environment variables, else for this machine only.

    MMEngine's own defaults would ask for a login at Weights & Biases, and choose a kind of store that MLflow 3 refuses.
    """
    if name == "wandb":
        return dict(init_kwargs=dict(mode=os.environ.get("WANDB_MODE", "offline")))
    if name == "mlflow":
        return dict(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"))
    return {}
