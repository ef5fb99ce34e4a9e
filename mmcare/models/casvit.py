"""CAS-ViT: convolutional additive self-attention.

Paper: "CAS-ViT: Convolutional Additive Self-attention Vision Transformers for Efficient Mobile Applications",
https://arxiv.org/abs/2408.03703 (the authors' code calls the network RCViT). Attention's product of queries and keys is
replaced by the sum of their context mappings, each made of convolutions: :class:`AdditiveTokenMixer`.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from ..registry import MODELS
from .base import NUM_STAGES, PyramidBackbone, Stage, depthwise
from ..fast.folding import conv_with, fold_norm_after, fold_norm_before
from ..fast.convolutions import Expansion, FusedConv, InParts, add_to
from ..memory.recompute import Chain, chain, chain_and_split, recompute


class SpatialGate(nn.Module):
    """t ⊙ sigmoid(conv1×1 C→1 (ReLU(BN(dw3×3(t))))).

    Args:
        channels: width C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = depthwise(channels, 3)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()
        self.fc = nn.Conv2d(channels, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        return x * chain(x, self.conv, self.norm, self.act, self.fc).sigmoid()


class ChannelGate(nn.Module):
    """t ⊙ sigmoid(conv1×1 C→C (global average of t)).

    Args:
        channels: width C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        return x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid()


class ContextMapping(nn.Sequential):
    """The paper's Φ: spatial interaction, then channel interaction.

    Args:
        channels: width of the input and the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(OrderedDict(spatial=SpatialGate(channels), channel=ChannelGate(channels)))


class AdditiveTokenMixer(nn.Module):
    """Convolutional additive self-attention: dw3×3( Γ(Φ(q) + Φ(k)) ⊙ v ), Γ a depth-wise convolution.

    Args:
        channels: width of the input and the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.query_context = ContextMapping(channels)
        self.key_context = ContextMapping(channels)
        self.similarity = depthwise(channels, 3)
        self.project = depthwise(channels, 3)

    def forward(self, x: Tensor, norm: nn.Module) -> Tensor:
        """(B, channels, H, W) and the norm that comes before → the same shape."""
        return self.project(recompute(self, self._mix, *chain_and_split(x, 3, norm, self.qkv)))

    def _mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        similarity = self.similarity(self.query_context(query) + self.key_context(key))
        return similarity * value

    def fuse(self) -> FusedAdditiveTokenMixer:
        return FusedAdditiveTokenMixer(self)


class FusedAdditiveTokenMixer(InParts):
    """The fast form of the additive token mixer: the context mappings of queries and keys run as one.

    The values come from a convolution of their own, so that nothing has to be cut out of a channels-last map. On a CPU
    the mappings of maps that are large together run one after the other.
    """

    def __init__(self, mixer: AdditiveTokenMixer) -> None:
        super().__init__()
        contexts = (mixer.query_context, mixer.key_context)
        for context in contexts:
            fold_norm_after(context.spatial.conv, context.spatial.norm)
        channels = mixer.qkv.in_channels
        weights = mixer.qkv.weight.split((2 * channels, channels))
        biases = (None, None) if mixer.qkv.bias is None else mixer.qkv.bias.split((2 * channels, channels))
        query_key, self.value = (conv_with(*pair) for pair in zip(weights, biases, strict=True))
        self.query_key = FusedConv(query_key)
        convs = [context.spatial.conv for context in contexts]
        weight, bias = (torch.cat([getattr(conv, name) for conv in convs]) for name in ("weight", "bias"))
        self.spatial_conv = FusedConv(conv_with(weight, bias, groups=2 * channels, padding=convs[0].padding))
        self.spatial_act = nn.ReLU(inplace=True)
        # Two rows with zeros for the other branch's channels, which is faster than two groups
        rows = torch.block_diag(*[context.spatial.fc.weight.flatten(1) for context in contexts])
        self.spatial_fc = conv_with(rows[:, :, None, None], None)
        channel = torch.stack([context.channel.fc.weight.detach().flatten(1).t() for context in contexts])
        self.register_buffer("channel_weights", channel)  # (2, channels in, channels out)
        self.similarity = mixer.similarity
        self.project = mixer.project

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → the same shape."""
        large = self.count_parts(x, self.query_key.out_channels) > 1
        context = self._one_by_one(x) if large else self._together(x)
        return self.project(self.similarity(context).mul_(self.value(x)))

    def _together(self, x: Tensor) -> Tensor:
        """Φ(q) + Φ(k)."""
        query_key = self.query_key(x)
        spatial_gate = self.spatial_fc(self.spatial_act(self.spatial_conv(query_key))).sigmoid()  # (B, 2, H, W)
        query_key = query_key.unflatten(1, (2, -1)) * spatial_gate.unsqueeze(2)  # (B, 2, channels, H, W)
        means = query_key.mean((3, 4)).transpose(0, 1)  # (2, B, channels)
        query_gate, key_gate = (means @ self.channel_weights).sigmoid()[..., None, None]
        query, key = query_key.unbind(1)
        return (query * query_gate).addcmul_(key, key_gate)

    def _one_by_one(self, x: Tensor) -> Tensor:
        """The same: Φ(q), to which Φ(k) is added."""
        context = None
        rows = self.spatial_fc.weight.unflatten(1, (2, -1))
        for index in range(2):
            branch = self.query_key(x, (index, 2))
            gate = F.conv2d(self.spatial_act(self.spatial_conv(branch, (index, 2))), rows[index : index + 1, index])
            branch = branch * gate.sigmoid()
            gate = (branch.mean((2, 3)) @ self.channel_weights[index]).sigmoid()[..., None, None]
            context = branch * gate if context is None else context.addcmul_(branch, gate)
        return context


class Integration(nn.Module):
    """Local integration: conv1×1(GELU(dw3×3(BN(conv1×1(x))))).

    Args:
        channels: width of the input, the hidden maps and the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.conv = depthwise(channels, 3)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → the same shape."""
        return chain(x, self.fc1, self.norm, self.conv, self.act, self.fc2)

    def fuse(self) -> Expansion:
        """Folds the norm into fc1's weights, before the depth-wise convolution pads its map with zeros."""
        fold_norm_after(self.fc1, self.norm)
        return Expansion((self.fc1, False), (self.conv, True), (self.fc2, False))


class MLP(nn.Module):
    """Two 1×1 convolutions with a GELU between.

    Args:
        channels: width of the input and the output.
        ratio: the hidden width is ``ratio`` times ``channels``.
    """

    def __init__(self, channels: int, ratio: int = 4) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, ratio * channels, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(ratio * channels, channels, 1)

    def forward(self, x: Tensor, norm: nn.Module) -> Tensor:
        """(B, channels, H, W) and the norm that comes before → the same shape."""
        return chain(x, norm, self.fc1, self.act, self.fc2)


class Block(nn.Module):
    """Three residual parts: integration, additive token mixer, MLP.

    Args:
        channels: width of the input and the output.
        drop_path_rate: stochastic depth of the last two parts; the first always runs.
    """

    def __init__(self, channels: int, drop_path_rate: float) -> None:
        super().__init__()
        self.integration = Integration(channels)
        self.norm1 = nn.BatchNorm2d(channels)
        self.token_mixer = AdditiveTokenMixer(channels)
        self.norm2 = nn.BatchNorm2d(channels)
        self.mlp = MLP(channels)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → the same shape."""
        x = x + self.integration(x)
        x = x + self.drop_path(self.token_mixer(x, self.norm1))
        return x + self.drop_path(self.mlp(x, self.norm2))

    def fuse(self) -> FusedBlock:
        return FusedBlock(self)


class FusedBlock(nn.Module):
    """The fast form of a block: the norms are in the weights of the 1×1 convolutions that read them."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        fold_norm_before(block.norm1, block.token_mixer.qkv)
        fold_norm_before(block.norm2, block.mlp.fc1)
        self.integration = block.integration
        self.token_mixer = block.token_mixer
        self.mlp = Expansion((block.mlp.fc1, True), (block.mlp.fc2, False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → the same shape."""
        for part in (self.integration, self.token_mixer, self.mlp):
            x = add_to(part(x), x)
        return x


def _stage_name(match: re.Match) -> str:
    """The authors number patch embeddings and stages in one list: 0, 2, 4, 6 are stages, 1, 3, 5 the ways down."""
    position = int(match[1])
    return f"stages.{(position + 1) // 2}.{'downsample' if position % 2 else 'blocks'}."


@MODELS.register_module()
class CASViT(PyramidBackbone):
    """The CAS-ViT backbone: maps at strides 4, 8, 16, 32, each through a batch norm of its own.

    ImageNet checkpoints do not hold the four norms of the pyramid; they start as identities and are learned with the
    detector or segmentor.

    Args:
        arch: ``"xs"``, ``"s"``, ``"m"``, ``"t"``, or a dict with ``depths`` and ``channels``, a value for each stage;
            the first of ``channels`` is even.

    The other arguments, attributes and errors are :class:`~mmcare.models.base.PyramidBackbone`'s.
    """

    arch_settings = {
        "xs": dict(depths=(2, 2, 4, 2), channels=(48, 56, 112, 220)),
        "s": dict(depths=(3, 3, 6, 3), channels=(48, 64, 128, 256)),
        "m": dict(depths=(3, 3, 6, 3), channels=(64, 96, 192, 384)),
        "t": dict(depths=(3, 3, 6, 3), channels=(96, 128, 256, 512)),
    }
    authors_names = (
        (r"^patch_embed\.0\.", "stem.conv1."),
        (r"^patch_embed\.1\.", "stem.norm1."),
        (r"^patch_embed\.3\.", "stem.conv2."),
        (r"^patch_embed\.4\.", "stem.norm2."),
        (r"^network\.(\d)\.", _stage_name),
        (r"\.downsample\.proj\.", ".downsample.conv."),
        (r"\.local_perception\.network\.0\.", ".integration.fc1."),
        (r"\.local_perception\.network\.1\.", ".integration.norm."),
        (r"\.local_perception\.network\.2\.", ".integration.conv."),
        (r"\.local_perception\.network\.4\.", ".integration.fc2."),
        (r"\.attn\.oper_q\.", ".token_mixer.query_context."),
        (r"\.attn\.oper_k\.", ".token_mixer.key_context."),
        (r"_context\.0\.block\.0\.", "_context.spatial.conv."),
        (r"_context\.0\.block\.1\.", "_context.spatial.norm."),
        (r"_context\.0\.block\.3\.", "_context.spatial.fc."),
        (r"_context\.1\.block\.1\.", "_context.channel.fc."),
        (r"\.attn\.dwc\.", ".token_mixer.similarity."),
        (r"\.attn\.proj\.", ".token_mixer.project."),
        (r"\.attn\.qkv\.", ".token_mixer.qkv."),
        (r"^norm([0246])\.", lambda match: f"out_norms.{int(match[1]) // 2}."),
    )

    def __init__(
        self,
        arch: str | dict[str, Any] = "m",
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = True,
        with_cp: bool = False,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(arch, in_channels, out_indices, drop_path_rate, frozen_stages, norm_eval, with_cp, init_cfg)
        widths = self.arch["channels"]
        rates = self._drop_path_rates()
        self.stem = Chain(
            OrderedDict(
                conv1=nn.Conv2d(in_channels, widths[0] // 2, 3, stride=2, padding=1),
                norm1=nn.BatchNorm2d(widths[0] // 2),
                act1=nn.ReLU(),
                conv2=nn.Conv2d(widths[0] // 2, widths[0], 3, stride=2, padding=1),
                norm2=nn.BatchNorm2d(widths[0]),
                act2=nn.ReLU(),
            )
        )
        self.stages = nn.ModuleList()
        for i in range(self.built_stages):
            downsample = (
                nn.Identity()
                if i == 0
                else Chain(
                    OrderedDict(
                        conv=nn.Conv2d(widths[i - 1], widths[i], 3, stride=2, padding=1),
                        norm=nn.BatchNorm2d(widths[i]),
                    )
                )
            )
            self.stages.append(Stage(downsample, [Block(widths[i], rate) for rate in rates[i]], with_cp))
        self.out_norms = nn.ModuleDict({str(i): nn.BatchNorm2d(widths[i]) for i in self.out_indices})
        self.out_channels = tuple(widths[i] for i in self.out_indices)
        self.train()

    @property
    def unbuilt_parts(self) -> tuple[str, ...]:
        norms = tuple(f"out_norms.{i}." for i in range(NUM_STAGES) if i not in self.out_indices)
        return super().unbuilt_parts + norms

    def _stage_modules(self, index: int) -> list[nn.Module]:
        norms = [self.out_norms[str(index)]] if index in self.out_indices else []
        return [*super()._stage_modules(index), *norms]

    def _emit(self, index: int, x: Tensor) -> Tensor:
        return self.out_norms[str(index)](x)

    def fuse(self) -> CASViT:
        """Folds the norms of the stem and of the ways down; those of the outputs have no convolution to themselves."""
        self.stem.norm1 = fold_norm_after(self.stem.conv1, self.stem.norm1)
        self.stem.norm2 = fold_norm_after(self.stem.conv2, self.stem.norm2)
        self.stem.act1.inplace = self.stem.act2.inplace = True
        for stage in self.stages[1:]:
            stage.downsample.norm = fold_norm_after(stage.downsample.conv, stage.downsample.norm)
        return self
