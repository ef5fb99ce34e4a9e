"""Reading of configs.

MMEngine is imported inside the functions, so that ``--help`` works without it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, closest
from ..stack import check_stack
from .launchers import is_first_process

if TYPE_CHECKING:
    from mmengine.config import Config

    from ..data.own import OwnData

DENSE_TASKS = {"mmdet": "detection", "mmseg": "segmentation"}
"""The tasks of dense prediction, by the ``default_scope`` of their configs."""
TASKS = {**DENSE_TASKS, "mmpretrain": "classification"}
"""The task of a config, by its ``default_scope``."""

_PACKAGE = Path(__file__).parents[1]


def list_configs() -> list[str]:
    """Return the names of mmcare's own configs, such as ``detection/retinanet_care_s1``."""
    folder = _folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("[!_]*/*.py"))


def get_config(name: str) -> Config:
    """Read one of mmcare's own configs, from a clone or an installed wheel.

    Args:
        name: one of :func:`list_configs`.

    Raises:
        UserError: there is no config of that name.
    """
    names = list_configs()
    if name not in names:
        raise UserError(f"mmcare has no config {name!r}: {closest(name, names, 'mmcare --help lists its configs')}")
    return _read(_file_of(name))


def is_config(name: str) -> bool:
    """Return whether :func:`load_config` would take ``name`` for a config, which may be missing."""
    return name.endswith(".py") or name in list_configs()


def _folder() -> Path:
    """Return the folder of the configs: inside the package in a wheel, beside it in a clone."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def _file_of(name: str) -> Path:
    return _folder() / f"{name}.py"


def load_config(
    path: str,
    parts: Sequence[str] = (),
    sample: bool = False,
    cfg_options: Mapping[str, Any] | None = None,
    data: OwnData | None = None,
    adapt: Callable[[Config, Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> Config:
    """Read a config, optionally switch it to other data and adapt it, and then apply ``cfg_options``.

    Args:
        path: the config file; if there is no such file, one of :func:`list_configs`.
        parts: top-level keys that the config must have.
        sample: replace the config's data and schedule with those of the sample data.
        cfg_options: new values by dotted key, such as ``{"model.backbone.arch": "s1"}``.
        data: replace the config's data and classes with those of this folder, and print what was found to stderr.
        adapt: changes the config in place, given the ``cfg_options``, and returns those that are still to be applied.

    Raises:
        UserError: the file cannot be read or lacks a part, an option does not fit it, the data cannot be used, or a
            required package is not installed.
    """
    cfg = _read(_find(path))
    task_of(cfg)
    absent = [part for part in parts if not cfg.get(part)]
    if absent:
        raise UserError(f"{path} has no {' and no '.join(absent)}: give a complete config")
    check_stack(needs=(cfg.default_scope,))
    if sample:
        from ..data.sample import overlay_sample, prepare

        overlay_sample(cfg, prepare())
    if data:
        _overlay_own_data(cfg, data)
    options = cfg_options or {}
    merge_options(cfg, adapt(cfg, options) if adapt else options)
    return cfg


def merge_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Set new values, by dotted key, in a config.

    Raises:
        UserError: a key does not fit the config.
    """
    try:
        cfg.merge_from_dict(dict(options))
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"--cfg-options does not fit {cfg.filename}: {first_sentence(error)}") from error


def _overlay_own_data(cfg: Config, data: OwnData) -> None:
    from ..data.own import overlay_own_data, prepare

    prepared = prepare(data, dense_task_of(cfg))
    if is_first_process():
        print(prepared.report, file=sys.stderr)
    overlay_own_data(cfg, prepared)


def _find(path: str) -> Path:
    if Path(path).is_file():
        return Path(path)
    names = list_configs()
    if path in names:
        return _file_of(path)
    otherwise = f"check the path (relative ones start at {os.getcwd()}), or give a name that mmcare --help lists"
    raise UserError(f"there is no config {path}: {closest(path, names, otherwise)}")


def _read(path: Path) -> Config:
    from mmengine.config import Config

    try:
        return Config.fromfile(path)
    except Exception as error:  # a config is a program and may raise anything
        lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
        place = f"line {lines[-1].lineno} of {lines[-1].filename}" if lines else path
        reason = f"{type(error).__name__}: {first_sentence(error)}"
        raise UserError(f"the config cannot be read because of an error in {place}: {reason}") from error


def task_of(cfg: Config) -> str:
    """Return ``"detection"``, ``"segmentation"`` or ``"classification"``, according to the config's ``default_scope``.

    Raises:
        UserError: the scope is none of MMDetection's, MMSegmentation's and MMPretrain's.
    """
    scope = cfg.get("default_scope")
    if scope not in TASKS:
        *others, last = map(repr, TASKS)
        raise UserError(
            f"{cfg.filename} has default_scope = {scope!r}: the tools support {', '.join(others)} and {last}"
        )
    return TASKS[scope]


def dense_task_of(cfg: Config) -> str:
    """Return ``"detection"`` or ``"segmentation"`` for what serves only these.

    Raises:
        UserError: the config is for classification, or for another project.
    """
    task = task_of(cfg)
    if task not in DENSE_TASKS.values():
        raise UserError(f"{cfg.filename} is for {task}, and this is for detectors and segmentors: give one of theirs")
    return task


def first_sentence(error: Exception) -> str:
    """Return the first sentence of an exception's message, without line breaks."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error  # str() of a KeyError adds quotes
    text = " ".join(str(text).split())
    return text.partition(". ")[0][:300] or type(error).__name__
