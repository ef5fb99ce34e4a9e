"""CARE: decoupled dual-interactive linear attention.

Paper: "CARE Transformer: Mobile-Friendly Linear Visual Transformer via Decoupled Dual Interaction", CVPR 2025,
https://arxiv.org/abs/2411.16170. Three ideas, each one module below:

* asymmetric decoupling: only g of a block's 4g channels go through attention, 2g go through local convolutions
  (:class:`TokenMixer`);
* a dynamic memory: the other g channels carry features from block to block;
* dual interaction: the mixed features interact first with each other, then with the memory (:class:`Interaction`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.scale import LayerScale
from torch import Tensor, nn

from ..errors import UserError
from ..memory import Chain, laid_out_as, split
from ..registry import MODELS
from .base import PyramidBackbone, Stage, depthwise, whole_number


class LinearAttention(nn.Module):
    """Linear attention over all N positions, at a cost of O(N · channels · head_channels).

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
        # In at least float32: the sums run over all positions of an image, and half precision has neither the range
        # nor the resolution for them. They are a small part of the arithmetic.
        wide = torch.promote_types(x.dtype, torch.float32)
        with without_autocast(x):
            query, key = (F.elu(t.to(wide)) + 1 for t in self._by_head(query_key).chunk(2, dim=1))
            value = self._by_head(x)[:, : self.heads].to(wide)
            context = value @ key.transpose(-2, -1) / (height * width)  # (B, heads, head_channels, head_channels)
            mean_key = key.mean(-1, keepdim=True).transpose(-2, -1)  # (B, heads, 1, head_channels)
            out = (context @ query) / (mean_key @ query + 1e-6)
        return laid_out_as(out.to(x.dtype).reshape(x.shape), x)

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C / head_channels, head_channels, H·W)."""
        return x.flatten(2).unflatten(1, (-1, self.query_key.in_channels // self.heads))


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context that disables autocast on the device of x."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if _has_autocast(kind) else nullcontext()


@torch.compiler.assume_constant_result  # torch 2.11 would split the graph here
def _has_autocast(kind: str) -> bool:
    """Return whether a type of device has autocast; the meta device has none."""
    return torch.amp.is_autocast_available(kind)


class StripConvolution(nn.Module):
    """Sum of a vertical and a horizontal depth-wise convolution: replaces attention on the large maps of early stages.

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


def long_range(channels: int, head_channels: int | None) -> LinearAttention | StripConvolution:
    """Return linear attention, or for ``head_channels=None`` the strip convolution that replaces it."""
    return StripConvolution(channels) if head_channels is None else LinearAttention(channels, head_channels)


class TokenMixer(nn.Module):
    """The asymmetrically decoupled token mixer: attention for a third of the features, local convolutions for the rest.

    Args:
        channels: width g of each of the three parts.
        head_channels: width of an attention head, or None for a strip convolution instead of attention.
    """

    def __init__(self, channels: int, head_channels: int | None) -> None:
        super().__init__()
        self.far = long_range(channels, head_channels)
        self.near_small = depthwise(channels, 3)
        self.near_large = depthwise(channels, 7)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3g, H, W) → the same shape."""
        far, small, large = split(x, 3)
        return torch.cat((self.far(far), self.near_small(small), self.near_large(large)), dim=1)


class Interaction(Chain):
    """Mix channels and neighbouring positions: x + fc2(dw3×3(GELU(fc1(BN(x))))).

    Args:
        channels: width of the input.
        hidden: width of the hidden map.
        project: project back to ``channels`` with fc2 and add x; if False, return the hidden map.
    """

    def __init__(self, channels: int, hidden: int, project: bool = True) -> None:
        layers = OrderedDict(
            norm=nn.BatchNorm2d(channels),
            fc1=nn.Conv2d(channels, hidden, 1),
            act=nn.GELU(),
            conv=depthwise(hidden, 3),
        )
        if project:
            layers["fc2"] = nn.Conv2d(hidden, channels, 1)
        super().__init__(layers)
        self.project = project

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → the same shape, or (B, hidden, H, W) without ``project``."""
        out = super().forward(x)
        return x + out if self.project else out


class Block(nn.Module):
    """x + drop_path(γ ⊙ second_interaction(concat(memory, first_interaction(token_mixer(features))))).

    The first g of the 4g channels are the memory, the others the features. The first g output channels are the next
    block's memory.

    Args:
        memory_channels: g.
        ratios: expansion of the first and the second interaction.
        head_channels: width of an attention head, or None for the strip convolution.
        drop_path_rate: drop path rate; not used by the last block.
        layer_scale_init_value: initial value of γ.
        last: whether this is the network's last block. It returns the second interaction's hidden map, which is 4g
            times its ratio wide, and has no fc2, γ or shortcut.

    The authors apply drop path to the last block as well. Without a shortcut, that zeroes an image's whole stride-32
    map; a classifier tolerates this, a detector's pyramid does not. So here the last block always runs. In eval mode
    there is no difference.
    """

    token_mixer_type: type[nn.Module] = TokenMixer

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
        self.token_mixer = self.token_mixer_type(memory_channels, head_channels)
        self.first_interaction = Interaction(3 * memory_channels, ratios[0] * 3 * memory_channels)
        self.second_interaction = Interaction(channels, ratios[1] * channels, project=not last)
        self.layer_scale = (
            None if last else LayerScale(channels, data_format="channels_first", scale=layer_scale_init_value)
        )
        self.drop_path = DropPath(0.0 if last else drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4g, H, W) → the same shape; the last block's map is wider."""
        memory, features = x.split((self.memory_channels, x.shape[1] - self.memory_channels), dim=1)
        features = self.first_interaction(self.token_mixer(features))
        out = self.second_interaction(torch.cat((memory, features), dim=1))
        return out if self.layer_scale is None else x + self.drop_path(self.layer_scale(out))


@MODELS.register_module()
class CARE(PyramidBackbone):
    """The CARE backbone: maps at strides 4, 8, 16 and 32.

    The last stage's map is the hidden map of the last block, as in the published networks: 1024 (s0, s1) or 1536 (s2)
    channels.

    Args:
        arch: ``"s0"``, ``"s1"``, ``"s2"``, or a dict with ``depths``, ``memory_channels`` (g; a stage is 4g wide),
            ``ratios`` (a pair of expansions for each stage) and optionally ``head_channels`` (None for a stage with
            strip convolutions; the published values by default).
        layer_scale_init_value: initial value of layer scale; 1e-6 as published; 1 learns faster from scratch in short
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
    block_type: type[Block] = Block
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
    classifier_names = (
        (r"^head\.(norm|fc)\.", r"head.label_\1."),
        (r"^dist_head\.(norm|fc)\.", r"head.dist_\1."),
    )

    @classmethod
    def check_arch(cls, arch: dict[str, Any]) -> None:
        for channels in arch["memory_channels"]:
            whole_number("memory_channels in the custom arch of CARE", channels, low=1)
        for ratios in arch["ratios"]:
            if not isinstance(ratios, Sequence) or len(ratios) != 2:
                raise UserError(
                    f"ratios={arch['ratios']!r} in the custom arch of CARE is not valid: give a pair for each stage, "
                    "the expansions of its first and its second interaction, such as (2, 4)"
                )
            for ratio in ratios:
                whole_number("a ratio in the custom arch of CARE", ratio, low=1)
        for channels, head in zip(arch["memory_channels"], arch["head_channels"], strict=True):
            if head is None:
                continue
            whole_number("head_channels in the custom arch of CARE", head, low=1)
            if channels % head:
                raise UserError(
                    f"head_channels={head} in the custom arch of CARE does not divide the stage's "
                    f"memory_channels={channels}"
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
        rates = self._drop_path_rates()
        self.stem = Chain(
            OrderedDict(conv=nn.Conv2d(in_channels, 4 * memory[0], 4, stride=4), norm=nn.BatchNorm2d(4 * memory[0]))
        )
        self.stages = nn.ModuleList()
        for i in range(self.built_stages):
            last_stage = i == len(memory) - 1
            blocks = [
                self.block_type(
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
