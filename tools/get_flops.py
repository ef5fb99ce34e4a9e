"""Count parameters and multiply-accumulates: ``python tools/get_flops.py CONFIG|BACKBONE [--shape H W]``."""

from __future__ import annotations

from argparse import Namespace

from mmcare.cli import Parser, add_cfg_options, run
from mmcare.counting import build, count, padded_shape
from mmcare.stack import check_stack


def parse_args() -> Namespace:
    check_stack()
    parser = Parser(
        description="Count the parameters of a model, and its multiply-accumulates (MACs) for one image: those of "
        "convolutions, linear layers and attention's matrix products. One MAC is what OpenMMLab's tables call a FLOP."
    )
    parser.add_argument("model", help="config file, or a bare backbone as TYPE:ARCH, such as mmcare.CARE:s1")
    parser.add_argument(
        "--shape",
        type=int,
        nargs="+",
        metavar="SIDE",
        help="height and width of the image, or one number for both (default: 800 1333 in detection, else 512 512)",
    )
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.shape and (len(args.shape) > 2 or min(args.shape) < 1):
        parser.error(f"--shape takes one or two sides of an image, in pixels, not {' '.join(map(str, args.shape))}")
    return args


def main() -> None:
    args = parse_args()
    model, shape = build(args.model, args.cfg_options)
    if args.shape:
        shape = (args.shape[0], args.shape[-1])
    rows = count(model, *shape)
    padded = padded_shape(model, *shape)
    padding = "" if padded == shape else f", padded to {padded[0]}×{padded[1]}"
    print(f"{args.model} for one image of {shape[0]}×{shape[1]}{padding}")
    for name, parameters, macs in rows:
        print(f"{name:20}{parameters / 1e6:9.3f} M params{macs / 1e9:11.3f} GMACs")
    if hasattr(model, "roi_head"):
        proposals, masks = (model.test_cfg[stage].max_per_img for stage in ("rpn", "rcnn"))
        print(f"RoI heads: for {proposals} proposals and {masks} masks, as many as the config allows")


if __name__ == "__main__":
    run(main)
