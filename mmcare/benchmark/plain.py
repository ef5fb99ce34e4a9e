"""The plain networks: the authors' operations one for one, in float32, eager mode and NCHW.

They are what every faster form is measured against, so that they stay as they are when the package's own networks
change. They take the same weights under the same names, and return the same maps. There is nothing here that a user
would train or deploy.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import CARE, CASViT
from ..models.base import PyramidBackbone


def plain(model: nn.Module) -> nn.Module | None:
    """The plain form of a backbone, or of what has one of ours as its ``backbone``; None where neither is ours.

    Args:
        model: which stays as it was; only a detector's backbone is replaced, in place: give a copy of a detector.
    """
    if isinstance(model, PyramidBackbone):
        network = PlainCARE(model) if isinstance(model, CARE) else PlainCASViT(model)
        network.load_state_dict(model.state_dict())
        return network.train(model.training)
    if isinstance(getattr(model, "backbone", None), PyramidBackbone):
        model.backbone = plain(model.backbone)
        return model
    return None


class _Plain(nn.Module):
    """Stem and stages; a subclass builds them for the arch of ``model``."""

    def __init__(self, model: PyramidBackbone) -> None:
        super().__init__()
        self.in_channels = model.in_channels
        self.out_indices = model.out_indices
        self.out_norms = nn.ModuleDict()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, in_channels, H, W) → a map for each of ``out_indices``."""
        x = self.stem(x)
        maps = {}
        for index, stage in enumerate(self.stages):
            x = stage["downsample"](x)
            for block in stage["blocks"]:
                x = block(x)
            name = str(index)
            maps[index] = self.out_norms[name](x) if name in self.out_norms else x
        return tuple(maps[index] for index in self.out_indices)


def _depthwise(channels: int, kernel_size: int | tuple[int, int]) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel_size, padding="same", groups=channels)


def _stage(downsample: nn.Module, blocks: list[nn.Module]) -> nn.ModuleDict:
    return nn.ModuleDict({"downsample": downsample, "blocks": nn.ModuleList(blocks)})


class PlainCARE(_Plain):
    """CARE as its authors compute it.

    Args:
        model: whose arch, channels and indices it takes, without the weights.
    """

    def __init__(self, model: CARE) -> None:
        super().__init__(model)
        arch = model.arch
        widths = [4 * channels for channels in arch["memory_channels"]]
        self.stem = nn.Sequential(
            OrderedDict(conv=nn.Conv2d(model.in_channels, widths[0], 4, stride=4), norm=nn.BatchNorm2d(widths[0]))
        )
        self.stages = nn.ModuleList()
        for i in range(max(self.out_indices) + 1):
            down = nn.Identity()
            if i > 0:
                conv = nn.Conv2d(widths[i - 1], widths[i], 2, stride=2)
                down = nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(widths[i - 1]), conv=conv))
            depth = arch["depths"][i]
            blocks = [
                _CAREBlock(
                    arch["memory_channels"][i], arch["ratios"][i], arch["head_channels"][i], (i, j) == (3, depth - 1)
                )
                for j in range(depth)
            ]
            self.stages.append(_stage(down, blocks))


class _CAREBlock(nn.Module):
    def __init__(self, memory: int, ratios: tuple[int, int], head: int | None, last: bool) -> None:
        super().__init__()
        self.memory = memory
        self.token_mixer = _TokenMixer(memory, head)
        self.first_interaction = _Interaction(3 * memory, ratios[0])
        self.second_interaction = _Interaction(4 * memory, ratios[1], project=not last)
        self.layer_scale = None if last else _LayerScale(4 * memory)

    def forward(self, x: Tensor) -> Tensor:
        memory, features = torch.split(x, [self.memory, x.shape[1] - self.memory], dim=1)
        features = self.first_interaction(self.token_mixer(features))
        out = self.second_interaction(torch.cat([memory, features], dim=1))
        return out if self.layer_scale is None else x + self.layer_scale(out)


class _LayerScale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.view(1, -1, 1, 1) * x


class _TokenMixer(nn.Module):
    def __init__(self, channels: int, head: int | None) -> None:
        super().__init__()
        self.far = _Strips(channels) if head is None else _LinearAttention(channels, head)
        self.near_small = _depthwise(channels, 3)
        self.near_large = _depthwise(channels, 7)

    def forward(self, x: Tensor) -> Tensor:
        far, small, large = torch.chunk(x, 3, dim=1)
        return torch.cat([self.far(far), self.near_small(small), self.near_large(large)], dim=1)


class _Strips(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.vertical = _depthwise(channels, (11, 1))
        self.horizontal = _depthwise(channels, (1, 11))

    def forward(self, x: Tensor) -> Tensor:
        return self.vertical(x) + self.horizontal(x)


class _LinearAttention(nn.Module):
    def __init__(self, channels: int, head: int) -> None:
        super().__init__()
        self.head = head
        self.query_key = nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        by_head = (batch, channels // self.head, self.head, height * width)
        query, key = torch.chunk(self.query_key(x), 2, dim=1)
        query = F.elu(query.reshape(by_head)) + 1
        key = F.elu(key.reshape(by_head)) + 1
        context = x.reshape(by_head) @ key.transpose(-2, -1) / (height * width)
        normalizer = key.mean(-1, keepdim=True).transpose(-2, -1) @ query + 1e-6
        return ((context @ query) / normalizer).reshape(x.shape)


class _Interaction(nn.Module):
    def __init__(self, channels: int, ratio: int, project: bool = True) -> None:
        super().__init__()
        hidden = ratio * channels
        self.norm = nn.BatchNorm2d(channels)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.act = nn.GELU()
        self.conv = _depthwise(hidden, 3)
        self.fc2 = nn.Conv2d(hidden, channels, 1) if project else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv(self.act(self.fc1(self.norm(x))))
        return hidden if self.fc2 is None else x + self.fc2(hidden)


class PlainCASViT(_Plain):
    """CAS-ViT as its authors compute it.

    Args:
        model: whose arch, channels and indices it takes, without the weights.
    """

    def __init__(self, model: CASViT) -> None:
        super().__init__(model)
        widths = model.arch["channels"]
        self.stem = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(model.in_channels, widths[0] // 2, 3, stride=2, padding=1),
                norm1=nn.BatchNorm2d(widths[0] // 2),
                act1=nn.ReLU(),
                conv2=nn.Conv2d(widths[0] // 2, widths[0], 3, stride=2, padding=1),
                norm2=nn.BatchNorm2d(widths[0]),
                act2=nn.ReLU(),
            )
        )
        self.stages = nn.ModuleList()
        for i in range(max(self.out_indices) + 1):
            down = nn.Identity()
            if i > 0:
                conv = nn.Conv2d(widths[i - 1], widths[i], 3, stride=2, padding=1)
                down = nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(widths[i])))
            self.stages.append(_stage(down, [_CASViTBlock(widths[i]) for _ in range(model.arch["depths"][i])]))
        self.out_norms.update({str(i): nn.BatchNorm2d(widths[i]) for i in self.out_indices})


class _CASViTBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.integration = nn.Sequential(
            OrderedDict(
                fc1=nn.Conv2d(channels, channels, 1),
                norm=nn.BatchNorm2d(channels),
                conv=_depthwise(channels, 3),
                act=nn.GELU(),
                fc2=nn.Conv2d(channels, channels, 1),
            )
        )
        self.norm1 = nn.BatchNorm2d(channels)
        self.token_mixer = _AdditiveTokenMixer(channels)
        self.norm2 = nn.BatchNorm2d(channels)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Conv2d(channels, 4 * channels, 1), act=nn.GELU(), fc2=nn.Conv2d(4 * channels, channels, 1)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.integration(x)
        x = x + self.token_mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _AdditiveTokenMixer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.query_context = nn.Sequential(OrderedDict(spatial=_SpatialGate(channels), channel=_ChannelGate(channels)))
        self.key_context = nn.Sequential(OrderedDict(spatial=_SpatialGate(channels), channel=_ChannelGate(channels)))
        self.similarity = _depthwise(channels, 3)
        self.project = _depthwise(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = torch.chunk(self.qkv(x), 3, dim=1)
        similarity = self.similarity(self.query_context(query) + self.key_context(key))
        return self.project(similarity * value)


class _SpatialGate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _depthwise(channels, 3)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()
        self.fc = nn.Conv2d(channels, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc(self.act(self.norm(self.conv(x)))))


class _ChannelGate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc(F.adaptive_avg_pool2d(x, 1)))
