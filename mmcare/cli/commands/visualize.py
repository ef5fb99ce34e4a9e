"""Draw what a network looks at: ``mmcare visualize IMAGE --model FILE --point X Y``."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UserError
from ...files import write_picture
from ...stack import check_stack
from .. import Parser, add_cfg_options, parse_cfg_options

if TYPE_CHECKING:
    from ...inference import Network

STAGES = (1, 2, 3, 4)


def parse_args() -> Namespace:
    parser = Parser(
        description="Draw over an image what a network looks at: the maps of its pyramid, and where a point looks in "
        "CARE's linear attention, or CAS-ViT's context maps."
    )
    parser.add_argument("image", type=Path, help="image file")
    parser.add_argument("--model", required=True, metavar="FILE", help="release or checkpoint, or its http(s) address")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--config", help="config file, or a name that mmcare --help lists (default: the one that the model carries)"
    )
    kind.add_argument(
        "--backbone",
        metavar="NAME",
        help="for a checkpoint of a backbone alone, such as the authors' ImageNet weights: care_s0 to casvit_t",
    )
    add_cfg_options(parser)
    parser.add_argument(
        "--point",
        type=float,
        nargs=2,
        metavar=("X", "Y"),
        help="the point, in pixels of the image file (default: the centre)",
    )
    parser.add_argument("--stage", type=int, nargs="+", choices=STAGES, help="stages to draw (default: all)")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder to write to (default: work_dirs/visualize/<image's name>)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace pictures that are there already")
    args = parser.parse_args()
    if args.cfg_options and not args.config:
        parser.error("--cfg-options needs a --config")
    return args


def main() -> None:
    args = parse_args()
    check_stack()
    from ...inference import plan_sheets

    network = open_network(args)
    view = network.view(args.image, args.point)
    stages = [number - 1 for number in args.stage or STAGES]
    folder = args.out or Path("work_dirs/visualize") / args.image.stem
    sheets = plan_sheets(network, view, stages, args.image.name)
    present = [folder / name for name in sheets if (folder / name).exists()]
    if present and not args.overwrite:
        raise UserError(f"{present[0]} exists: add --overwrite to replace it, or give another folder with --out")
    for name, draw in sheets.items():
        write_picture(draw(), folder / name)
        print(f"picture: {folder / name}")


def open_network(args: Namespace) -> Network:
    """Return the backbone that the options name, and what prepares its images."""
    from ...inference import read_backbone, read_network

    if args.backbone:
        return read_backbone(args.model, args.backbone)
    return read_network(args.model, args.config, parse_cfg_options(args.cfg_options))
