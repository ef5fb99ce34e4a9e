"""CAS-ViT's fast form: replacements for the modules of :mod:`mmcare.models.casvit`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.casvit import AdditiveSimilarity, AdditiveTokenMixer, Block
from .convolutions import Expansion, FusedConv, InParts, add_to
from .folding import conv_with, fold_norm_after, fold_norm_before


class FusedAdditiveTokenMixer(InParts):
    """The fast form of the additive token mixer: the context mappings of queries and keys run as one.

    The values have a separate convolution, so that no channels-last map has to be split. On a CPU, where both mappings
    together would make a large map, they run one after the other.

    Attributes:
        apart: whether they run one after the other at all sizes.
    """

    apart = False

    def __init__(self, mixer: AdditiveTokenMixer) -> None:
        super().__init__()
        fold_norm_before(mixer.norm, mixer.qkv)
        contexts = (mixer.similarity.query_context, mixer.similarity.key_context)
        for context in contexts:
            fold_norm_after(context.spatial.conv, context.spatial.norm)
        channels = mixer.qkv.in_channels
        parts = (mixer.qkv.weight.split((2 * channels, channels)), mixer.qkv.bias.split((2 * channels, channels)))
        query_key, self.value = (conv_with(weight, bias) for weight, bias in zip(*parts, strict=True))
        self.query_key = FusedConv(query_key)
        convs = [context.spatial.conv for context in contexts]
        weight, bias = (torch.cat([getattr(conv, name) for conv in convs]) for name in ("weight", "bias"))
        self.spatial_conv = FusedConv(conv_with(weight, bias, groups=2 * channels, padding=convs[0].padding))
        self.spatial_act = nn.ReLU(inplace=True)
        # Two output channels with zero weights for the other branch are faster than two groups.
        rows = torch.block_diag(*[context.spatial.fc.weight.flatten(1) for context in contexts])
        self.spatial_fc = conv_with(rows[:, :, None, None], None)
        channel = torch.stack([context.channel.fc.weight.detach().flatten(1).t() for context in contexts])
        self.register_buffer("channel_weights", channel)  # (2, channels in, channels out)
        self.conv = mixer.similarity.conv
        self.project = mixer.project

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → the same shape."""
        apart = self.apart or self.count_parts(x, self.query_key.out_channels) > 1
        context = self._one_by_one(x) if apart else self._together(x)
        return self.project(self.conv(context).mul_(self.value(x)))

    def _together(self, x: Tensor) -> Tensor:
        """Return Φ(q) + Φ(k)."""
        query_key = self.query_key(x)
        spatial_gate = self.spatial_fc(self.spatial_act(self.spatial_conv(query_key))).sigmoid()  # (B, 2, H, W)
        query_key = query_key.unflatten(1, (2, -1)) * spatial_gate.unsqueeze(2)  # (B, 2, channels, H, W)
        means = query_key.mean((3, 4)).transpose(0, 1)  # (2, B, channels)
        query_gate, key_gate = (means @ self.channel_weights).sigmoid()[..., None, None]
        query, key = query_key.unbind(1)
        return (query * query_gate).addcmul_(key, key_gate)

    def _one_by_one(self, x: Tensor) -> Tensor:
        """Return Φ(q) + Φ(k), computed one after the other."""
        context = None
        rows = self.spatial_fc.weight.unflatten(1, (2, -1))
        for index in range(2):
            branch = self.query_key(x, (index, 2))
            gate = F.conv2d(self.spatial_act(self.spatial_conv(branch, (index, 2))), rows[index : index + 1, index])
            branch = branch * gate.sigmoid()
            gate = (branch.mean((2, 3)) @ self.channel_weights[index]).sigmoid()[..., None, None]
            context = branch * gate if context is None else context.addcmul_(branch, gate)
        return context


class ApartSimilarity(nn.Module):
    """The similarity of queries, keys and values that have a convolution each."""

    def __init__(self, qkv: nn.Conv2d, similarity: AdditiveSimilarity) -> None:
        super().__init__()
        biases = (None,) * 3 if qkv.bias is None else qkv.bias.chunk(3)
        self.convs = nn.ModuleList(map(conv_with, qkv.weight.chunk(3), biases))
        self.similarity = similarity

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → the same shape."""
        return self.similarity.combine(*(conv(x) for conv in self.convs))


def compute_apart(model: nn.Module) -> nn.Module:
    """Compute CAS-ViT's queries, keys and values apart, in place: exported, the cutting of one map is a copy of it."""
    for module in list(model.modules()):
        if isinstance(module, FusedAdditiveTokenMixer):
            module.apart = True
        elif isinstance(module, AdditiveTokenMixer):
            module.similarity = ApartSimilarity(module.qkv, module.similarity)
            module.qkv = nn.Identity()
    return model


class FusedBlock(nn.Module):
    """The fast form of a block: the norms are folded into the adjacent 1×1 convolutions."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        integration, mlp = block.integration, block.mlp
        fold_norm_after(integration.fc1, integration.norm)
        fold_norm_before(mlp.norm, mlp.fc1)
        self.integration = Expansion((integration.fc1, False), (integration.conv, True), (integration.fc2, False))
        self.token_mixer = block.token_mixer
        self.mlp = Expansion((mlp.fc1, True), (mlp.fc2, False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → the same shape."""
        for part in (self.integration, self.token_mixer, self.mlp):
            x = add_to(part(x), x)
        return x


FUSED = {AdditiveTokenMixer: FusedAdditiveTokenMixer, Block: FusedBlock}
