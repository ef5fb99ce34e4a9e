"""What a checkpoint must hold to be loaded into a model, and what to say where it does not."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

import torch
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from ..errors import UserError
from ..models import PyramidBackbone
from .selecting import is_ema_copy

# The classifier of an ImageNet file, which a backbone has no use for.
_CLASSIFIER = re.compile(r"(norm|head|dist_head)\.")
# The layers of detectors and segmentors whose width goes by the number of classes.
_CLASS_LAYER = re.compile(r"\.(retina_cls|fc_cls|fc_reg|conv_logits|conv_seg)\.(weight|bias)$")


def fit_weights(
    model: nn.Module, state: Mapping[str, Tensor], source: str, target: str, require_all: bool
) -> dict[str, Tensor]:
    """Return the weights that a model takes from a checkpoint, and log what it has no use for.

    That is a warning, except for what is known to be left over: the classifier of an ImageNet file, mmcv 1.x's second
    copies, and parts of a backbone that were not built.

    Args:
        model: the model; one that is wrapped for several processes or for test-time augmentation is what is in it.
        state: the checkpoint's weights, by the model's names or by those of the backbones' authors.
        source: what to call the checkpoint in a message.
        target: what to call the model in a message.
        require_all: whether every weight of the model must be there.

    Returns:
        Weights by the model's names.

    Raises:
        UserError: nothing matches, a shape differs, something is not made of plain floating-point numbers where the
            model's is or, with ``require_all``, something is missing.
    """
    model = unwrapped(model)
    unbuilt: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if isinstance(module, PyramidBackbone):
            prefix = f"{name}." if name else ""
            state = {_translated(module, name, prefix): value for name, value in state.items()}
            unbuilt += tuple(prefix + part for part in module.unbuilt_parts)
    own = model.state_dict()
    _check_fit(own, state, f"{source} does not fit {target}", require_all)
    _log_unused(own, state, source, unbuilt)
    return {name: value for name, value in state.items() if name in own}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers for several processes and for test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def missing_names(model: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of a model's weights that are not in a checkpoint; old ones lack batch norms' counters."""
    return [name for name in model if name not in state and not name.endswith("num_batches_tracked")]


def list_names(names: Sequence[str], most: int = 8) -> str:
    """Return names for a message: the first few, and how many more."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _translated(backbone: PyramidBackbone, name: str, prefix: str) -> str:
    return prefix + backbone.translate_name(name[len(prefix) :]) if name.startswith(prefix) else name


def _check_fit(model: Mapping[str, Tensor], state: Mapping[str, Tensor], misfit: str, require_all: bool) -> None:
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
    missing = missing_names(model, state)
    if require_all and missing:
        raise UserError(
            f"{misfit}: it lacks {len(missing)} of the model's weights: {list_names(missing, 3)}; "
            f"{_resemblance(state, missing) or 'is it for another model?'}"
        )


def _is_plain(weight: Tensor) -> bool:
    return weight.is_floating_point() and weight.layout == torch.strided and not weight.is_meta


def _num_classes(weights: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes that a detector's or segmentor's last layers are for, None where they do not tell.

    Args:
        weights: a checkpoint's weights, or a model's.
    """
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
    """Return which published network's stages are in a file, if they are among what does not fit; None if no one's."""
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
    """Return the shapes of the weights in a backbone's stages; the stem goes by the images, and counters may lack."""
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
