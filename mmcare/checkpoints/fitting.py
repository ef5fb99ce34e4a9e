"""Fitting a checkpoint's weights to a model, with an error message if they do not fit."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

import torch
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from ..errors import UserError
from ..models import ClassifierHead, PyramidBackbone
from .selecting import is_ema_copy

# The classifier in an ImageNet checkpoint, which a backbone does not use.
_CLASSIFIER = re.compile(r"(norm|head|dist_head)\.")
CLASS_LAYERS = ("retina_cls", "fc_cls", "fc_reg", "conv_logits", "conv_seg", "label_fc", "dist_fc")
"""The layers of detectors, segmentors and classifiers whose width depends on the number of classes."""
_CLASS_LAYER = re.compile(rf"\.({'|'.join(CLASS_LAYERS)})\.(weight|bias)$")


def fit_weights(
    model: nn.Module, state: Mapping[str, Tensor], source: str, target: str, require_all: bool
) -> dict[str, Tensor]:
    """Return the weights that a model takes from a checkpoint, and log the unused ones.

    Unused weights are logged as a warning, except for expected ones: the classifier of an ImageNet checkpoint, mmcv
    1.x's EMA copies, and parts of a backbone that were not built.

    Args:
        model: the model; wrappers for distributed training and test-time augmentation are removed.
        state: the checkpoint's weights, with the model's names or the backbone authors' names.
        source: name of the checkpoint in messages.
        target: name of the model in messages.
        require_all: whether every weight of the model must be in the checkpoint.

    Returns:
        Weights by the model's names.

    Raises:
        UserError: no name matches, a shape differs, a weight is not a plain floating-point tensor but the model's is,
            or, with ``require_all``, a weight is missing.
    """
    model = unwrapped(model)
    state = by_model_names(model, state)
    unbuilt = tuple(prefix + part for prefix, backbone in _backbones(model) for part in backbone.unbuilt_parts)
    own = model.state_dict()
    _check_fit(own, state, f"{source} does not fit {target}", require_all)
    _log_unused(own, state, source, unbuilt)
    return {name: value for name, value in state.items() if name in own}


def by_model_names(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a checkpoint's weights with a model's names for those that have the names of the backbone's authors."""
    backbone = getattr(model, "backbone", None)
    if isinstance(backbone, PyramidBackbone) and isinstance(getattr(model, "head", None), ClassifierHead):
        state = backbone.name_for_classifier(state)
    for prefix, backbone in _backbones(model):
        state = {_translated(backbone, name, prefix): value for name, value in state.items()}
    return dict(state)


def _backbones(model: nn.Module) -> list[tuple[str, PyramidBackbone]]:
    """Return the backbones in a model, each with the prefix of its names."""
    return [
        (f"{name}." if name else "", module)
        for name, module in model.named_modules()
        if isinstance(module, PyramidBackbone)
    ]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers for distributed training and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def missing_names(model: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of a model's weights that a checkpoint lacks; batch norms' counters may be missing."""
    return [name for name in model if name not in state and not name.endswith("num_batches_tracked")]


def is_plain(weight: Tensor) -> bool:
    """Return whether a weight is a dense floating-point tensor that holds numbers."""
    return weight.is_floating_point() and weight.layout == torch.strided and not weight.is_meta


def list_names(names: Sequence[str], most: int = 8) -> str:
    """Return names for a message: the first few, and the number of the others."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _translated(backbone: PyramidBackbone, name: str, prefix: str) -> str:
    return prefix + backbone.translate_name(name[len(prefix) :]) if name.startswith(prefix) else name


def _check_fit(model: Mapping[str, Tensor], state: Mapping[str, Tensor], misfit: str, require_all: bool) -> None:
    common = [name for name in model if name in state]
    if not common:
        examples = list_names(list(state), 3) if state else "nothing"
        raise UserError(
            f"{misfit}: none of its weights ({examples}) has a name of the model's; "
            f"{_resemblance(state) or 'is it another network?'}"
        )
    differing = [name for name in common if model[name].shape != state[name].shape]
    if differing:
        numbers = (_num_classes(state), _num_classes(model))
        if all(map(_CLASS_LAYER.search, differing)) and numbers[0] != numbers[1] and None not in numbers:
            raise UserError(
                f"{misfit}: it has {numbers[0]} classes, the model has {numbers[1]}; give the config that it was "
                f"trained with, or set num_classes={numbers[0]}"
            )
        name = differing[0]
        raise UserError(
            f"{misfit}: {len(differing)} of its weights differ in shape, such as {name}, {tuple(state[name].shape)} "
            f"in the file but {tuple(model[name].shape)} in the model; "
            f"{_resemblance(state, differing) or 'is it for another arch or head, or for another number of classes?'}"
        )
    odd = [name for name in common if model[name].is_floating_point() and not is_plain(state[name])]
    if odd:
        kind = f"{state[odd[0]].layout}, {state[odd[0]].dtype}, on {state[odd[0]].device}".replace("torch.", "")
        raise UserError(f"{misfit}: {odd[0]} is not a plain floating-point tensor ({kind})")
    missing = missing_names(model, state)
    if require_all and missing:
        raise UserError(
            f"{misfit}: it lacks {len(missing)} of the model's weights: {list_names(missing, 3)}; "
            f"{_resemblance(state, missing) or _guess(state, missing)}"
        )


def _num_classes(weights: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of a detector, segmentor or classifier, read from its last layers; None if unknown.

    Args:
        weights: weights of a checkpoint or a model.
    """
    for name, weight in weights.items():
        width = len(weight) if weight.dim() else 0
        if name.endswith(".fc_cls.weight"):
            return width - 1  # the last is the background
        if name.endswith((".conv_seg.weight", ".label_fc.weight")):
            return width
        boxes = weights.get(name.replace("retina_cls", "retina_reg"))
        if name.endswith(".retina_cls.weight") and boxes is not None and boxes.dim() and len(boxes):
            return 4 * width // len(boxes)
    return None


def _guess(state: Mapping[str, Tensor], missing: Sequence[str]) -> str:
    """Return what a checkpoint may be that lacks some of a model's weights."""
    has_backbone = any(name.startswith("backbone.") for name in state)
    if has_backbone and not any(name.startswith("backbone.") for name in missing):
        return "is it for another head, or of a backbone alone, which model.backbone.init_cfg takes?"
    return "is it for another model?"


def _resemblance(state: Mapping[str, Tensor], misfits: Sequence[str] | None = None) -> str | None:
    """Return which published backbone a checkpoint has; None if unknown, or if the misfits are not in its stages."""
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
    """Return the shapes of the weights in the stages; not of the stem, which depends on the images, or of counters."""
    return {
        name: weight.shape
        for name, weight in weights.items()
        if name.startswith("stages.") and not name.endswith("num_batches_tracked")
    }


def _log_unused(
    model: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str, unbuilt: tuple[str, ...]
) -> None:
    unused = [name for name in state if name not in model]
    spare = [name for name in unused if _CLASSIFIER.match(name) or is_ema_copy(name) or name.startswith(unbuilt)]
    for names, level in ((spare, logging.INFO), ([n for n in unused if n not in set(spare)], logging.WARNING)):
        if names:
            print_log(f"in {source} but not used: {list_names(names)}", "current", level)
