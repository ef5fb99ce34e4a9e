"""Count parameters and multiply-accumulates: ``mmcare flops CONFIG|BACKBONE [--shape H W]``."""

from __future__ import annotations

from argparse import Namespace

from tabulate import tabulate

from ...benchmark import PEERS
from ...stack import check_stack
from .. import Parser, add_cfg_options, add_shape, parse_cfg_options


def parse_args() -> Namespace:
    parser = Parser(
        description="Count the parameters of a model and its multiply-accumulates (MACs) for one image, in "
        "convolutions, linear layers and attention's matrix products. OpenMMLab's tables call one MAC a FLOP."
    )
    parser.add_argument(
        "model",
        help="config file, or a name that mmcare --help lists; backbone as TYPE:ARCH, such as mmcare.CARE:s1; or one "
        f"of mmdet's backbones {', '.join(PEERS)}",
    )
    add_shape(parser)
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_stack()
    from ...benchmark import build, count, padded_shape

    model, shape = build(args.model, parse_cfg_options(args.cfg_options))
    shape = args.shape or shape
    rows = count(model, *shape)
    padded = padded_shape(model, *shape)
    padding = "" if padded == shape else f", padded to {padded[0]}×{padded[1]}"
    print(f"{args.model} for one image of {shape[0]}×{shape[1]}{padding}")
    cells = [(name, f"{parameters / 1e6:.3f} M", f"{macs / 1e9:.3f} G") for name, parameters, macs in rows]
    print(tabulate(cells, ("part", "parameters", "MACs"), colalign=("left", "right", "right")))
    if hasattr(model, "roi_head"):
        proposals, masks = (model.test_cfg[stage].max_per_img for stage in ("rpn", "rcnn"))
        print(f"RoI heads: for {proposals} proposals and {masks} masks, the config's limits")
