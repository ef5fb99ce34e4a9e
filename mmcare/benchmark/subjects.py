"""What can be measured: models, by the names that the command lines give them."""

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
from ..runs import explain_config_faults, load_config, task_of
from .counting import count
from .peers import PEERS

SHAPES = {"detection": (800, 1333), "segmentation": (512, 512), "backbone": (512, 512)}
"""The usual height and width of an image."""


@dataclass
class Subject:
    """A model to be measured, built once; each of its forms is made from a copy.

    Attributes:
        name: as the user gave it.
        model: in eval mode, with random weights.
        shape: the usual height and width of an image for it.
    """

    name: str
    model: nn.Module
    shape: tuple[int, int]

    @property
    def is_ours(self) -> bool:
        """Whether it is one of our backbones, or has one."""
        return isinstance(getattr(self.model, "backbone", self.model), PyramidBackbone)

    @property
    def parts(self) -> tuple[str, ...]:
        """What of it is measured: of a detector the whole and its backbone alone, which shows what the head costs."""
        return ("whole", "backbone") if hasattr(self.model, "backbone") else ("backbone",)

    def cost(self, part: str, height: int, width: int) -> tuple[int, int]:
        """Return the parameters, and the MACs for one image of the size that the preprocessor pads this one to."""
        rows = {name: (parameters, macs) for name, parameters, macs in count(self.model, height, width)}
        if part == "backbone":
            return rows["backbone"]
        rows.pop("whole model", None)
        # An auxiliary head has parameters, but runs in the loss only.
        macs = sum(macs for name, (_, macs) in rows.items() if name != "auxiliary_head")
        return sum(parameters for parameters, _ in rows.values()), macs


def resolve(name: str) -> Subject:
    """Build the subject of a name, with the same random weights each time.

    Args:
        name: see :func:`build`; or ``CONFIG@PEER``, the config with that peer as its backbone.

    Raises:
        UserError: there is nothing of that name, or it cannot be built or measured.
    """
    torch.manual_seed(0)
    config, at, peer = name.partition(".py@")
    model, shape = _build_with_peer(name, f"{config}.py", peer) if at else build(name)
    if hasattr(model, "roi_head"):
        raise UserError(f"{name} has two stages, whose cost depends on what is in the image: give a one-stage detector")
    _unsettle(model)
    return Subject(name, model, shape)


def build(name: str, cfg_options: Mapping[str, Any] | None = None) -> tuple[nn.Module, tuple[int, int]]:
    """Build the model of a name.

    Args:
        name: a config file; a backbone as ``TYPE:ARCH``, ``TYPE:ARCH,KEY=VALUE`` or ``TYPE:KEY=VALUE``; or one of
            :data:`~mmcare.benchmark.peers.PEERS`.
        cfg_options: settings of the config to change, as ``--cfg-options`` has them.

    Returns:
        The model in eval mode, and the usual height and width of an image for it.

    Raises:
        UserError: there is no such config or backbone, it cannot be built, or it has no settings to change.
    """
    if name.endswith(".py"):
        return _build_config(name, cfg_options)
    if cfg_options:
        raise UserError(f"--cfg-options changes a config, which {name} is not: give one, or leave the option out")
    settings = PEERS[name] if name in PEERS else _settings(name)
    return _build_backbone(name, settings), SHAPES["backbone"]


def _build_config(path: str, cfg_options: Mapping[str, Any] | None = None) -> tuple[nn.Module, tuple[int, int]]:
    from mmengine.registry import MODELS, init_default_scope

    cfg = load_config(path, parts=("model",), cfg_options=cfg_options)
    init_default_scope(cfg.default_scope)
    with explain_config_faults(cfg, splits=()):
        model = MODELS.build(cfg.model)
    model.eval()  # not in one expression, as some frameworks' train() returns nothing
    return model, SHAPES[task_of(cfg)]


def _build_with_peer(name: str, config: str, peer: str) -> tuple[nn.Module, tuple[int, int]]:
    if peer not in PEERS:
        raise UserError(f"{name} asks for the backbone {peer!r}: those to put into a config are {', '.join(PEERS)}")
    own, _ = build(config)
    # A config may leave the first of the four maps out
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
    except ImportError as error:  # of an mm package that is not installed
        raise UserError(f"{name} cannot be built, for {kind} cannot be imported: {error}") from error
    if found is None:
        raise UserError(
            f"{name} is neither a config (a .py file) nor a backbone: give one such as mmcare.CARE:s1, or one of "
            f"{', '.join(PEERS)}"
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
            raise UserError(f"{name} has {part!r} where KEY=VALUE is wanted: give such as mmcare.CARE:s1,with_cp=True")
        try:
            settings[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[key] = value
    return settings


def _unsettle(model: nn.Module) -> None:
    """Give norms and layer scales values as of a training, so that a form that treats them wrongly shows."""
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.7, 1.4)
                module.weight.normal_(1, 0.1)
                module.bias.normal_(0, 0.1)
            elif isinstance(module, LayerScale):
                module.weight.normal_(0.3, 0.1)
