"""Whether an exported file is of the model in a config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..runs import config_difference, plain_config, task_of

if TYPE_CHECKING:
    from mmengine.config import Config

    from ..runtime import Certificate


def check_fit(certificate: Certificate, cfg: Config, path: str | Path) -> None:
    """Check that an exported file is of the model in a config, whatever settings both have for training.

    Args:
        certificate: of the file.
        cfg: the config.
        path: the file, in messages.

    Raises:
        UserError: the file is for another task, or of a model with another setting.
    """
    task = task_of(cfg)
    if certificate.task != task:
        raise UserError(f"{path} is for {certificate.task}, and {cfg.filename} for {task}: give the file's own config")
    difference = config_difference(certificate.config, plain_config(cfg.model))
    if difference:
        place, exported, given = difference
        raise UserError(
            f"{path} was exported with {place}={_shown(exported)}, and {cfg.filename} has {_shown(given)}: give the "
            "config and options that it was exported with"
        )


def check_classes(own: tuple[str, ...], given: tuple[str, ...], what: str, or_else: str = "") -> None:
    """Raise UserError if a model has other classes than the test data.

    Args:
        own: the model's.
        given: the data's.
        what: names the model in the message.
        or_else: what can be done besides giving other data.
    """
    if own != given:
        raise UserError(
            f"{what} has the classes {_some(own)}, and the test data {_some(given)}: give data with the same classes "
            f"in the same order{or_else}"
        )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + ("…" if len(names) > 5 else "")
