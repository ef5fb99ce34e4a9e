"""CARE with one of its ideas switched off, as in the ablations of its paper (tables 3 and 4).

We know what the authors left out, but not how they wired what remains. Each class below says what was chosen here. All
ablations return maps of the same shapes as CARE, so necks and heads stay as they are. An idea that takes an interaction
or its channels along makes another interaction wider or narrower: compared is the idea, not the size of the network.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..registry import MODELS
from .base import ablation_type, depthwise
from .care import CARE, Block, Interaction, long_range


class UnevenTokenMixer(nn.Module):
    """The decoupled token mixer with parts of any width.

    Args:
        far: width d₁ of the part for attention.
        near: width d₂ of the part for local convolutions, half of it for each kernel size.
        head_channels: width of an attention head, or None for a strip convolution instead of attention.
    """

    def __init__(self, far: int, near: int, head_channels: int | None) -> None:
        super().__init__()
        self.widths = (far, near // 2, near - near // 2)
        self.far = long_range(far, head_channels)
        self.near_small = depthwise(self.widths[1], 3)
        self.near_large = depthwise(self.widths[2], 7)

    def forward(self, x: Tensor) -> Tensor:
        """(B, far + near, H, W) → the same shape."""
        far, small, large = x.split(self.widths, dim=1)
        return torch.cat((self.far(far), self.near_small(small), self.near_large(large)), dim=1)


class SymmetricTokenMixer(UnevenTokenMixer):
    """The token mixer with d₁ = d₂ = 1.5g: attention for half of the features instead of a third.

    There are as many heads as in CARE, each 1.5 times as wide: a head of CARE's width would not divide d₁ in s2.

    Args:
        channels: g, a third of the features; even.
        head_channels: width of an attention head in CARE, even; or None for a strip convolution.

    Raises:
        UserError: ``channels`` or ``head_channels`` is odd.
    """

    def __init__(self, channels: int, head_channels: int | None) -> None:
        if channels % 2 or (head_channels or 0) % 2:
            raise UserError(
                f"the ablation 'symmetric' cannot halve the features of memory_channels={channels} with "
                f"head_channels={head_channels}: give an arch in which both are even"
            )
        half = 3 * channels // 2
        super().__init__(half, half, None if head_channels is None else 3 * head_channels // 2)


class StackedTokenMixer(nn.Sequential):
    """The token mixer without decoupling: all features go through both local convolutions, and then through attention.

    Args:
        channels: g, a third of the features.
        head_channels: width of an attention head, or None for a strip convolution instead of attention.
    """

    def __init__(self, channels: int, head_channels: int | None) -> None:
        super().__init__(
            OrderedDict(
                near_small=depthwise(3 * channels, 3),
                near_large=depthwise(3 * channels, 7),
                far=long_range(3 * channels, head_channels),
            )
        )


class FarTokenMixer(nn.Module):
    """The token mixer without local convolutions: their two thirds of the features stay as they are.

    Args:
        channels: g, a third of the features.
        head_channels: width of an attention head, or None for a strip convolution instead of attention.
    """

    def __init__(self, channels: int, head_channels: int | None) -> None:
        super().__init__()
        self.channels = channels
        self.far = long_range(channels, head_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3g, H, W) → the same shape."""
        far, rest = x.split((self.channels, 2 * self.channels), dim=1)
        return torch.cat((self.far(far), rest), dim=1)


class SymmetricBlock(Block):
    """The block with symmetric decoupling."""

    token_mixer_type = SymmetricTokenMixer


class StackedBlock(Block):
    """The block with a stacked token mixer."""

    token_mixer_type = StackedTokenMixer


class BlockWithoutLocalBias(Block):
    """The block without local convolutions in its token mixer; the interactions keep their 3×3 convolutions."""

    token_mixer_type = FarTokenMixer


class BlockWithoutSecondInteraction(Block):
    """x + drop_path(γ ⊙ concat(memory, first_interaction(token_mixer(features)))).

    The memory meets the features only where the stages are downsampled, and in the network's last block. That one is as
    in CARE: its second interaction gives the last map its width.

    The second interaction has most of a block's weights. In the other blocks the first interaction's hidden map is
    wider by 16/3 · r₂ · g, so that its 1×1 convolutions cost as much as those of both.
    """

    def __init__(self, memory_channels: int, ratios: tuple[int, int], *args: Any) -> None:
        super().__init__(memory_channels, ratios, *args)
        if self.second_interaction.project:
            hidden = 3 * ratios[0] * memory_channels + 16 * ratios[1] * memory_channels // 3
            self.first_interaction = Interaction(3 * memory_channels, hidden)
            self.second_interaction = nn.Identity()


class BlockWithoutMemory(Block):
    """x + drop_path(γ ⊙ second_interaction(first_interaction(token_mixer(x)))): all 4g channels are features.

    d₁ is g as in CARE, so attention costs the same, and d₂ is 3g. The first interaction's hidden map is 9/4 · r₁ · g
    wide instead of 3 · r₁ · g, so that its 1×1 convolutions cost the same on 4g channels as CARE's do on 3g.
    """

    def __init__(self, memory_channels: int, ratios: tuple[int, int], head_channels: int | None, *args: Any) -> None:
        super().__init__(memory_channels, ratios, head_channels, *args)
        self.token_mixer = UnevenTokenMixer(memory_channels, 3 * memory_channels, head_channels)
        self.first_interaction = Interaction(4 * memory_channels, 9 * ratios[0] * memory_channels // 4)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4g, H, W) → the same shape; the last block's map is wider."""
        out = self.second_interaction(self.first_interaction(self.token_mixer(x)))
        return out if self.layer_scale is None else x + self.drop_path(self.layer_scale(out))


ABLATIONS: dict[str, type[Block]] = {
    "symmetric": SymmetricBlock,
    "stacked": StackedBlock,
    "no_local_bias": BlockWithoutLocalBias,
    "no_second_interaction": BlockWithoutSecondInteraction,
    "no_memory": BlockWithoutMemory,
}


@MODELS.register_module()
class CAREAblation(CARE):
    """CARE with one of its ideas switched off.

    Args:
        ablation: ``"symmetric"`` (d₁ = d₂), ``"stacked"`` (instead of decoupled), ``"no_local_bias"``,
            ``"no_second_interaction"`` or ``"no_memory"``.
        arch, arguments: :class:`~mmcare.models.care.CARE`'s, with the same defaults.

    Raises:
        UserError: ``ablation`` is missing or unknown, or another argument is invalid.
    """

    def __init__(self, ablation: str | None = None, arch: str | dict[str, Any] = "s1", **arguments: Any) -> None:
        self.block_type = ablation_type("CARE", ABLATIONS, ablation)  # before the blocks are built
        super().__init__(arch, **arguments)
        self.ablation = ablation
