"""Every way in for weights: reading files that nobody vouches for, and fitting what they hold into a model.

A checkpoint is a pickle, and a pickle may run code. Here no file ever does: everything is read with torch's
``weights_only`` unpickler, which knows tensors, containers and numbers, plus the few harmless classes of
:func:`_harmless_classes` that trainers leave in their files. Whatever else a file asks for, it is refused.
"""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, master_only
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from .errors import UserError

# Where the weights are in the files of mmcare, MMEngine, timm, DeiT and DeepSpeed trainers. MMEngine's EMAHook writes
# the averaged weights under "state_dict" and keeps the raw ones under "ema_state_dict".
_RAW_KEYS = ("state_dict", "model", "module")
_AVERAGED_KEYS = ("state_dict_ema", "model_ema", "ema")
_MMENGINE_EMA_KEY = "ema_state_dict"


# -- reading -------------------------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Reads a checkpoint file without running any code from it.

    Args:
        path: a file as ``torch.save`` or safetensors writes it, or an http(s) address, which is downloaded to torch's
            hub cache first.
        map_location: device for the tensors.

    Returns:
        What the file holds; for safetensors a dict with ``state_dict`` and ``meta``.

    Raises:
        UserError: there is no such file, it is no checkpoint, it is damaged, or it holds objects that are not weights.
    """
    path = _local_file(path)
    head = _first_bytes(path)
    if _is_safetensors(head):
        return _read_safetensors(path, map_location)
    try:
        with torch.serialization.safe_globals(_harmless_classes()):
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, str(error))) from None
    except (EOFError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, OSError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path} is damaged or cut short ({path.stat().st_size:,} bytes; torch says: {reason[:160]}): "
            "get the file again"
        ) from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__} instead of named weights: give a checkpoint file")
    return checkpoint


def _harmless_classes() -> list[Any]:
    """Classes that hold numbers or names and do nothing when they are made: what trainers leave beside the weights."""
    dtypes = [type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdFD"] + [type(np.dtype(kind)) for kind in ("S", "U")]
    multiarray = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray
    aliased = [
        (getattr(multiarray, name), f"{module}.multiarray.{name}")
        for name in ("scalar", "_reconstruct")
        for module in ("numpy.core", "numpy._core")  # NumPy 1's and NumPy 2's name of the same function
    ]
    aliased += [(_history_statistic, f"{module}.getattr") for module in ("builtins", "__builtin__")]
    return [HistoryBuffer, argparse.Namespace, np.ndarray, np.dtype, *dict.fromkeys(dtypes), *aliased]


def _history_statistic(owner: Any, name: str) -> Any:
    """Stands in for ``getattr``, by which a pickled HistoryBuffer names its methods, and looks up nothing else."""
    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise pickle.UnpicklingError("GLOBAL builtins.getattr")
    return getattr(owner, name)


def _local_file(path: str | Path) -> Path:
    if urlparse(str(path)).scheme in ("http", "https"):
        return _download(str(path))
    path = Path(path).expanduser()
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to {os.readlink(path)}, which does not exist: mend the link")
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}: check the path")
    if path.is_dir():
        raise UserError(f"{path} is a folder: name the checkpoint file in it")
    return path


def _download(url: str) -> Path:
    target = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name

    @master_only
    def fetch() -> None:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(url, str(target))
            except OSError as error:
                raise UserError(
                    f"{url} could not be downloaded ({error}): download it yourself and give the file's path"
                ) from None

    fetch()
    barrier()
    return target


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    if not head:
        raise UserError(f"{path} is empty: get the file again")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise UserError(
            f"{path} is a web page, not a checkpoint: download the file itself, not the page that links to it"
        )
    if text.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not the checkpoint itself: fetch it with `git lfs pull`")
    if not _is_safetensors(head) and _is_text(head):
        raise UserError(f"{path} is a text file, not a checkpoint: give a file as torch.save writes it")
    return head


def _is_text(head: bytes) -> bool:
    return all(byte in b"\t\r\n\f\x1b" or byte >= 32 for byte in head) and b"\x7f" not in head


def _is_safetensors(head: bytes) -> bool:
    """Eight bytes of length, then the JSON header."""
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def _read_safetensors(path: Path, map_location: str | torch.device) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device=str(map_location)) as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            meta = file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{path} is a damaged safetensors file ({error}): get the file again") from None
    return {"state_dict": state, "meta": meta}


def _refusal(path: Path, message: str) -> str:
    found = re.search(r"(?:GLOBAL|class|import)\s+([\w.]+\.[\w.]+)", message)
    if found:
        return (
            f"{path} asks to load {found[1]}, which is not weights and could run code, so it was not opened: get "
            "a checkpoint that holds weights only, from people you trust"
        )
    return (
        f"{path} is not a checkpoint of weights, or is damaged "
        f"({message.strip().splitlines()[0][:120] if message.strip() else 'it cannot be unpickled'}): get the "
        "file again"
    )


# -- weights in a checkpoint ---------------------------------------------------------------------------------------


def select_weights(checkpoint: Mapping[str, Any], weights: str | None = None) -> tuple[dict[str, Tensor], str]:
    """Finds the named weights in a checkpoint of any of the known formats.

    Args:
        checkpoint: what :func:`read_checkpoint` returned.
        weights: ``"ema"`` for the averaged weights, ``"raw"`` for those that were trained, None for the ones that the
            file's trainer evaluates: the file's main entry, averaged only if MMEngine's EMAHook wrote it or if it is
            the only one.

    Returns:
        The weights by name, without a ``module.`` prefix, and a phrase that says which entry they are.

    Raises:
        UserError: the file does not have the weights asked for, or none at all.
    """
    if weights not in (None, "ema", "raw"):
        raise UserError(f'weights={weights!r} is not possible: choose "ema", "raw" or None')
    entries = _weight_entries(checkpoint)
    if not entries:
        raise UserError(
            "the checkpoint holds no named weights: none of its entries is one of "
            f"{', '.join((*_RAW_KEYS, *_AVERAGED_KEYS))} or a tensor"
        )
    kinds = [kind for kind, _ in entries.values()]
    if weights is not None and weights not in kinds:
        has, asked = ("raw", "averaged (EMA)") if weights == "ema" else ("averaged (EMA)", "raw")
        raise UserError(f"the checkpoint has no {asked} weights, only {has} ones under {', '.join(map(repr, entries))}")
    key = next(key for key, (kind, _) in entries.items() if weights in (None, kind))
    kind, state = entries[key]
    where = f"the {'averaged (EMA)' if kind == 'ema' else 'raw'} weights" + (f" under {key!r}" if key else "")
    others = [repr(other) for other in entries if other != key]
    if others:
        where += f' (the file also has {", ".join(others)}: choose with weights="ema" or weights="raw")'
    return _without_module_prefix(state), where


def _weight_entries(checkpoint: Mapping[str, Any]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Each entry that holds weights, main entry first, with its kind."""
    swapped = _is_state_dict(checkpoint.get(_MMENGINE_EMA_KEY))
    entries = {key: "ema" if swapped and key == "state_dict" else "raw" for key in _RAW_KEYS}
    entries |= dict.fromkeys(_AVERAGED_KEYS, "ema") | {_MMENGINE_EMA_KEY: "raw"}
    found = {key: (kind, checkpoint[key]) for key, kind in entries.items() if _is_state_dict(checkpoint.get(key))}
    if not found and _is_state_dict(checkpoint):
        found = {"": ("raw", checkpoint)}
    return found


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(tensor, Tensor) for tensor in value.values())


def _without_module_prefix(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {re.sub(r"^(module\.)+", "", name): value for name, value in state.items() if isinstance(value, Tensor)}


def load_pretrained(
    backbone: nn.Module, checkpoint: str | Path, prefix: str | None = None, weights: str | None = None
) -> None:
    """Loads a checkpoint's weights into a backbone and logs what was not found and what was not used.

    Args:
        backbone: a :class:`~mmcare.models.base.PyramidBackbone`.
        checkpoint: path or http(s) address of the authors' file, of one of ours, or of a whole detector's or
            segmentor's, whose ``backbone.`` part is taken.
        prefix: where in the file the backbone is; None finds it.
        weights: ``"ema"`` or ``"raw"`` where a file holds both, see :func:`select_weights`.

    Raises:
        UserError: the file cannot be read, or does not fit the backbone.
    """
    state, which = _named(checkpoint, select_weights, read_checkpoint(checkpoint), weights)
    prefix = prefix if prefix is not None else "backbone." if any(n.startswith("backbone.") for n in state) else ""
    prefix = f"{prefix.rstrip('.')}." if prefix else ""
    # What belongs to others (neck, heads) is not news when a detector's backbone is asked for
    state = {
        backbone.translate_name(name[len(prefix) :]): value for name, value in state.items() if name.startswith(prefix)
    }
    model = f"{type(backbone).__name__} {backbone.arch_name}"
    own = backbone.state_dict()
    check_fit(own, state, f"{checkpoint}", model, require_all=False)
    backbone.load_state_dict({name: value for name, value in state.items() if name in own}, strict=False)
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unused = [name for name in state if name not in own]
    print_log(f"{model}: took {which} of {checkpoint}", logger="current")
    if missing:
        print_log(
            f"{model}: not in {checkpoint}, left at their start: {list_names(missing)}", "current", logging.WARNING
        )
    if unused:
        print_log(f"{model}: in {checkpoint} but not used: {list_names(unused)}", logger="current")


def _named(checkpoint: str | Path, function: Any, *args: Any) -> Any:
    """Puts the file's name before an error about what is in it."""
    try:
        return function(*args)
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}") from None


def check_fit(
    model: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str, target: str, require_all: bool
) -> None:
    """Holds a checkpoint's weights against a model's.

    Args:
        model: the model's own state dict.
        state: the weights to load, by the model's names.
        source: what to call the checkpoint in an error.
        target: what to call the model in an error.
        require_all: whether every weight of the model must be there.

    Raises:
        UserError: nothing matches, a shape differs or, with ``require_all``, something is missing.
    """
    common = [name for name in model if name in state]
    if not common:
        examples = list_names(list(state), 3) if state else "nothing"
        raise UserError(
            f"{source} does not fit {target}: not one of its weights ({examples}) has a name of the "
            "model's; is it another network's?"
        )
    differing = [name for name in common if model[name].shape != state[name].shape]
    if differing:
        name = differing[0]
        raise UserError(
            f"{source} does not fit {target}: {len(differing)} of its weights have other shapes, such as "
            f"{name}, {tuple(state[name].shape)} in the file but {tuple(model[name].shape)} in the model; "
            "is it another arch's, or for another number of classes?"
        )
    missing = [name for name in model if name not in state and not name.endswith("num_batches_tracked")]
    if require_all and missing:
        raise UserError(
            f"{source} does not fit {target}: it lacks {len(missing)} of the model's weights: "
            f"{list_names(missing, 3)}; is it another model's?"
        )


def list_names(names: list[str], most: int = 8) -> str:
    """Names for a message: the first few, and how many more."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


# -- MMEngine's loading --------------------------------------------------------------------------------------------


def guard_checkpoint_loading() -> None:
    """Makes every checkpoint that MMEngine loads in this process go through :func:`read_checkpoint`.

    For command lines, before they build a Runner: ``load_from``, ``--resume``, ``init_cfg`` of any module. Loads by
    other code are forced to ``weights_only`` by torch's own switch, here and in the processes started from here.
    """
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    for scheme in ("", "http://", "https://"):
        CheckpointLoader.register_scheme(scheme, _load_for_mmengine, force=True)


def _load_for_mmengine(filename: str, map_location: Any = None) -> dict[str, Any]:
    checkpoint = read_checkpoint(filename, map_location or "cpu")
    meta = checkpoint.get("meta")
    if isinstance(meta, dict):
        # MMEngine's Runner.resume executes this text as a Python config
        meta.pop("config", None)
    state, which = _named(filename, select_weights, checkpoint)
    print_log(f"took {which} of {filename}", logger="current")
    rest = {key: value for key, value in checkpoint.items() if key not in (*_RAW_KEYS, *_AVERAGED_KEYS)}
    return {**(rest if "state_dict" in checkpoint else {}), "state_dict": state}
