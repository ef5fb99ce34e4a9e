"""The base class of the two backbones: argument checks, freezing, recomputation and weight loading."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmengine.model import BaseModule, PretrainedInit
from torch import Tensor, nn

from ..errors import UserError, closest
from ..memory import BatchNorm, laid_out_as, recompute_block, trains_in_channels_last

NUM_STAGES = 4
MIN_SIZE = 32


def depthwise(channels: int, kernel_size: int | tuple[int, int], bias: bool = True) -> nn.Conv2d:
    """Return a depth-wise convolution that preserves height and width."""
    height, width = kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
    return nn.Conv2d(channels, channels, (height, width), padding=(height // 2, width // 2), groups=channels, bias=bias)


class Stage(nn.Module):
    """One stage of a backbone: downsampling, then blocks.

    Args:
        downsample: brings the previous stage's map to this stage's stride and width; identity in the first stage,
            whose stride the stem already has.
        blocks: each (B, C, H, W) → (B, C, H, W); only the last block of a network may change C.
        with_cp: recompute each block in the backward pass instead of storing its activations.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], with_cp: bool) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            x = recompute_block(block, x) if self.with_cp else block(x)
        return x


class PyramidBackbone(BaseModule):
    """A backbone of four stages at strides 4, 8, 16 and 32 that returns a feature pyramid.

    A subclass lists its published variants in :attr:`arch_settings` and the optional keys of a custom ``arch`` in
    :attr:`arch_defaults`, builds :attr:`stem` and :attr:`stages`, and maps the authors' parameter names to its own in
    :attr:`authors_names`, and those of their classifier to an MMPretrain classifier's in :attr:`classifier_names`.

    Args:
        arch: name of a published variant, or a dict with the same keys for a custom network.
        in_channels: channels of the input images.
        out_indices: the stages whose maps are returned, 0 to 3, in this order. Stages after the last one needed are
            not built.
        drop_path_rate: drop path rate of the last block; it grows linearly from 0 at the first block.
        frozen_stages: freeze the stem (0), or the stem and the first 1 to 4 stages; -1 freezes nothing. Frozen
            parameters get no gradient, and frozen norms stay in eval mode.
        norm_eval: keep all batch norms in eval mode during training (their running statistics do not change), as the
            authors do for detectors and segmentors. Training from scratch needs False.
        with_cp: recompute each block in the backward pass: less memory, more time, the same gradients.
        init_cfg: None for the authors' initialization, or an MMEngine init config.
            ``dict(type="Pretrained", checkpoint=FILE)`` reads an authors' file, an mmcare checkpoint or the backbone of
            a detector or segmentor; :class:`mmcare.checkpoints.PretrainedBackbone` describes its optional keys
            ``prefix`` and ``weights``.

    Attributes:
        out_channels: width of each returned map.

    Raises:
        UserError: an argument is invalid, or a checkpoint does not fit.
    """

    arch_settings: ClassVar[dict[str, dict[str, Any]]]
    arch_defaults: ClassVar[dict[str, Any]] = {}
    authors_names: ClassVar[tuple[tuple[str, str | Callable[[re.Match], str]], ...]]
    classifier_names: ClassVar[tuple[tuple[str, str], ...]]
    default_init: ClassVar[list[dict[str, Any]]] = [
        dict(type="TruncNormal", layer=["Conv2d", "Linear"], std=0.02, bias=0.0),
        dict(type="Constant", layer="BatchNorm2d", val=1.0, bias=0.0),
    ]

    stem: nn.Module
    stages: nn.ModuleList
    out_channels: tuple[int, ...]

    def __init__(
        self,
        arch: str | dict[str, Any],
        in_channels: int,
        out_indices: Sequence[int],
        drop_path_rate: float,
        frozen_stages: int,
        norm_eval: bool,
        with_cp: bool,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None,
    ) -> None:
        super().__init__(init_cfg=self._initializers(init_cfg))
        self.arch, self.arch_name = self._resolve_arch(arch)
        self.in_channels = whole_number("in_channels", in_channels, low=1)
        self.out_indices = _check_out_indices(out_indices)
        if not 0 <= drop_path_rate < 1:
            raise UserError(
                f"drop_path_rate={drop_path_rate!r} is not valid: give a number of at least 0 and less than 1"
            )
        self.drop_path_rate = float(drop_path_rate)
        self.frozen_stages = whole_number("frozen_stages", frozen_stages, low=-1, high=NUM_STAGES)
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.register_load_state_dict_pre_hook(_translate_names)

    # -- arguments -------------------------------------------------------------------------------------------------

    @classmethod
    def _resolve_arch(cls, arch: str | dict[str, Any]) -> tuple[dict[str, Any], str]:
        names = ", ".join(cls.arch_settings)
        if isinstance(arch, str):
            if arch.lower() not in cls.arch_settings:
                raise UserError(f"{cls.__name__} has no arch {arch!r}: choose one of {names}, or give a dict")
            return cls.arch_settings[arch.lower()], arch.lower()
        keys = list(next(iter(cls.arch_settings.values())))
        if not isinstance(arch, dict):
            raise UserError(
                f"arch={arch!r} of {cls.__name__} is not valid: give one of {names}, or a dict with "
                f"the keys {', '.join(keys)}"
            )
        missing = [key for key in keys if key not in arch and key not in cls.arch_defaults]
        unknown = [key for key in arch if key not in keys]
        if missing or unknown:
            wrong = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(
                unknown
            )
            raise UserError(f"the custom arch of {cls.__name__} {' and '.join(wrong)}: its keys are {', '.join(keys)}")
        settings = {**cls.arch_defaults, **arch}
        for key, value in settings.items():
            if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != NUM_STAGES:
                raise UserError(
                    f"{key}={value!r} in the custom arch of {cls.__name__} is not valid: give one "
                    f"value for each of the {NUM_STAGES} stages"
                )
        for depth in settings["depths"]:
            whole_number(f"depths in the custom arch of {cls.__name__}", depth, low=1)
        cls.check_arch(settings)
        return settings, "custom"

    @classmethod
    def check_arch(cls, arch: dict[str, Any]) -> None:
        """Raise UserError if the widths of a custom ``arch`` are invalid."""
        raise NotImplementedError

    @property
    def built_stages(self) -> int:
        """Number of stages needed for ``out_indices``."""
        return max(self.out_indices) + 1

    @property
    def unbuilt_parts(self) -> tuple[str, ...]:
        """Name prefixes of the full network's parameters that are not built because ``out_indices`` needs none."""
        return tuple(f"stages.{i}." for i in range(self.built_stages, NUM_STAGES))

    def _drop_path_rates(self) -> list[list[float]]:
        """Return the drop path rate of each block of each stage of the full network, built or not."""
        depths = self.arch["depths"]
        total = sum(depths)
        rates = iter(self.drop_path_rate * i / max(total - 1, 1) for i in range(total))
        return [[next(rates) for _ in range(depth)] for depth in depths]

    # -- training --------------------------------------------------------------------------------------------------

    def _stage_modules(self, index: int) -> list[nn.Module]:
        """Return all modules that belong to one stage."""
        return [self.stages[index]]

    def _freeze(self) -> None:
        frozen = [self.stem] if self.frozen_stages >= 0 else []
        for index in range(min(self.frozen_stages, self.built_stages)):
            frozen += self._stage_modules(index)
        for module in frozen:
            module.eval()
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> PyramidBackbone:
        """Set training or eval mode; frozen stages and, with ``norm_eval``, all norms stay in eval mode."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, BatchNorm):
                    module.eval()
        return self

    # -- forward ---------------------------------------------------------------------------------------------------

    def _emit(self, index: int, x: Tensor) -> Tensor:
        """Return the map that the network outputs for stage ``index``."""
        return x

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the pyramid.

        Args:
            x: images, (B, in_channels, H, W) with H, W ≥ 32, normalized with ImageNet's mean and standard deviation.

        Returns:
            One map for each of ``out_indices``: (B, out_channels[i], about H / stride, about W / stride) at stride 4,
            8, 16 or 32.

        Raises:
            UserError: ``x`` does not have four dimensions or ``in_channels`` channels, or a side is shorter than 32.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels or x.shape[2] < MIN_SIZE or x.shape[3] < MIN_SIZE:
            raise UserError(
                f"{type(self).__name__} takes images of shape (B, {self.in_channels}, H, W) with H and W "
                f"of at least {MIN_SIZE}, but got {tuple(x.shape)}"
            )
        images, turned = x, self.training and trains_in_channels_last(x)
        x = self.stem(x.contiguous(memory_format=torch.channels_last) if turned else x)
        maps = {}
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.out_indices:
                out = self._emit(index, x)
                maps[index] = laid_out_as(out, images) if turned else out
        return tuple(maps[index] for index in self.out_indices)

    # -- weights ---------------------------------------------------------------------------------------------------

    @classmethod
    def _initializers(cls, init_cfg: dict[str, Any] | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
        """Return the initializers of ``init_cfg``, by default the authors', followed by any pretrained weights.

        Pretrained weights always use the initializer of :mod:`mmcare.checkpoints`, in whichever way the config names
        MMEngine's: it reads the authors' files and refuses a checkpoint that does not fit.
        """
        asked = [init_cfg] if isinstance(init_cfg, dict) else list(init_cfg or ())
        pretrained = [cfg for cfg in asked if _is_pretrained(cfg["type"])]
        others = [cfg for cfg in asked if cfg not in pretrained]
        return [*(others or cls.default_init), *(dict(cfg, type="mmcare.PretrainedBackbone") for cfg in pretrained)]

    @classmethod
    def translate_name(cls, name: str) -> str:
        """Return mmcare's name for the authors' parameter or buffer ``name``; return any other name unchanged."""
        for pattern, replacement in cls.authors_names:
            name = re.sub(pattern, replacement, name)
        return name

    def translate_names(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Rename the authors' parameters below ``prefix`` in place, before they are loaded."""
        for name in [name for name in state_dict if name.startswith(prefix)]:
            translated = prefix + self.translate_name(name[len(prefix) :])
            if translated != name:
                state_dict[translated] = state_dict.pop(name)

    @classmethod
    def name_for_classifier(cls, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of an authors' classifier, or of a backbone alone, by an MMPretrain classifier's names.

        Weights that already have such names keep them.
        """
        if any(name.startswith(("backbone.", "head.label_", "head.dist_")) for name in state_dict):
            return dict(state_dict)
        return {cls._classifier_name(name): value for name, value in state_dict.items()}

    @classmethod
    def _classifier_name(cls, name: str) -> str:
        for pattern, replacement in cls.classifier_names:
            if re.match(pattern, name):
                return re.sub(pattern, replacement, name)
        return f"backbone.{cls.translate_name(name)}"

    def _checkpoint_filter(self, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        """Rename an authors' classifier in place: MMPretrain's ImageClassifier calls this before it loads weights."""
        given = {name.removeprefix(prefix): state_dict.pop(name) for name in list(state_dict)}
        state_dict.update({prefix + name: value for name, value in self.name_for_classifier(given).items()})


def _translate_names(backbone: PyramidBackbone, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    backbone.translate_names(state_dict, prefix)


def _is_pretrained(initializer: str | type) -> bool:
    """Return whether an initializer is MMEngine's ``Pretrained``, given by name, by full name or as the class."""
    if isinstance(initializer, str):
        return initializer.rpartition(".")[2] in ("Pretrained", "PretrainedInit")
    return initializer is PretrainedInit


def whole_number(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return ``value`` if it is a whole number from ``low`` to ``high``; otherwise raise UserError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        span = f"at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"{name}={value!r} is not valid: give a whole number {span}")
    return value


def ablation_type(family: str, ablations: Mapping[str, type], ablation: str | None) -> type:
    """Return the type with this name in a family's table of ablations.

    Raises:
        UserError: no name is given, or the family has no such ablation.
    """
    choice = f"choose one of {', '.join(ablations)}"
    if ablation is None:
        raise UserError(f"{family}Ablation lacks the argument ablation: {choice}")
    if str(ablation) not in ablations:
        raise UserError(f"{family} has no ablation {ablation!r}: {closest(str(ablation), ablations, choice)}")
    return ablations[ablation]


def _check_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    possible = isinstance(out_indices, Sequence) and not isinstance(out_indices, str)
    if not possible or not out_indices or len(set(out_indices)) != len(out_indices):
        raise UserError(f"out_indices={out_indices!r} is not valid: give at least one of 0, 1, 2, 3, each once")
    return tuple(whole_number("an index in out_indices", index, 0, NUM_STAGES - 1) for index in out_indices)
