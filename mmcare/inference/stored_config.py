"""The config that a checkpoint carries, read without running it.

Training stores the text of its config in each checkpoint, and a release keeps it. The text is a Python program, which
MMEngine's inferencers execute. Here it is read as what MMEngine writes, assignments of literals, and nothing else. Of
the values only those that prediction needs are taken. These could still do harm, because names in a config select code:
MMEngine imports a dotted ``type`` that is not registered, mmcv evaluates the ``type`` of ``nms``, and some classes read
files or download them. So only registered classes of OpenMMLab are allowed, and no paths or addresses.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, TASK_UTILS, TRANSFORMS

from ..data import innermost_datasets
from ..errors import UserError
from ..runs import DENSE_TASKS
from ..stack import check_stack

_LARGEST = 2**20
"""Characters of a text that is still read: configs have some ten thousand."""
_SCOPES = {"mmengine", "mmcv", "mmcare", *DENSE_TASKS}
_OPERATORS = {"nms", "soft_nms", "RoIAlign", "RoIPool"}
"""Names of mmcv's operators that stand as a ``type`` but are not registered."""
_DOWNLOADING = ("mmdet.models.language_models", "mmdet.datasets.transforms.text_", "mmseg.models.text_encoder")
"""Modules whose classes fetch files from the Hugging Face Hub by a bare name."""
_NUMBERS = {"inf": math.inf, "nan": math.nan}
"""Floats that Python writes as names."""


def stored_config(meta: Any, source: str) -> Config:
    """Return the parts of a checkpoint's config that prediction needs.

    Args:
        meta: the ``meta`` of the checkpoint.
        source: name of the checkpoint in messages.

    Returns:
        A config with ``default_scope``, ``model`` and ``test_pipeline``.

    Raises:
        UserError: there is no config, it is not MMDetection's or MMSegmentation's, or it is not made of literals and of
            OpenMMLab's registered classes only; or the project is not installed.
    """
    text = meta.get("cfg") if isinstance(meta, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{source} carries no config: give the config that it was trained with, too")
    try:
        values = _read(text)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        reason = error if str(error) else "it is nested too deeply"
        raise UserError(
            f"the config in {source} is not made of plain values ({reason}), and a program from a checkpoint is not "
            "run: give the config that it was trained with, too"
        ) from None
    scope = values.get("default_scope")
    if not isinstance(scope, str) or scope not in DENSE_TASKS:
        project = scope if isinstance(scope, str) else "an unknown project"
        raise UserError(
            f"{source} has a model of {project}, not a detector of MMDetection or a segmentor of MMSegmentation: give "
            "another checkpoint"
        )
    check_stack(needs=(scope,))
    config = {"default_scope": scope, **_parts(values, source)}
    for place, key, value in _entries(config, ""):
        fault = _fault(key, value, scope)
        if fault:
            raise UserError(
                f"the config in {source} has {place}={value!r}, {fault}: if you trust its author, give the config as a "
                "file, too"
            )
    return Config(config)


# -- literals ----------------------------------------------------------------------------------------------------------


def _read(text: str) -> dict[str, Any]:
    """Return the values of a text of assignments; raise ValueError if it has anything else."""
    if len(text) > _LARGEST:
        raise ValueError(f"it has {len(text):,} characters")
    values = {}
    for statement in ast.parse(text).body:
        if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
            raise ValueError(f"line {statement.lineno} is not an assignment to a name")
        values[statement.targets[0].id] = _value(statement.value)
    return values


def _value(node: ast.expr) -> Any:
    """Return the value of an expression of literals and of calls ``dict(key=value)``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError(f"line {node.lineno} has **")
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {ast.literal_eval(key): _value(value) for key, value in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(item) for item in node.elts)
    if isinstance(node, ast.Name) and node.id in _NUMBERS:
        return _NUMBERS[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Name):
        return -_value(node.operand)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"line {node.lineno} has {ast.unparse(node)[:60]!r}") from None


# -- what the values may do --------------------------------------------------------------------------------------------


def _parts(values: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the model and its test pipeline, without what they would load before the weights."""
    model = values.get("model")
    loader = values.get("test_dataloader")
    dataset = loader.get("dataset") if isinstance(loader, dict) else None
    try:
        pipeline = next(innermost_datasets(dataset), {}).get("pipeline") or values.get("test_pipeline")
    except TypeError:  # a wrapper of something that is no list
        pipeline = None
    if not (isinstance(model, dict) and isinstance(pipeline, list | tuple)):
        raise UserError(f"the config in {source} has no model and test pipeline: give a complete config, too")
    if isinstance(values.get("data_preprocessor"), dict):
        model = {"data_preprocessor": values["data_preprocessor"], **model}
    return {"model": _without_sources(model), "test_pipeline": _without_sources(list(pipeline))}


def _without_sources(node: Any) -> Any:
    """Return a part without initial weights, which those of the checkpoint replace, and without remote storage."""
    if isinstance(node, dict):
        kept = node.keys() - {"init_cfg", "pretrained", "backend_args", "file_client_args"}
        return {key: _without_sources(value) for key, value in node.items() if key in kept}
    return type(node)(map(_without_sources, node)) if isinstance(node, list | tuple) else node


def _entries(node: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted place, the key and the value of every entry that is no container or should not be one."""
    if isinstance(node, dict | list | tuple):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            inside = f"{place}.{key}" if place else str(key)
            if isinstance(value, dict | list | tuple) and key not in ("type", "_scope_"):
                yield from _entries(value, inside)
            else:
                yield inside, key, value


def _fault(key: Any, value: Any, scope: str) -> str | None:
    """Return why an entry is refused, or None."""
    if key == "type":
        return None if isinstance(value, str) and _is_harmless(value, scope) else "which no OpenMMLab project registers"
    if key == "_scope_":
        return None if isinstance(value, str) and value in _SCOPES else "another project"
    if isinstance(value, str) and not re.fullmatch(r"[\w+\- ]*", value):
        return "which could be a path, an address or a program"
    if isinstance(value, str) and re.search(r"ckpt|checkpoint|config", str(key)):
        return "which could be a file"
    return None


def _is_harmless(name: str, scope: str) -> bool:
    """Return whether a name is of an operator, or of a class that a project of OpenMMLab registers for models or data.

    Registries import the module of a dotted name that they do not have, and so does a bare name; neither gets there.
    """
    if name in _OPERATORS:
        return True
    project, _, bare = name.rpartition(".")
    if not bare.isidentifier() or project not in _SCOPES | {""}:
        return False
    for registry in (MODELS, TASK_UTILS, TRANSFORMS):
        with registry.switch_scope_and_registry(project or scope) as own:
            own.import_from_location()
            while own is not None:
                found = own.module_dict.get(bare)
                if found is not None:
                    module = getattr(found, "__module__", "")
                    ours = module.partition(".")[0] in _SCOPES | {"torch"}
                    return ours and not module.startswith(_DOWNLOADING)
                own = own.parent if not project else None
    return False
