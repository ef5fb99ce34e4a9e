"""CAS-ViT with a part of its token mixer, Γ(Φ(q) + Φ(k)) ⊙ v, switched off or replaced."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from ..memory import Chain
from ..registry import MODELS
from .base import ablation_type
from .casvit import AdditiveSimilarity, AdditiveTokenMixer, CASViT


class SimilarityWithoutSpatialContext(AdditiveSimilarity):
    """Γ(Φ(q) + Φ(k)) ⊙ v, with only the channel interaction in Φ."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        del self.query_context.spatial, self.key_context.spatial


class SimilarityWithoutChannelContext(AdditiveSimilarity):
    """Γ(Φ(q) + Φ(k)) ⊙ v, with only the spatial interaction in Φ."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        del self.query_context.channel, self.key_context.channel


class SimilarityWithIdentity(AdditiveSimilarity):
    """(Φ(q) + Φ(k)) ⊙ v: Γ is the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.conv = nn.Identity()


class ProductSimilarity(AdditiveSimilarity):
    """Γ(Φ(q) ⊙ Φ(k)) ⊙ v: the product of the contexts instead of their sum."""

    def combine(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Each (B, channels, H, W) → the same shape."""
        return self.conv(self.query_context(query) * self.key_context(key)) * value


ABLATIONS: dict[str, type[AdditiveSimilarity]] = {
    "no_spatial_context": SimilarityWithoutSpatialContext,
    "no_channel_context": SimilarityWithoutChannelContext,
    "identity": SimilarityWithIdentity,
    "product": ProductSimilarity,
}


class AblatedTokenMixer(Chain):
    """CAS-ViT's token mixer with another similarity.

    It is no :class:`~mmcare.models.casvit.AdditiveTokenMixer`: what replaces those, or looks into them, relies on what
    an ablation takes away.

    Args:
        mixer: the token mixer; its other layers are taken over.
        similarity: the other similarity, (B, 3C, H, W) → (B, C, H, W).
    """

    def __init__(self, mixer: AdditiveTokenMixer, similarity: nn.Module) -> None:
        super().__init__(OrderedDict(mixer.named_children(), similarity=similarity))


@MODELS.register_module()
class CASViTAblation(CASViT):
    """CAS-ViT with a part of its token mixer switched off or replaced.

    Args:
        ablation: ``"no_spatial_context"``, ``"no_channel_context"``, ``"identity"`` (as Γ) or ``"product"`` (instead of
            the sum of the contexts).
        arch, arguments: :class:`~mmcare.models.casvit.CASViT`'s, with the same defaults.

    Raises:
        UserError: ``ablation`` is missing or unknown, or another argument is invalid.
    """

    def __init__(self, ablation: str | None = None, arch: str | dict[str, Any] = "m", **arguments: Any) -> None:
        similarity_type = ablation_type("CASViT", ABLATIONS, ablation)
        super().__init__(arch, **arguments)
        self.ablation = ablation
        for channels, stage in zip(self.arch["channels"], self.stages, strict=False):  # the last may not be built
            for block in stage.blocks:
                block.token_mixer = AblatedTokenMixer(block.token_mixer, similarity_type(channels))
        self.train()  # the new modules, too, may be frozen
