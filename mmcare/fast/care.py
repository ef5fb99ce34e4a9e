"""CARE's fast form: replacements for the modules of :mod:`mmcare.models.care`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.care import Block, Interaction, LinearAttention, StripConvolution, TokenMixer, without_autocast
from .convolutions import Expansion, FusedConv
from .folding import conv_with, fold_bias_before, fold_norm_before, fold_scale_after


class FusedLinearAttention(nn.Module):
    """The fast form of linear attention: all heads in one matrix product.

    A single head is too narrow for an efficient matrix product, and its output would have to be transposed to
    channels-last. So the products run over all channels, and a mask zeroes those across heads. This adds less than 1 %
    to the operations of the whole network.
    """

    def __init__(self, attention: LinearAttention) -> None:
        super().__init__()
        self.query_key = attention.query_key
        channels = self.query_key.in_channels
        head = torch.arange(channels, device=self.query_key.weight.device) // (channels // attention.heads)
        # (channels, 2 · channels): the same mask twice, for the context of the values and for the mean of the keys
        self.register_buffer("same_head", (head[:, None] == head).to(self.query_key.weight).repeat(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → the same shape, channels-last."""
        query_key = self.query_key(x)
        wide = torch.promote_types(x.dtype, torch.float32)  # for the reason given in LinearAttention
        with without_autocast(x):
            query, key = (
                F.elu(query_key.to(wide)).add_(1).flatten(2).transpose(1, 2).chunk(2, dim=2)
            )  # (B, N, channels)
            value = x.to(wide).flatten(2).transpose(1, 2)
            context = key.transpose(1, 2) @ value / key.shape[1]  # (B, channels, channels)
            mean_key = key.mean(1).unsqueeze(2).expand_as(context)
            weights = torch.cat((context, mean_key), dim=2) * self.same_head.to(wide)
            numerator, denominator = (query @ weights).chunk(2, dim=2)
            out = numerator / (denominator + 1e-6)
        # Via two dimensions, so that even a single image's strides show torch.cat that the layout is channels-last.
        return out.to(x.dtype).flatten(0, 1).unflatten(0, (x.shape[0], *x.shape[2:])).permute(0, 3, 1, 2)


class FusedStripConvolution(nn.Module):
    """The fast form of the strip convolution: one bias, and on GPUs another layout.

    cuDNN's channels-last kernels take 20 times as long for a strip as torch's own kernel for NCHW.
    """

    def __init__(self, strips: StripConvolution) -> None:
        super().__init__()
        vertical, horizontal = strips.vertical, strips.horizontal
        bias = vertical.bias + horizontal.bias
        self.vertical, self.horizontal = (
            FusedConv(conv_with(strip.weight, bias, groups=len(strip.weight), padding=strip.padding))
            for strip, bias in ((vertical, bias), (horizontal, None))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → the same shape, channels-last."""
        if x.device.type != "cuda":
            return self.horizontal(x, to=self.vertical(x))
        planes = x.contiguous()
        vertical, horizontal = (_convolve_planes(planes, strip) for strip in (self.vertical, self.horizontal))
        return vertical.add_(horizontal).contiguous(memory_format=torch.channels_last)


def _convolve_planes(planes: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return the depth-wise convolution of a map in NCHW, in NCHW."""
    # One input channel fits both layouts, and torch would take the weights for channels-last without these strides.
    weight = conv.weight.flatten().view(conv.weight.shape)
    return F.conv2d(planes, weight, conv.bias, padding=conv.padding, groups=conv.groups)


class FusedTokenMixer(nn.Module):
    """The fast form of the token mixer: one depth-wise convolution, with the 3×3 kernels zero-padded to 7×7."""

    def __init__(self, mixer: TokenMixer) -> None:
        super().__init__()
        small, large = mixer.near_small, mixer.near_large
        border = large.padding[0] - small.padding[0]
        weight = torch.cat((F.pad(small.weight, 4 * (border,)), large.weight))
        bias = torch.cat((small.bias, large.bias))
        self.far = mixer.far
        self.near = conv_with(weight, bias, groups=len(weight), padding=large.padding)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3g, H, W) → the same shape."""
        near = self.near.in_channels
        far, near = x.split((near // 2, near), dim=1)
        return torch.cat((self.far(far), self.near(near)), dim=1)


def fused_branch(interaction: Interaction, scale: Tensor | None = None) -> Expansion:
    """Return the residual branch of an interaction: the norm is folded into fc1, the depth-wise bias into fc2.

    Args:
        interaction: the interaction; its convolutions are changed in place.
        scale: a factor for each output channel of fc2, which is folded into its weights.
    """
    fold_norm_before(interaction.norm, interaction.fc1)
    layers = [(interaction.fc1, True), (interaction.conv, False)]
    if not interaction.project:
        return Expansion(*layers, project=False)
    fold_bias_before(interaction.conv, interaction.fc2)
    if scale is not None:
        fold_scale_after(interaction.fc2, scale)
    return Expansion(*layers, (interaction.fc2, False))


class FusedBlock(nn.Module):
    """The fast form of a block: x + γ ⊙ m + second_branch(m), m = concat(memory, first interaction's output).

    The norms are folded into the convolutions after them, and γ into the second interaction's fc2 as well.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.memory_channels = block.memory_channels
        self.token_mixer = block.token_mixer
        scale = None if block.layer_scale is None else block.layer_scale.weight.detach()
        self.first_branch = fused_branch(block.first_interaction)
        self.second_branch = fused_branch(block.second_interaction, scale)
        self.register_buffer("scale", None if scale is None else scale[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4g, H, W) → the same shape; the last block's map is wider."""
        memory, features = x.split((self.memory_channels, x.shape[1] - self.memory_channels), dim=1)
        features = self.token_mixer(features)
        mixed = torch.cat((memory, self.first_branch(features, to=features)), dim=1)
        shortcut = None if self.scale is None else torch.addcmul(x, mixed, self.scale)
        return self.second_branch(mixed, to=shortcut)


FUSED = {
    LinearAttention: FusedLinearAttention,
    StripConvolution: FusedStripConvolution,
    TokenMixer: FusedTokenMixer,
    Block: FusedBlock,
}
