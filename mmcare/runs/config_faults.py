"""Config errors, reported in one sentence: unknown classes, and arguments that do not match a class.

MMEngine builds the parts of a config one by one during a run, and ends with a stack trace if a class does not exist or
does not accept its arguments. This module finds the part by checking the config against MMEngine's registries and the
signatures of the registered classes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    from mmengine.config import Config


@dataclass(frozen=True)
class _Place:
    """A place in a config that names a class: its registry, and which arguments the config does not have."""

    registry: str
    others: Collection[str] | None = ()
    """Arguments that the builder adds or removes; None if they may be any."""
    complete: bool = True
    """Whether the config has all other arguments."""
    must_have_type: bool = True


# A part of a model may add arguments to the parts inside it, and may choose their classes.
_IN_MODEL = _Place("MODELS", complete=False, must_have_type=False)
_DATASET = r"\w+_dataloader\.dataset(\.datasets?)*"
_PLACES = {
    r"model": _Place("MODELS"),
    r"model\.(.+\.)?(module|backbone|neck|data_preprocessor|(\w+_)?head|\w+_roi_extractor)": _IN_MODEL,
    r"model\..+\.(\w+_generator|bbox_coder|assigner|sampler)": replace(_IN_MODEL, registry="TASK_UTILS"),
    r"model\..+\.loss_\w+": replace(_IN_MODEL, others=None),
    _DATASET: _Place("DATASETS"),
    rf"{_DATASET}\.pipeline": _Place("TRANSFORMS"),
    r"\w+_dataloader\.sampler": _Place("DATA_SAMPLERS", ("dataset", "seed")),
    r"\w+_dataloader\.batch_sampler": _Place("DATA_SAMPLERS", ("sampler", "batch_size")),
    r"\w+_evaluator(\.metrics)?": _Place("METRICS"),
    r"(default_hooks\.\w+|custom_hooks)": _Place("HOOKS", ("priority",)),
    r"(train|val|test)_cfg": _Place("LOOPS", ("runner", "dataloader", "evaluator"), must_have_type=False),
    r"optim_wrapper": _Place("OPTIM_WRAPPERS", ("optimizer", "constructor", "paramwise_cfg"), must_have_type=False),
    r"optim_wrapper\.optimizer": _Place("OPTIMIZERS", ("params",)),
    r"param_scheduler": _Place("PARAM_SCHEDULERS", ("optimizer", "convert_to_iter_based", "epoch_length")),
    r"visualizer": _Place("VISUALIZERS", ("name", "save_dir")),
    r"visualizer\.vis_backends": _Place("VISBACKENDS", ("save_dir",)),
    r"log_processor": _Place("LOG_PROCESSORS", must_have_type=False),
}
"""The parts of a config that MMEngine's Runner builds, by patterns for their dotted keys without list indices."""


@contextmanager
def explain_config_faults(cfg: Config, splits: Sequence[str]) -> Iterator[None]:
    """Return a context that raises a UserError if building from a config fails because of a fault in the config.

    Args:
        cfg: the config.
        splits: the splits whose parts of the config are used: "train", "val", "test".
    """
    try:
        yield
    except (KeyError, TypeError) as error:  # a class that does not exist, or arguments that it does not accept
        fault = fault_of_config(cfg, splits)
        if fault is None:
            raise
        raise UserError(fault) from error


def fault_of_config(cfg: Config, splits: Sequence[str]) -> str | None:
    """Return the first fault in the parts of a config that a run on these splits builds, or None."""
    of_others = {"train", "val", "test"} - set(splits)
    for key, part in cfg.items():
        owner = "train" if key in ("optim_wrapper", "param_scheduler") else key.partition("_")[0]
        if owner in of_others:
            continue
        for path, node in _dicts(part, key):
            plain = re.sub(r"\.\d+", "", path)
            place = next((place for pattern, place in _PLACES.items() if re.fullmatch(pattern, plain)), None)
            fault = place and _fault_of_part(node, place, cfg.get("default_scope"))
            if fault:
                return f"the config's {path} {fault}"
    return None


def _dicts(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every dict in a part of a config, with its dotted key for ``--cfg-options``."""
    if isinstance(node, dict):
        yield path, node
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, child in children:
        yield from _dicts(child, f"{path}.{key}")


def _fault_of_part(node: dict[str, Any], place: _Place, scope: str | None) -> str | None:
    from mmengine import registry as registries

    if "type" not in node:
        # A dict with metrics is an evaluator, by default MMEngine's own.
        return "has no type: give its class" if place.must_have_type and "metrics" not in node else None
    target = node["type"]
    name = target if isinstance(target, str) else target.__name__
    if place.registry == "METRICS" and "metrics" in node:
        place = _Place("EVALUATOR")
    if isinstance(target, str):
        registry: registries.Registry = getattr(registries, place.registry)
        with registry.switch_scope_and_registry(node.get("_scope_", scope)) as own:
            target = own.get(name)
    if target is None:
        return f"has type={name!r}, which is not registered: check the name, and that its package is installed"
    if place.others is None:
        return None
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # not all functions written in C have a signature
        return None
    given = {*node, *place.others} - {"type", "_scope_"}
    kinds = {parameter.kind for parameter in parameters.values()}
    unknown = given - set(parameters) - set(place.others)
    if unknown and inspect.Parameter.VAR_KEYWORD not in kinds:
        return f"does not fit {name}, which has no argument {' and no '.join(sorted(unknown))}: check the spelling"
    required = [
        parameter.name
        for parameter in parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    missing = [parameter for parameter in required if parameter not in given]
    if missing and place.complete:
        return f"does not fit {name}, which needs {' and '.join(missing)}: add the missing arguments"
    return None
