"""CAS-ViT: convolutional additive self-attention.

Paper: "CAS-ViT: Convolutional Additive Self-attention Vision Transformers for Efficient Mobile Applications",
https://arxiv.org/abs/2408.03703 (the authors' code calls the network RCViT). The sum of two convolutional context
mappings replaces the product of queries and keys in attention: :class:`AdditiveTokenMixer`.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from ..errors import UserError
from ..memory import Chain, split
from ..registry import MODELS
from .base import NUM_STAGES, PyramidBackbone, Stage, depthwise, whole_number


class SpatialGate(Chain):
    """t ⊙ sigmoid(conv1×1 C→1 (ReLU(BN(dw3×3(t))))).

    Args:
        channels: width C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            OrderedDict(
                conv=depthwise(channels, 3),
                norm=nn.BatchNorm2d(channels),
                act=nn.ReLU(),
                fc=nn.Conv2d(channels, 1, 1, bias=False),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        return x * super().forward(x).sigmoid()


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


class AdditiveSimilarity(nn.Module):
    """Γ(Φ(q) + Φ(k)) ⊙ v, with Γ a depth-wise convolution: replaces attention.

    Args:
        channels: width of queries, keys and values, and of the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_context = ContextMapping(channels)
        self.key_context = ContextMapping(channels)
        self.conv = depthwise(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3 · channels, H, W): queries, keys, values → (B, channels, H, W)."""
        return self.combine(*split(x, 3))

    def combine(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Each (B, channels, H, W) → the same shape."""
        return self.conv(self.query_context(query) + self.key_context(key)) * value


class AdditiveTokenMixer(Chain):
    """Convolutional additive self-attention: dw3×3(Γ(Φ(q) + Φ(k)) ⊙ v), with q, k, v from a 1×1 convolution of BN(x).

    Args:
        channels: width of the input and the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            OrderedDict(
                norm=nn.BatchNorm2d(channels),
                qkv=nn.Conv2d(channels, 3 * channels, 1, bias=False),
                similarity=AdditiveSimilarity(channels),
                project=depthwise(channels, 3),
            )
        )


class Integration(Chain):
    """Local integration: conv1×1(GELU(dw3×3(BN(conv1×1(x))))).

    Args:
        channels: width of the input, the hidden maps and the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            OrderedDict(
                fc1=nn.Conv2d(channels, channels, 1),
                norm=nn.BatchNorm2d(channels),
                conv=depthwise(channels, 3),
                act=nn.GELU(),
                fc2=nn.Conv2d(channels, channels, 1),
            )
        )


class MLP(Chain):
    """fc2(GELU(fc1(BN(x)))), with 1×1 convolutions.

    Args:
        channels: width of the input and the output.
        ratio: the hidden width is ``ratio`` times ``channels``.
    """

    def __init__(self, channels: int, ratio: int = 4) -> None:
        super().__init__(
            OrderedDict(
                norm=nn.BatchNorm2d(channels),
                fc1=nn.Conv2d(channels, ratio * channels, 1),
                act=nn.GELU(),
                fc2=nn.Conv2d(ratio * channels, channels, 1),
            )
        )


class Block(nn.Module):
    """Three residual parts: integration, additive token mixer, MLP.

    Args:
        channels: width of the input and the output.
        drop_path_rate: drop path rate of the last two parts; the first always runs.
    """

    def __init__(self, channels: int, drop_path_rate: float) -> None:
        super().__init__()
        self.integration = Integration(channels)
        self.token_mixer = AdditiveTokenMixer(channels)
        self.mlp = MLP(channels)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → the same shape."""
        x = x + self.integration(x)
        x = x + self.drop_path(self.token_mixer(x))
        return x + self.drop_path(self.mlp(x))


def _stage_name(match: re.Match) -> str:
    """Return the prefix for a module of the authors' ``network``: 0, 2, 4, 6 are stages, 1, 3, 5 downsampling."""
    position = int(match[1])
    return f"stages.{(position + 1) // 2}.{'downsample' if position % 2 else 'blocks'}."


@MODELS.register_module()
class CASViT(PyramidBackbone):
    """The CAS-ViT backbone: maps at strides 4, 8, 16 and 32, each followed by its own batch norm.

    ImageNet checkpoints do not have the four norms of the pyramid; they start as identities and are trained with the
    detector or segmentor.

    Args:
        arch: ``"xs"``, ``"s"``, ``"m"``, ``"t"``, or a dict with ``depths`` and ``channels``, one value per stage; the
            first of ``channels`` must be even.

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
        (r"\.attn\.oper_q\.", ".token_mixer.similarity.query_context."),
        (r"\.attn\.oper_k\.", ".token_mixer.similarity.key_context."),
        (r"_context\.0\.block\.0\.", "_context.spatial.conv."),
        (r"_context\.0\.block\.1\.", "_context.spatial.norm."),
        (r"_context\.0\.block\.3\.", "_context.spatial.fc."),
        (r"_context\.1\.block\.1\.", "_context.channel.fc."),
        (r"\.attn\.dwc\.", ".token_mixer.similarity.conv."),
        (r"\.attn\.proj\.", ".token_mixer.project."),
        (r"\.attn\.qkv\.", ".token_mixer.qkv."),
        (r"(\.blocks\.\d+)\.norm1\.", r"\1.token_mixer.norm."),
        (r"(\.blocks\.\d+)\.norm2\.", r"\1.mlp.norm."),
        (r"^norm([0246])\.", lambda match: f"out_norms.{int(match[1]) // 2}."),
        # Checkpoints of earlier versions of mmcare
        (r"\.token_mixer\.(query_context|key_context)\.", r".token_mixer.similarity.\1."),
        (r"\.token_mixer\.similarity\.(weight|bias)$", r".token_mixer.similarity.conv.\1"),
    )
    classifier_names = (
        (r"^norm\.", "backbone.out_norms.3."),
        (r"^head\.", "head.label_fc."),
        (r"^dist_head\.", "head.dist_fc."),
    )

    @classmethod
    def check_arch(cls, arch: dict[str, Any]) -> None:
        for channels in arch["channels"]:
            whole_number("channels in the custom arch of CASViT", channels, low=1)
        if arch["channels"][0] % 2:
            raise UserError(
                f"channels={arch['channels']!r} in the custom arch of CASViT is not valid: the first must be even, as "
                "the stem's first convolution has half as many channels"
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
