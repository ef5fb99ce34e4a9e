"""Reading of configs.

MMEngine is imported inside the functions, so that ``--help`` works without it.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..stack import check_stack

if TYPE_CHECKING:
    from mmengine.config import Config

TASKS = {"mmdet": "detection", "mmseg": "segmentation"}
"""The task of a config, by its ``default_scope``."""


def load_config(
    path: str, parts: Sequence[str] = (), sample: bool = False, cfg_options: Mapping[str, Any] | None = None
) -> Config:
    """Read a config, optionally switch it to the sample data, and then apply ``cfg_options``.

    Args:
        path: the config file.
        parts: top-level keys that the config must have.
        sample: replace the config's data and schedule with those of the sample data.
        cfg_options: new values by dotted key, such as ``{"model.backbone.arch": "s1"}``.

    Raises:
        UserError: the file cannot be read or lacks a part, an option does not fit it, or a required package is not
            installed.
    """
    cfg = _read(path)
    task_of(cfg)
    absent = [part for part in parts if not cfg.get(part)]
    if absent:
        raise UserError(f"{path} has no {' and no '.join(absent)}: give a complete config")
    check_stack(needs=(cfg.default_scope,))
    if sample:
        from ..data.sample import overlay_sample, prepare

        overlay_sample(cfg, prepare())
    if cfg_options:
        try:
            cfg.merge_from_dict(dict(cfg_options))
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(f"--cfg-options does not fit {path}: {first_sentence(error)}") from error
    return cfg


def _read(path: str) -> Config:
    from mmengine.config import Config

    if not Path(path).is_file():
        raise UserError(f"there is no config {path}: check the path (relative ones start at {os.getcwd()})")
    try:
        return Config.fromfile(path)
    except Exception as error:  # a config is a program and may raise anything
        lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
        place = f"line {lines[-1].lineno} of {lines[-1].filename}" if lines else path
        reason = f"{type(error).__name__}: {first_sentence(error)}"
        raise UserError(f"the config cannot be read because of an error in {place}: {reason}") from error


def task_of(cfg: Config) -> str:
    """Return ``"detection"`` or ``"segmentation"``, according to the config's ``default_scope``.

    Raises:
        UserError: the scope is neither MMDetection's nor MMSegmentation's.
    """
    scope = cfg.get("default_scope")
    if scope not in TASKS:
        raise UserError(
            f"{cfg.filename} has default_scope = {scope!r}: the tools support {' and '.join(map(repr, TASKS))}"
        )
    return TASKS[scope]


def first_sentence(error: Exception) -> str:
    """Return the first sentence of an exception's message, without line breaks."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error  # str() of a KeyError adds quotes
    text = " ".join(str(text).split())
    return text.partition(". ")[0][:300] or type(error).__name__
