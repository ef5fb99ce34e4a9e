"""Every way in for weights: reading files that nobody vouches for, and fitting what they hold into a model.

A checkpoint is a pickle, and a pickle may run code. Here no file ever does: everything is read with torch's
``weights_only`` unpickler, which knows tensors, containers and numbers, plus the few harmless classes of
:func:`_harmless_classes` that trainers leave in their files. Whatever else a file asks for, it is refused.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import urlopen

import numpy as np
import torch
from mmengine.dist import barrier, is_main_process
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from ..errors import UserError

# Where the weights are in the files of mmcare, MMEngine, timm, DeiT and DeepSpeed trainers. MMEngine's EMAHook writes
# the averaged weights under "state_dict" and keeps the raw ones under "ema_state_dict".
_RAW_KEYS = ("state_dict", "model", "module")
_AVERAGED_KEYS = ("state_dict_ema", "model_ema", "ema")
_MMENGINE_EMA_KEY = "ema_state_dict"

# The classifier of an ImageNet file, which a backbone has no use for.
_CLASSIFIER = re.compile(r"(norm|head|dist_head)\.")
# The layers of detectors and segmentors whose width goes by the number of classes.
_CLASS_LAYER = re.compile(r"\.(retina_cls|fc_cls|fc_reg|conv_logits|conv_seg)\.(weight|bias)$")
_TIMEOUT = 60  # seconds for which a server may say nothing


# -- reading -------------------------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Reads a checkpoint file without running any code from it.

    Args:
        path: a file as ``torch.save`` or safetensors writes it, or an http(s) address, which is downloaded to torch's
            hub cache first.
        map_location: device for the tensors, or what else ``torch.load`` takes; safetensors go to the CPU where it is
            no device.

    Returns:
        What the file holds; for safetensors a dict with ``state_dict`` and ``meta``, whose values are decoded where
        they are JSON.

    Raises:
        UserError: there is no such file, it is no checkpoint, it is damaged, or it holds objects that are not weights.
    """
    path = _local_file(path)
    if _is_safetensors(_first_bytes(path)):
        return _read_safetensors(path, map_location)
    try:
        with torch.serialization.safe_globals(_harmless_classes()):
            checkpoint = torch.load(path, map_location=map_location or "cpu", weights_only=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # damage may come to light anywhere in torch and the pickled classes
        raise UserError(_refusal(path, str(error).strip() or type(error).__name__)) from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__} instead of named weights: give a checkpoint file")
    return checkpoint


def _harmless_classes() -> list[Any]:
    """Classes that hold numbers or names and do nothing when they are made: what trainers leave beside the weights."""
    stand_ins = [(_Dtype, "numpy.dtype"), (_Array, "numpy.ndarray")]
    for module in ("numpy.core", "numpy._core"):  # NumPy 1's and NumPy 2's name
        stand_ins += [(_scalar, f"{module}.multiarray.scalar"), (_array, f"{module}.multiarray._reconstruct")]
    for module in ("builtins", "__builtin__"):
        stand_ins += [(_history_statistic, f"{module}.getattr"), (_no_bytes, f"{module}.bytes")]
    return [HistoryBuffer, argparse.Namespace, *stand_ins]


# NumPy trusts a pickled dtype with sizes, flags and fields, by which bytes of the file become pointers. So a file makes
# these in place of NumPy's own, and takes no more than kind, size and byte order from a dtype.


class _Dtype:
    def __init__(self, kind: str, *_: Any) -> None:
        self.dtype = np.dtype(str(kind))
        if self.dtype.kind not in "biufcSU":
            raise pickle.UnpicklingError(f"Unsupported NumPy dtype {self.dtype}")

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, content = state
        super().__setstate__((1, shape, dtype.dtype, fortran, content))

    def __reduce__(self) -> Any:
        return np.asarray(self).__reduce__()  # a file written with it is to name NumPy's class, not this one


def _array(*_: Any) -> _Array:
    return _Array(0)


def _no_bytes() -> bytes:
    """By its call an array without elements names its content."""
    return b""


def _scalar(dtype: _Dtype, content: bytes) -> Any:
    return np.ndarray((), dtype.dtype, content)[()]


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
    """The file at an address, in torch's hub cache; what is there under its name is complete."""
    # Many addresses end in the same name, and what they end in need not be fit for a file's name.
    name = re.sub(r"[^\w.-]", "_", Path(urlparse(url).path).name)[-100:]
    target = Path(torch.hub.get_dir()) / "checkpoints" / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    if is_main_process():
        _fetch(url, target)
    barrier()
    _fetch(url, target)  # for processes on machines with another cache
    return target


def _fetch(url: str, target: Path) -> None:
    if target.exists():
        return
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    print_log(f"downloading {url} to {target}", logger="current")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with urlopen(url, timeout=_TIMEOUT) as response, partial.open("wb") as file:
            shutil.copyfileobj(response, file)
        wanted, got = response.headers.get("Content-Length"), partial.stat().st_size
        if wanted and int(wanted) != got:
            raise OSError(f"the connection ended after {got:,} of {int(wanted):,} bytes")
        _first_bytes(partial, url)
        os.replace(partial, target)
    except UserError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        raise UserError(
            f"{url} could not be downloaded ({error}): download it yourself and give the file's path"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def _first_bytes(path: Path, source: str | None = None) -> bytes:
    """The beginning of a file that may be a checkpoint; ``source`` is what to call it in an error."""
    source = source or str(path)
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror}): check its permissions") from None
    if not head:
        raise UserError(f"{source} is empty: get the file again")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise UserError(
            f"{source} is a web page, not a checkpoint: download the file itself, not the page that links to it"
        )
    if text.startswith(b"version https://git-lfs"):
        raise UserError(f"{source} is a Git LFS pointer, not the checkpoint itself: fetch it with `git lfs pull`")
    if not _is_safetensors(head) and _is_text(head):
        raise UserError(f"{source} is a text file, not a checkpoint: give a file as torch.save writes it")
    return head


def _is_text(head: bytes) -> bool:
    return all(byte in b"\t\r\n\f\x1b" or byte >= 32 for byte in head) and b"\x7f" not in head


def _is_safetensors(head: bytes) -> bool:
    """Eight bytes of length, then the JSON header."""
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def _read_safetensors(path: Path, map_location: Any) -> dict[str, Any]:
    from safetensors import safe_open

    device = str(map_location) if isinstance(map_location, str | torch.device) else "cpu"
    try:
        with safe_open(path, framework="pt", device=device) as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            meta = file.metadata() or {}
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise UserError(f"{path} is a damaged safetensors file ({_one_line(error)}): get the file again") from None
    return {"state_dict": state, "meta": {key: _from_json(value) for key, value in meta.items()}}


def _from_json(text: str) -> Any:
    """What the text stands for; the text itself where it is no JSON, as in other people's files."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _refusal(path: Path, message: str) -> str:
    """Why a file was not read, in words that do not advise to trust it, as torch's own do."""
    found = re.search(r"GLOBAL\s+([\w.]+)", message) or re.search(r"got <class '([\w.]+)'>", message)
    if found:
        return (
            f"{path} asks to load {found[1]}, which is not weights and could run code, so it was not opened: get "
            "a checkpoint that holds weights only, from people you trust"
        )
    if "TorchScript" in message:
        return f"{path} is a TorchScript program, not a checkpoint: give the weights that it was made from"
    if ".tar format" in message:
        return f"{path} is a tar archive, not a checkpoint: unpack it and give the checkpoint in it"
    return (
        f"{path} is damaged or cut short, or is no checkpoint ({path.stat().st_size:,} bytes; torch says: "
        f"{_one_line(message.rpartition('WeightsUnpickler error: ')[2])}): get the file again"
    )


def _one_line(message: Any) -> str:
    """The first sentence of a message, without what might command a terminal."""
    line = next(iter(str(message).strip().splitlines()), "").partition(". ")[0]
    return re.sub(r"[^ -~]", "?", line)[:160]


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
    if key == _MMENGINE_EMA_KEY:  # whose averaging counts its steps among the weights
        state = {name: value for name, value in state.items() if name != "steps"}
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
    return isinstance(value, Mapping) and any(_is_weight(*item) for item in value.items())


def _is_weight(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _without_module_prefix(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {re.sub(r"^(module\.)+", "", item[0]): item[1] for item in state.items() if _is_weight(*item)}


def is_ema_copy(name: str) -> bool:
    """Whether a name is of a second copy that mmcv 1.x's EMAHook keeps: ema_neck_conv_weight beside neck.conv.weight.

    The hook swaps the two around saving, so that the averaged weights are under the plain names.
    """
    return re.fullmatch(r"ema_\w+", name) is not None


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
    print_log(f"{model}: took {which} of {checkpoint}", logger="current")
    if missing:
        print_log(
            f"{model}: not in {checkpoint}, left at their start: {list_names(missing)}", "current", logging.WARNING
        )
    log_unused(own, state, f"{model}: in {checkpoint}", backbone.unbuilt_parts)


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
        UserError: nothing matches, a shape differs, something is not made of plain floating-point numbers where the
            model's is or, with ``require_all``, something is missing.
    """
    misfit = f"{source} does not fit {target}"
    common = [name for name in model if name in state]
    if not common:
        examples = list_names(list(state), 3) if state else "nothing"
        raise UserError(
            f"{misfit}: not one of its weights ({examples}) has a name of the model's; "
            f"{_resemblance(state) or 'is it another network?'}"
        )
    differing = [name for name in common if model[name].shape != state[name].shape]
    if differing:
        numbers = (_num_classes(state), _num_classes(model))
        if all(map(_CLASS_LAYER.search, differing)) and numbers[0] != numbers[1] and None not in numbers:
            raise UserError(
                f"{misfit}: it is for {numbers[0]} classes, the model for {numbers[1]}; give the config that it was "
                f"trained with, or set num_classes={numbers[0]}"
            )
        name = differing[0]
        raise UserError(
            f"{misfit}: {len(differing)} of its weights have other shapes, such as {name}, {tuple(state[name].shape)} "
            f"in the file but {tuple(model[name].shape)} in the model; "
            f"{_resemblance(state, differing) or 'is it for another arch, or for another number of classes?'}"
        )
    odd = [name for name in common if model[name].is_floating_point() and not _is_plain(state[name])]
    if odd:
        kind = f"{state[odd[0]].layout}, {state[odd[0]].dtype}, on {state[odd[0]].device}".replace("torch.", "")
        raise UserError(f"{misfit}: {odd[0]} is not made of plain floating-point numbers ({kind})")
    missing = [name for name in model if name not in state and not name.endswith("num_batches_tracked")]
    if require_all and missing:
        raise UserError(
            f"{misfit}: it lacks {len(missing)} of the model's weights: {list_names(missing, 3)}; "
            f"{_resemblance(state, missing) or 'is it for another model?'}"
        )


def _is_plain(weight: Tensor) -> bool:
    return weight.is_floating_point() and weight.layout == torch.strided and not weight.is_meta


def _num_classes(weights: Mapping[str, Tensor]) -> int | None:
    """Classes that a detector's or a segmentor's last layers are for, None where they do not tell."""
    for name, weight in weights.items():
        width = len(weight) if weight.dim() else 0
        if name.endswith(".fc_cls.weight"):
            return width - 1  # the last is the background
        if name.endswith(".conv_seg.weight"):
            return width
        boxes = weights.get(name.replace("retina_cls", "retina_reg"))
        if name.endswith(".retina_cls.weight") and boxes is not None and boxes.dim() and len(boxes):
            return 4 * width // len(boxes)
    return None


def _resemblance(state: Mapping[str, Tensor], misfits: Sequence[str] | None = None) -> str | None:
    """Says which published network's stages are in a file, if they are among what does not fit, None if no one's."""
    from ..models.base import PyramidBackbone  # which imports this module

    if misfits is not None and not any("stages." in name for name in misfits):
        return None
    for family in PyramidBackbone.__subclasses__():
        stages = _stages({family.translate_name(name.removeprefix("backbone.")): state[name] for name in state})
        for arch in family.arch_settings:
            with torch.device("meta"):
                if stages and stages == _stages(family(arch).state_dict()):
                    return f"its backbone is {family.__name__} {arch}"
    return None


def _stages(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Shapes of the weights in a backbone's stages; the stem goes by the images, and counters may be missing."""
    return {
        name: weight.shape
        for name, weight in weights.items()
        if name.startswith("stages.") and not name.endswith("num_batches_tracked")
    }


def log_unused(
    model: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str, unbuilt: tuple[str, ...] = ()
) -> None:
    """Logs what a checkpoint has and the model has not: a warning, except for what is known to be left over.

    Left over are the classifier of an ImageNet file, mmcv 1.x's second copies, and what ``unbuilt`` says.

    Args:
        model: the model's own state dict.
        state: the checkpoint's weights, by the model's names.
        source: what to call the checkpoint.
        unbuilt: how names start that belong to parts which the model was built without.
    """
    unused = [name for name in state if name not in model]
    spare = [name for name in unused if _CLASSIFIER.match(name) or is_ema_copy(name) or name.startswith(unbuilt)]
    for names, level in ((spare, logging.INFO), ([n for n in unused if n not in set(spare)], logging.WARNING)):
        if names:
            print_log(f"{source} but not used: {list_names(names)}", "current", level)


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
