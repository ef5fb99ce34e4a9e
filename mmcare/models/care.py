"""CARE: decoupled dual-interactive linear attention.

Paper: "CARE Transformer: Mobile-Friendly Linear Visual Transformer via Decoupled Dual Interaction", CVPR 2025,
https://arxiv.org/abs/2411.16170. Three ideas, each one module below:

* asymmetric decoupling: a block attends with g of its 4g channels only, the others see local convolutions
  (:class:`TokenMixer`);
* a dynamic memory: g further channels go from block to block and keep what the blocks before have seen;
* dual interaction: first the mixed features with each other, then these with the memory (:class:`Interaction`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.scale import LayerScale
from torch import Tensor, nn

from ..errors import UserError
from ..registry import MODELS
from .base import PyramidBackbone, Stage, depthwise
from ..fast.folding import conv_with, fold_norm_after, fold_norm_before, fold_scale_after
from ..fast.convolutions import Expansion
from ..memory.layout import laid_out_as, split
from ..memory.recompute import Chain, chain


class LinearAttention(nn.Module):
    """Linear attention over all positions, cost O(N · channels · head_channels) for N positions.

    out_i = (φ(q_i) · Σ_j φ(k_j)ᵀ v_j / N) / (φ(q_i) · mean_j φ(k_j) + 1e-6) with φ(t) = elu(t) + 1 (the paper's
    equation for linear attention). The values are the input itself.

    Args:
        channels: width of the input and the output.
        head_channels: width of a head; divides ``channels``.
    """

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.query_key = nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → the same shape."""
        height, width = x.shape[2:]
        query_key = self.query_key(x)
        # The sums run over all positions of a detector's image: half precision holds neither their size nor their
        # small differences, and they are a small part of the work. So this part is at least float32.
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            query, key = (F.elu(t.to(wide)) + 1 for t in self._by_head(query_key).chunk(2, dim=1))
            value = self._by_head(x)[:, : self.heads].to(wide)
            # 1/N goes to the keys before the sum over N, which then is a mean and stays in the values' range
            key = key / (height * width)
            context = value @ key.transpose(-2, -1)  # (B, heads, head_channels, head_channels)
            mean_key = key.sum(-1, keepdim=True).transpose(-2, -1)  # (B, heads, 1, head_channels)
            out = (context @ query) / (mean_key @ query + 1e-6)
        return laid_out_as(out.to(x.dtype).reshape(x.shape), x)

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C / head_channels, head_channels, H·W)."""
        return x.flatten(2).unflatten(1, (-1, self.query_key.in_channels // self.heads))

    def fuse(self) -> FusedLinearAttention:
        return FusedLinearAttention(self)


class FusedLinearAttention(nn.Module):
    """The fast form of linear attention: the heads share their matrix products.

    A head alone is narrow for a matrix product, and its output would have to be transposed to channels-last. So all
    channels meet all channels, and a mask leaves each head its own: less than 1 % more operations in the whole network.
    """

    def __init__(self, attention: LinearAttention) -> None:
        super().__init__()
        self.query_key = attention.query_key
        channels = self.query_key.in_channels
        head = torch.arange(channels, device=self.query_key.weight.device) // (channels // attention.heads)
        # (channels, 2 · channels): for the values' context and, with the same mask, for the mean of the keys
        self.register_buffer("same_head", (head[:, None] == head).to(self.query_key.weight).repeat(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → the same shape, channels-last."""
        query_key = self.query_key(x)
        wide = torch.promote_types(x.dtype, torch.float32)  # for the reasons given in the plain form
        with torch.autocast(x.device.type, enabled=False):
            query, key = (
                F.elu(query_key.to(wide)).add_(1).flatten(2).transpose(1, 2).chunk(2, dim=2)
            )  # (B, N, channels)
            value = x.to(wide).flatten(2).transpose(1, 2)
            context = key.transpose(1, 2) @ value / key.shape[1]  # (B, channels, channels)
            mean_key = key.mean(1).unsqueeze(2).expand_as(context)
            weights = torch.cat((context, mean_key), dim=2) * self.same_head.to(wide)
            numerator, denominator = (query @ weights).chunk(2, dim=2)
            out = numerator / (denominator + 1e-6)
        # By way of two dimensions, for a stride of the batch that tells torch.cat even of one image that it lies so
        return out.to(x.dtype).flatten(0, 1).unflatten(0, (x.shape[0], *x.shape[2:])).permute(0, 3, 1, 2)


class StripConvolution(nn.Module):
    """Sum of a tall and a wide depth-wise convolution: the wide view of the early, large maps.

    Args:
        channels: width of the input and the output.
        length: length of the strips.
    """

    def __init__(self, channels: int, length: int = 11) -> None:
        super().__init__()
        self.vertical = depthwise(channels, (length, 1))
        self.horizontal = depthwise(channels, (1, length))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → the same shape."""
        return self.vertical(x) + self.horizontal(x)


class TokenMixer(nn.Module):
    """The asymmetrically decoupled token mixer: a third of the features sees far, the others see their neighbours.

    Args:
        channels: width g of each of the three parts.
        head_channels: width of an attention head, or None for a strip convolution in attention's place.
    """

    def __init__(self, channels: int, head_channels: int | None) -> None:
        super().__init__()
        self.far = StripConvolution(channels) if head_channels is None else LinearAttention(channels, head_channels)
        self.near_small = depthwise(channels, 3)
        self.near_large = depthwise(channels, 7)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3g, H, W) → the same shape."""
        far, small, large = split(x, 3)
        return torch.cat((self.far(far), self.near_small(small), self.near_large(large)), dim=1)

    def fuse(self) -> FusedTokenMixer:
        return FusedTokenMixer(self)


class FusedTokenMixer(nn.Module):
    """The fast form of the token mixer: one convolution for both near views, the small kernel bordered with zeros."""

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


class Interaction(nn.Module):
    """Mixes channels and neighbours: fc2(dw3×3(GELU(fc1(BN(x))))), with x added unless there is no fc2.

    Args:
        channels: width of the input.
        ratio: the hidden width is ``ratio`` times ``channels``.
        project: whether fc2 goes back to ``channels`` and the input is added; without it the output is the hidden map.
    """

    def __init__(self, channels: int, ratio: int, project: bool = True) -> None:
        super().__init__()
        hidden = ratio * channels
        self.norm = nn.BatchNorm2d(channels)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.act = nn.GELU()
        self.conv = depthwise(hidden, 3)
        self.fc2 = nn.Conv2d(hidden, channels, 1) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → the same shape, or (B, ratio · channels, H, W) without ``project``."""
        if self.fc2 is None:
            return chain(x, self.norm, self.fc1, self.act, self.conv)
        return x + chain(x, self.norm, self.fc1, self.act, self.conv, self.fc2)

    def fuse_branch(self, scale: Tensor | None = None) -> Expansion:
        """What is done beside the shortcut, with the norm in fc1's weights and a factor for fc2's outputs in fc2's."""
        fold_norm_before(self.norm, self.fc1)
        layers = [(self.fc1, True), (self.conv, False)]
        if self.fc2 is None:
            return Expansion(*layers, project=False)
        if scale is not None:
            fold_scale_after(self.fc2, scale)
        return Expansion(*layers, (self.fc2, False))


class Block(nn.Module):
    """x + drop_path(γ ⊙ second_interaction(concat(memory, first_interaction(token_mixer(features))))).

    The first g of the 4g channels are the memory, the others the features. What the block writes into the first g
    channels is the next block's memory.

    Args:
        memory_channels: g.
        ratios: expansion of the first and the second interaction.
        head_channels: width of an attention head, or None for the strip convolution.
        drop_path_rate: stochastic depth.
        layer_scale_init_value: where γ starts.
        last: whether this is the network's last block, which returns the second interaction's hidden map (4g times its
            ratio wide): no fc2, γ or shortcut.
    """

    def __init__(
        self,
        memory_channels: int,
        ratios: tuple[int, int],
        head_channels: int | None,
        drop_path_rate: float,
        layer_scale_init_value: float,
        last: bool,
    ) -> None:
        super().__init__()
        channels = 4 * memory_channels
        self.memory_channels = memory_channels
        self.token_mixer = TokenMixer(memory_channels, head_channels)
        self.first_interaction = Interaction(3 * memory_channels, ratios[0])
        self.second_interaction = Interaction(channels, ratios[1], project=not last)
        self.layer_scale = (
            None if last else LayerScale(channels, data_format="channels_first", scale=layer_scale_init_value)
        )
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4g, H, W) → the same shape; the last block's map is wider."""
        memory, features = x.split((self.memory_channels, x.shape[1] - self.memory_channels), dim=1)
        features = self.first_interaction(self.token_mixer(features))
        out = self.second_interaction(torch.cat((memory, features), dim=1))
        if self.layer_scale is None:
            return self.drop_path(out)
        return x + self.drop_path(self.layer_scale(out))

    def fuse(self) -> FusedBlock:
        return FusedBlock(self)


class FusedBlock(nn.Module):
    """The fast form of a block: x + γ ⊙ m + second_branch(m), m = concat(memory, first interaction's output).

    The norms are in the weights that follow them, γ also in those of the second interaction's fc2.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.memory_channels = block.memory_channels
        self.token_mixer = block.token_mixer
        scale = None if block.layer_scale is None else block.layer_scale.weight.detach()
        self.first_branch = block.first_interaction.fuse_branch()
        self.second_branch = block.second_interaction.fuse_branch(scale)
        self.register_buffer("scale", None if scale is None else scale[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4g, H, W) → the same shape; the last block's map is wider."""
        memory, features = x.split((self.memory_channels, x.shape[1] - self.memory_channels), dim=1)
        features = self.token_mixer(features)
        mixed = torch.cat((memory, self.first_branch(features, to=features)), dim=1)
        shortcut = None if self.scale is None else torch.addcmul(x, mixed, self.scale)
        return self.second_branch(mixed, to=shortcut)


@MODELS.register_module()
class CARE(PyramidBackbone):
    """The CARE backbone: maps at strides 4, 8, 16, 32.

    The last stage's map is what the published weights were trained to give: 1024 (s0, s1) or 1536 (s2) channels.

    Args:
        arch: ``"s0"``, ``"s1"``, ``"s2"``, or a dict with ``depths``, ``memory_channels`` (g; a stage is 4g wide),
            ``ratios`` (a pair of expansions for each stage) and, unless as published, ``head_channels`` (None for a
            stage with strip convolutions).
        layer_scale_init_value: where layer scale starts; 1e-6 as published, 1 learns faster from scratch in short
            schedules.

    The other arguments, attributes and errors are :class:`~mmcare.models.base.PyramidBackbone`'s.
    """

    arch_settings = {
        "s0": dict(
            depths=(2, 4, 8, 4),
            memory_channels=(8, 16, 32, 64),
            ratios=((2, 2), (2, 4), (4, 4), (4, 4)),
            head_channels=(None, None, 16, 32),
        ),
        "s1": dict(
            depths=(3, 6, 10, 6),
            memory_channels=(8, 16, 32, 64),
            ratios=((2, 4), (2, 4), (4, 4), (4, 4)),
            head_channels=(None, None, 16, 32),
        ),
        "s2": dict(
            depths=(3, 6, 10, 6),
            memory_channels=(8, 16, 48, 96),
            ratios=((4, 4), (4, 4), (4, 4), (4, 4)),
            head_channels=(None, None, 16, 32),
        ),
    }
    arch_defaults = dict(head_channels=(None, None, 16, 32))
    authors_names = (
        (r"^stem\.0\.", "stem.conv."),
        (r"^stem\.1\.", "stem.norm."),
        (r"\.downsample\.0\.", ".downsample.norm."),
        (r"\.downsample\.1\.", ".downsample.conv."),
        (r"\.gamma$", ".layer_scale.weight"),
        (r"\.dwconvatt_1\.", ".far.vertical."),
        (r"\.dwconvatt_2\.", ".far.horizontal."),
        (r"\.token_mixer\.qk\.", ".token_mixer.far.query_key."),
        (r"\.dwconv1\.", ".near_small."),
        (r"\.dwconv2\.", ".near_large."),
        (r"\.inter_layer\.inter1_", ".first_interaction."),
        (r"\.inter_layer\.inter2_", ".second_interaction."),
    )

    def __init__(
        self,
        arch: str | dict[str, Any] = "s1",
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        frozen_stages: int = -1,
        norm_eval: bool = True,
        with_cp: bool = False,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(arch, in_channels, out_indices, drop_path_rate, frozen_stages, norm_eval, with_cp, init_cfg)
        memory, ratios, heads = (self.arch[key] for key in ("memory_channels", "ratios", "head_channels"))
        for channels, head in zip(memory, heads, strict=True):
            if head is not None and channels % head:
                raise UserError(
                    f"head_channels={head} in the custom arch of CARE does not divide the stage's "
                    f"memory_channels={channels}"
                )
        rates = self._drop_path_rates()
        self.stem = Chain(
            OrderedDict(conv=nn.Conv2d(in_channels, 4 * memory[0], 4, stride=4), norm=nn.BatchNorm2d(4 * memory[0]))
        )
        self.stages = nn.ModuleList()
        for i in range(self.built_stages):
            last_stage = i == len(memory) - 1
            blocks = [
                Block(
                    memory[i], ratios[i], heads[i], rate, layer_scale_init_value, last_stage and j + 1 == len(rates[i])
                )
                for j, rate in enumerate(rates[i])
            ]
            downsample = (
                nn.Identity()
                if i == 0
                else Chain(
                    OrderedDict(
                        norm=nn.BatchNorm2d(4 * memory[i - 1]),
                        conv=nn.Conv2d(4 * memory[i - 1], 4 * memory[i], 2, stride=2),
                    )
                )
            )
            self.stages.append(Stage(downsample, blocks, with_cp))
        widths = [4 * channels for channels in memory]
        widths[-1] *= ratios[-1][1]
        self.out_channels = tuple(widths[i] for i in self.out_indices)
        self.train()

    def fuse(self) -> CARE:
        """Folds the norms of the stem and of the ways down into the convolutions beside them."""
        self.stem.norm = fold_norm_after(self.stem.conv, self.stem.norm)
        for stage in self.stages[1:]:
            stage.downsample.norm = fold_norm_before(stage.downsample.norm, stage.downsample.conv)
        return self
