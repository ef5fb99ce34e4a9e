"""The published backbones by name, for PyTorch code outside OpenMMLab's."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from mmengine.model import initialize

from ..errors import UserError, closest
from .base import PyramidBackbone
from .care import CARE
from .casvit import CASViT

_NAMES = {
    f"{family.__name__.lower()}_{arch}": (family, arch) for family in (CARE, CASViT) for arch in family.arch_settings
}


def list_backbones() -> list[str]:
    """Return the names that :func:`create_backbone` takes: ``care_s0`` to ``casvit_t``."""
    return list(_NAMES)


def create_backbone(
    name: str,
    pretrained: str | Path | None = None,
    *,
    features_only: bool = True,
    norm_eval: bool = False,
    **arguments: Any,
) -> PyramidBackbone:
    """Build a backbone with its weights initialized or loaded, as ``timm.create_model(…, features_only=True)`` does.

    Args:
        name: one of :func:`list_backbones`.
        pretrained: path or http(s) address of a checkpoint: an authors' ImageNet file, an mmcare checkpoint, or a
            detector or segmentor, of which the backbone is taken. None for the authors' initialization.
        features_only: as in timm; a backbone has no classifier, so it can only be True.
        norm_eval: keep batch norms in eval mode while training. Here the default is False, as in plain PyTorch; in
            configs it is True.
        arguments: any other argument of :class:`~mmcare.models.CARE` or :class:`~mmcare.models.CASViT`:
            ``in_channels``, ``out_indices``, ``drop_path_rate``, ``frozen_stages``, ``with_cp``, and CARE's
            ``layer_scale_init_value``.

    Returns:
        The backbone, in training mode. It takes images (B, in_channels, H, W) and returns a tuple of maps, one for each
        of ``out_indices``; ``backbone.out_channels`` has their widths.

    Raises:
        UserError: there is no such backbone or argument, an argument is invalid, or the checkpoint does not fit.
    """
    if name not in _NAMES:
        otherwise = f"choose one of {', '.join(_NAMES)}"
        raise UserError(f"mmcare has no backbone {name!r}: {closest(name, _NAMES, otherwise)}")
    if pretrained is True:
        raise UserError(
            f"pretrained=True names no weights for {name}, and mmcare downloads none by itself: give the path or "
            "address of a checkpoint, such as the authors'"
        )
    if not features_only:
        raise UserError(
            f"features_only=False asks for a classifier, and {name} is a backbone: put your own on its maps"
        )
    family, arch = _NAMES[name]
    possible = [key for key in inspect.signature(family).parameters if key not in ("arch", "init_cfg")]
    for key in arguments:
        if key not in possible:
            otherwise = f"it takes {', '.join(('pretrained', *possible))}"
            raise UserError(f"create_backbone({name!r}) takes no {key}: {closest(key, possible, otherwise)}")
    weights = dict(type="Pretrained", checkpoint=str(pretrained)) if pretrained else None
    backbone = family(arch=arch, norm_eval=norm_eval, init_cfg=weights, **arguments)
    initialize(backbone, backbone.init_cfg)  # what init_weights does, without its thousand lines of log
    return backbone
