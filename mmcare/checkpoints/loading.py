"""From a checkpoint file into a model: by a call, by a config's ``init_cfg``, and by MMEngine's own loading."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.model import update_init_info
from mmengine.runner import CheckpointLoader
from torch import nn

from ..errors import UserError
from ..models import PyramidBackbone
from ..registry import WEIGHT_INITIALIZERS
from .fitting import fit_weights, list_names, missing_names, unwrapped
from .reading import read_checkpoint
from .selecting import AVERAGED_KEYS, RAW_KEYS, select_weights


def load_checkpoint(
    model: nn.Module,
    path: str | Path,
    map_location: Any = "cpu",
    strict: bool = True,
    prefix: str | None = None,
    weights: str | None = None,
) -> dict[str, Any]:
    """Load a checkpoint file's weights into a backbone, detector, segmentor or any other model.

    It stands in for ``mmengine.runner.load_checkpoint``: it reads more files, runs no code from them, and refuses a
    file that does not fit instead of warning of it. What is in the file and not used is logged.

    Args:
        model: the model, whose weights are replaced in place.
        path: path or http(s) address of a checkpoint of MMEngine's, of the authors' file or of a release; see
            :func:`read_checkpoint`.
        map_location: where the file's tensors are put before they are copied into the model, as in ``torch.load``.
        strict: whether every weight of the model must be in the file. With False those that are not stay as they
            are, and are logged. ImageNet files of CAS-ViT lack the norms of the outputs, for one.
        prefix: how the names of the model's weights start in the file, such as ``"backbone"``; None finds it.
        weights: ``"ema"`` or ``"raw"`` where the file holds both, see :func:`select_weights`.

    Returns:
        What the file holds, as MMEngine's function returns it: ``state_dict`` with the weights that were taken, by
        the file's names; ``meta``, empty where the file has none, in which MMEngine keeps ``dataset_meta`` (the
        classes) and ``cfg`` (the config's text); and what else a training has left there.

    Raises:
        UserError: the file cannot be read, or does not fit the model.
    """
    model = unwrapped(model)
    checkpoint, which = _open(path, map_location, weights)
    state = checkpoint["state_dict"]
    if prefix is None and isinstance(model, PyramidBackbone) and any(name.startswith("backbone.") for name in state):
        prefix = "backbone"
    if prefix:  # what belongs to others, such as the neck, is not news when a detector's backbone is asked for
        prefix = f"{prefix.rstrip('.')}."
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    target = type(model).__name__ + (f" {model.arch_name}" if isinstance(model, PyramidBackbone) else "")
    fitting = fit_weights(model, state, str(path), target, strict)
    print_log(f"{target}: took {which} of {path}", "current")
    missing = missing_names(model.state_dict(), fitting)
    if missing:
        print_log(f"not in {path}, left at their start: {list_names(missing)}", "current", logging.WARNING)
    model.load_state_dict(fitting, strict=False)
    return checkpoint


@WEIGHT_INITIALIZERS.register_module()
class PretrainedBackbone:
    """MMEngine's ``Pretrained``, for all files that :func:`load_checkpoint` loads, and only those that fit.

    Weights of the model that are not in the file stay as they are, and are logged. The backbones use it wherever an
    ``init_cfg`` asks for ``Pretrained``.

    Args:
        checkpoint: path or http(s) address of the file.
        prefix: how the names of the module's weights start in the file; None finds it.
        map_location: where the file's tensors are put before they are copied, as in ``torch.load``.
        weights: ``"ema"`` or ``"raw"`` where the file holds both, see :func:`select_weights`.
    """

    def __init__(
        self, checkpoint: str | Path, prefix: str | None = None, map_location: Any = "cpu", weights: str | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self.prefix = prefix
        self.map_location = map_location
        self.weights = weights

    def __call__(self, module: nn.Module) -> None:
        """Load the file into a module.

        Raises:
            UserError: the file cannot be read, or does not fit the module.
        """
        load_checkpoint(module, self.checkpoint, self.map_location, False, self.prefix, self.weights)
        with suppress(AssertionError):  # by which MMEngine tells that it keeps no report at the moment
            update_init_info(module, f"PretrainedBackbone: load from {self.checkpoint}")


def make_loading_safe() -> None:
    """Make MMEngine read every checkpoint in this process with :func:`read_checkpoint`.

    MMEngine cannot read its own training checkpoints with torch 2.6 and later, or reads them without protection. After
    this call ``init_detector`` and ``DetInferencer`` of MMDetection, ``init_model`` and ``MMSegInferencer`` of
    MMSegmentation, ``load_from`` and ``resume`` of a Runner, and ``init_cfg`` of any module take every file that
    mmcare reads, and run no code from it. Other calls of ``torch.load`` get its ``weights_only``, here and in processes
    started from here, whatever they ask for.

    A config's text in a checkpoint is a program too, which MMEngine's inferencers run where they are given no config.
    They do not get it: give them the config that training has written to the work folder.
    """
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    for scheme in ("", "http://", "https://"):
        CheckpointLoader.register_scheme(scheme, load_from_mmcare, force=True)


def load_from_mmcare(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint for MMEngine, which calls it by this name in its log ("by mmcare backend").

    Returns:
        As :func:`load_checkpoint`, without the config's text, and with the file's name under ``filename``.
    """
    checkpoint, which = _open(filename, map_location, None)
    for key in ("config", "cfg"):  # MMEngine's Runner.resume runs the one, its inferencers the other
        checkpoint["meta"].pop(key, None)
    with suppress(KeyError, TypeError, AttributeError):  # other trainers may call anything a message hub
        checkpoint["message_hub"]["runtime_info"].pop("cfg", None)
    print_log(f"took {which} of {filename}", "current")
    return {**checkpoint, "filename": filename}


def _open(path: str | Path, map_location: Any, weights: str | None) -> tuple[dict[str, Any], str]:
    """Return a checkpoint as MMEngine knows it, whatever wrote it, and a phrase that says which weights it has."""
    checkpoint = read_checkpoint(path, map_location or "cpu")
    try:
        state, which = select_weights(checkpoint, weights)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    others = checkpoint if "state_dict" in checkpoint else {}  # or the file may be the weights themselves
    others = {key: value for key, value in others.items() if key not in (*RAW_KEYS, *AVERAGED_KEYS)}
    meta = others.get("meta")
    return {**others, "meta": meta if isinstance(meta, dict) else {}, "state_dict": state}, which
