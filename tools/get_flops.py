"""Count parameters and multiply-accumulates: ``python tools/get_flops.py CONFIG|BACKBONE [--shape H W]``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmcare.cli import Parser, run
from mmcare.errors import UserError
from mmcare.stack import check_stack

if TYPE_CHECKING:
    from torch import nn

HEADS = ("bbox_head", "rpn_head", "decode_head", "auxiliary_head")
ROIS = {"bbox_head": 1000, "mask_head": 100}


def main() -> None:
    check_stack()
    parser = Parser(description="Count parameters and multiply-accumulates (MACs) of convolutions and matrix products.")
    parser.add_argument("model", help="a config, or a backbone as mmcare.CARE:s1, mmdet.ResNet …")
    parser.add_argument("--shape", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"), help="of the image")
    args = parser.parse_args()
    rows = count(build(args.model), *args.shape)
    print(f"{args.model} at {args.shape[0]}×{args.shape[1]}, batch 1")
    for name, parameters, macs in rows:
        print(f"{name:16}{parameters / 1e6:10.3f} M params{macs / 1e9:10.3f} GMACs")
    if any(name.startswith("roi_head") for name, *_ in rows):
        print(f"RoI heads counted for {ROIS['bbox_head']} proposals and {ROIS['mask_head']} detections")


def build(name: str) -> nn.Module:
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    if not name.endswith(".py"):
        kind, _, arch = name.partition(":")
        return MODELS.build(dict(type=kind, **({"arch": arch} if arch else {}))).eval()
    try:
        cfg = Config.fromfile(name)
    except FileNotFoundError:
        raise UserError(f"there is no config {name}: check the path") from None
    check_stack(needs=(cfg.default_scope,))
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model).eval()


def count(model: nn.Module, height: int, width: int) -> list[tuple[str, int, float]]:
    """Rows of (part, parameters, MACs), the whole last."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    rows = []

    def measure(name: str, part: nn.Module, *inputs, times: int = 1):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            outputs = part(*inputs)
        # the counter has two operations for each multiply-accumulate
        rows.append((name, sum(p.numel() for p in part.parameters()), times * counter.get_total_flops() / 2))
        return outputs

    image = torch.zeros(1, 3, height, width)
    maps = measure("backbone", getattr(model, "backbone", model), image)
    if getattr(model, "neck", None) is not None:
        maps = measure("neck", model.neck, maps)
    for name in HEADS:
        if getattr(model, name, None) is not None:
            measure(name, getattr(model, name), maps)
    for name, rois in ROIS.items():
        head = getattr(getattr(model, "roi_head", None), name, None)
        if head is not None:
            size = {"bbox_head": 7, "mask_head": 14}[name]
            measure(f"roi_head.{name}", head, torch.zeros(1, head.in_channels, size, size), times=rois)
    if len(rows) > 1:
        rows.append(("total", sum(p.numel() for p in model.parameters()), sum(macs for *_, macs in rows)))
    return rows


if __name__ == "__main__":
    run(main)
