"""Subjects: the models that can be measured, by their names on the command line."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmcv.cnn.bricks.scale import LayerScale
from torch import nn

from ..errors import UserError
from ..models import PyramidBackbone
from ..runs import explain_config_faults, is_config, load_config, plain_config, task_of
from .counting import count
from .peers import PEERS

SHAPES = {"detection": (800, 1333), "segmentation": (512, 512), "classification": (224, 224), "backbone": (512, 512)}
"""The usual height and width of an image."""


@dataclass
class Subject:
    """A model to measure, built once; each form is made from a copy.

    Attributes:
        name: the name that the user gave.
        model: the model in eval mode, with random weights.
        shape: its usual image height and width.
    """

    name: str
    model: nn.Module
    shape: tuple[int, int]

    @property
    def is_ours(self) -> bool:
        """Whether it is an mmcare backbone, or has one."""
        return isinstance(getattr(self.model, "backbone", self.model), PyramidBackbone)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts to measure: of a detector or segmentor also the backbone alone, to show the cost of the rest."""
        return ("whole", "backbone") if hasattr(self.model, "backbone") else ("backbone",)

    def config_of(self, part: str) -> dict[str, Any] | None:
        """Return the config of a part as plain JSON; None if the subject is not described by one."""
        if is_config(self.name):
            model = plain_config(load_config(self.name, parts=("model",)).model)
            return model["backbone"] if part == "backbone" else model
        return plain_config(_settings(self.name)) if part == "backbone" and ":" in self.name else None

    def cost(self, part: str, height: int, width: int) -> tuple[int, int]:
        """Return the parameters, and the MACs for one image after the preprocessor's padding."""
        rows = {name: (parameters, macs) for name, parameters, macs in count(self.model, height, width)}
        if part == "backbone":
            return rows["backbone"]
        rows.pop("whole model", None)
        # An auxiliary head has parameters, but runs only for the loss.
        macs = sum(macs for name, (_, macs) in rows.items() if name != "auxiliary_head")
        return sum(parameters for parameters, _ in rows.values()), macs


def resolve(name: str) -> Subject:
    """Build a subject by name, with the same random weights each time.

    Args:
        name: see :func:`build`; or ``CONFIG@PEER``, the config with that peer as its backbone.

    Raises:
        UserError: the name is unknown, or the model cannot be built or measured.
    """
    torch.manual_seed(0)
    config, _, peer = name.rpartition("@")
    model, shape = _build_with_peer(name, config, peer) if is_config(config) else build(name)
    if hasattr(model, "roi_head"):
        raise UserError(f"{name} has two stages, so its cost depends on the image: give a one-stage detector")
    _randomize_norms(model)
    return Subject(name, model, shape)


def build(name: str, cfg_options: Mapping[str, Any] | None = None) -> tuple[nn.Module, tuple[int, int]]:
    """Build a model by name.

    Args:
        name: a config file, or one of :func:`mmcare.runs.list_configs`; a backbone as ``TYPE:ARCH``,
            ``TYPE:ARCH,KEY=VALUE`` or ``TYPE:KEY=VALUE``; or one of :data:`~mmcare.benchmark.peers.PEERS`.
        cfg_options: settings of the config to change, as for ``--cfg-options``.

    Returns:
        The model in eval mode, and its usual image height and width.

    Raises:
        UserError: the config or backbone does not exist or cannot be built, or ``cfg_options`` are given for a
            backbone.
    """
    if is_config(name):
        return _build_config(name, cfg_options)
    if cfg_options:
        raise UserError(f"--cfg-options needs a config, and {name} is not one: give a config, or omit the option")
    settings = PEERS[name] if name in PEERS else _settings(name)
    return _build_backbone(name, settings), SHAPES["backbone"]


def _build_config(path: str, cfg_options: Mapping[str, Any] | None = None) -> tuple[nn.Module, tuple[int, int]]:
    from mmengine.registry import MODELS, init_default_scope

    cfg = load_config(path, parts=("model",), cfg_options=cfg_options)
    init_default_scope(cfg.default_scope)
    with explain_config_faults(cfg, splits=()):
        model = MODELS.build(cfg.model)
    model.eval()  # a separate statement, as some frameworks' train() returns None
    return model, SHAPES[task_of(cfg)]


def _build_with_peer(name: str, config: str, peer: str) -> tuple[nn.Module, tuple[int, int]]:
    if peer not in PEERS:
        raise UserError(f"{name} names the unknown backbone {peer!r}: choose one of {', '.join(PEERS)}")
    own, _ = build(config)
    # A config may omit the first of the four maps.
    indices = [PEERS[peer]["out_indices"][i] for i in getattr(own.backbone, "out_indices", range(4))]
    settings = dict(PEERS[peer], out_indices=indices)
    with torch.no_grad():
        maps = _build_backbone(peer, settings).to("meta")(torch.empty(1, 3, 64, 64, device="meta"))
    widths = [feature.shape[1] for feature in maps]
    return _build_config(config, {"model.backbone": dict(settings, _delete_=True), "model.neck.in_channels": widths})


def _build_backbone(name: str, settings: Mapping[str, Any]) -> nn.Module:
    from mmengine.registry import MODELS

    kind = settings["type"]
    try:
        found = MODELS.get(kind)
    except ImportError as error:  # an mm package is not installed
        raise UserError(f"{name} cannot be built, as {kind} cannot be imported: {error}") from error
    if found is None:
        raise UserError(
            f"{name} is neither a config nor a backbone: give the file or name of a config, a backbone such as "
            f"mmcare.CARE:s1, or one of {', '.join(PEERS)}"
        )
    try:
        backbone = MODELS.build(dict(settings))
    except TypeError as error:
        raise UserError(f"{name} is not a backbone that an arch alone describes: give a config ({error})") from error
    backbone.eval()
    return backbone


def _settings(name: str) -> dict[str, Any]:
    """Return MMEngine's settings for ``TYPE:ARCH``, ``TYPE:ARCH,KEY=VALUE`` or ``TYPE:KEY=VALUE``."""
    kind, colon, rest = name.partition(":")
    settings = {"type": kind}
    for number, part in enumerate(rest.split(",") if colon else ()):
        key, equals, value = part.partition("=")
        if not equals and number == 0:
            settings["arch"] = part
            continue
        if not equals or not key.isidentifier():
            raise UserError(f"{name} has {part!r} instead of KEY=VALUE: give, for example, mmcare.CARE:s1,with_cp=True")
        try:
            settings[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[key] = value
    return settings


def _randomize_norms(model: nn.Module) -> None:
    """Give norms and layer scales values as after training, so that a form that handles them incorrectly is noticed."""
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.7, 1.4)
                module.weight.normal_(1, 0.1)
                module.bias.normal_(0, 0.1)
            elif isinstance(module, LayerScale):
                module.weight.normal_(0.3, 0.1)
