"""Loading a checkpoint into a model: with a function, with a config's ``init_cfg``, and with MMEngine's own loading."""

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
    """Load weights from a checkpoint into a backbone, detector, segmentor or any other model.

    This is a safe alternative to ``mmengine.runner.load_checkpoint``: it reads more formats, runs no code from the
    file, and refuses a checkpoint that does not fit instead of warning. Unused weights are logged.

    Args:
        model: the model; its weights are replaced in place.
        path: path or http(s) address of an MMEngine checkpoint, an authors' file or a published model; see
            :func:`read_checkpoint`.
        map_location: device of the file's tensors before they are copied into the model, as in ``torch.load``.
        strict: whether every weight of the model must be in the file. If False, missing weights keep their values and
            are logged; the ImageNet checkpoints of CAS-ViT, for example, lack the norms of the outputs.
        prefix: prefix of the model's names in the file, such as ``"backbone"``; found automatically if None.
        weights: ``"ema"`` or ``"raw"`` if the file has both; see :func:`select_weights`.

    Returns:
        The content of the file, as MMEngine's function returns it: ``state_dict`` with the selected weights by the
        file's names; ``meta``, empty if the file has none, with MMEngine's ``dataset_meta`` (the classes) and ``cfg``
        (the text of the config); and any other training state.

    Raises:
        UserError: the file cannot be read, or does not fit the model.
    """
    model = unwrapped(model)
    checkpoint, which = _open(path, map_location, weights)
    state = checkpoint["state_dict"]
    if prefix is None and isinstance(model, PyramidBackbone) and any(name.startswith("backbone.") for name in state):
        prefix = "backbone"
    if prefix:  # other parts of a detector, such as the neck, need not be logged as unused
        prefix = f"{prefix.rstrip('.')}."
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    target = type(model).__name__ + (f" {model.arch_name}" if isinstance(model, PyramidBackbone) else "")
    fitting = fit_weights(model, state, str(path), target, strict)
    print_log(f"{target}: took {which} of {path}", "current")
    missing = missing_names(model.state_dict(), fitting)
    if missing:
        print_log(f"not in {path}, left at their initial values: {list_names(missing)}", "current", logging.WARNING)
    model.load_state_dict(fitting, strict=False)
    return checkpoint


@WEIGHT_INITIALIZERS.register_module()
class PretrainedBackbone:
    """A replacement for MMEngine's ``Pretrained`` that reads the same files as :func:`load_checkpoint`.

    It refuses a checkpoint that does not fit. Weights that are missing in the file keep their values and are logged.
    The backbones use it for every ``init_cfg`` of type ``Pretrained``.

    Args:
        checkpoint: path or http(s) address of the file.
        prefix: prefix of the module's names in the file; found automatically if None.
        map_location: device of the file's tensors before they are copied, as in ``torch.load``.
        weights: ``"ema"`` or ``"raw"`` if the file has both; see :func:`select_weights`.
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
        with suppress(AssertionError):  # raised if MMEngine is not recording initializations
            update_init_info(module, f"PretrainedBackbone: load from {self.checkpoint}")


def make_loading_safe() -> None:
    """Make MMEngine read every checkpoint in this process with :func:`read_checkpoint`.

    With torch 2.6 and later MMEngine cannot read its own training checkpoints, and otherwise it reads them unsafely.
    After this call MMDetection's ``init_detector`` and ``DetInferencer``, MMSegmentation's ``init_model`` and
    ``MMSegInferencer``, a Runner's ``load_from`` and ``resume``, and any module's ``init_cfg`` read every file that
    mmcare reads, and run no code from it. All other calls of ``torch.load`` use ``weights_only``, whatever their
    arguments, in this process and in processes started from it.

    The config stored in a checkpoint is a program too, and MMEngine's inferencers run it if they are given no config.
    It is removed here: give them the config that training has written to the work folder.
    """
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    for scheme in ("", "http://", "https://"):
        CheckpointLoader.register_scheme(scheme, load_from_mmcare, force=True)


def load_from_mmcare(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint for MMEngine, whose log derives "by mmcare backend" from the name of this function.

    Returns:
        The same as :func:`load_checkpoint`, without the text of the config and with the path under ``filename``.
    """
    checkpoint, which = _open(filename, map_location, None)
    for key in ("config", "cfg"):  # MMEngine's Runner.resume runs the former, its inferencers the latter
        checkpoint["meta"].pop(key, None)
    with suppress(KeyError, TypeError, AttributeError):  # in other trainers' files a message hub may be anything
        checkpoint["message_hub"]["runtime_info"].pop("cfg", None)
    print_log(f"took {which} of {filename}", "current")
    return {**checkpoint, "filename": filename}


def _open(path: str | Path, map_location: Any, weights: str | None) -> tuple[dict[str, Any], str]:
    """Return a checkpoint of any trainer in MMEngine's format, and a phrase that names the weights it has."""
    checkpoint = read_checkpoint(path, map_location or "cpu")
    try:
        state, which = select_weights(checkpoint, weights)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    others = checkpoint if "state_dict" in checkpoint else {}  # the file may be a bare state dict
    others = {key: value for key, value in others.items() if key not in (*RAW_KEYS, *AVERAGED_KEYS)}
    meta = others.get("meta")
    return {**others, "meta": meta if isinstance(meta, dict) else {}, "state_dict": state}, which
