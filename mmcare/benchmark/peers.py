"""The peers: backbones of mmdet, as its configs build them, with four maps at strides 4 to 32."""

from __future__ import annotations

from typing import Any

PEERS: dict[str, dict[str, Any]] = {
    "resnet50": dict(type="mmdet.ResNet", depth=50, out_indices=(0, 1, 2, 3)),
    "swin-t": dict(
        type="mmdet.SwinTransformer",
        embed_dims=96,
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        out_indices=(0, 1, 2, 3),
    ),
    "pvtv2-b1": dict(
        type="mmdet.PyramidVisionTransformerV2", embed_dims=64, num_layers=[2, 2, 2, 2], out_indices=(0, 1, 2, 3)
    ),
    "mobilenetv2": dict(type="mmdet.MobileNetV2", out_indices=(1, 2, 4, 7)),
}
"""MMEngine's settings for each peer, by its name on the command line."""
