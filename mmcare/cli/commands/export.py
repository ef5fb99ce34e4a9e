"""Write a trained model as a file for another runtime: ``mmcare export CONFIG CHECKPOINT``."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ...export import PARTS, TARGETS, check_options, export
from ...runs import load_config
from ...stack import check_stack
from .. import Parser, add_cfg_options, add_shape, parse_cfg_options


def parse_args() -> Namespace:
    parser = Parser(
        description="Write a trained detector or segmentor as a file for another runtime. It takes RGB images from 0 "
        "to 255, and has the normalization, the decoding and non-maximum suppression inside."
    )
    parser.add_argument("config", help="config file, or a name that mmcare --help lists")
    parser.add_argument("checkpoint", help="checkpoint file, or its http(s) address")
    parser.add_argument("--format", default="onnx", help=f"{', '.join(TARGETS)} (default: %(default)s)")
    parser.add_argument(
        "--part",
        default="model",
        help="model; network, without decoding; or backbone, its four maps alone (default: %(default)s)",
    )
    add_shape(parser)
    parser.add_argument("--batch", type=int, default=1, help="number of images (default: 1)")
    parser.add_argument("--dynamic", action="store_true", help="take any number and size of images instead")
    parser.add_argument("--opset", type=int, help="version of ONNX's operators (default: 20)")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="file to write (default: work_dirs/export/<config's name>.onnx)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there already")
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    target = check_options(args.format, args.part, args.opset)
    part = "" if args.part == PARTS[0] else f"_{args.part}"
    path = args.out or Path("work_dirs/export") / f"{Path(args.config).stem}{part}{target.ending}"
    check_stack()
    cfg = load_config(args.config, ("model",), cfg_options=parse_cfg_options(args.cfg_options))
    export(
        cfg,
        args.checkpoint,
        path,
        target=args.format,
        part=args.part,
        shape=args.shape,
        batch=args.batch,
        dynamic=args.dynamic,
        opset=args.opset,
        overwrite=args.overwrite,
    )
    print(f"{path} ({path.stat().st_size / 2**20:.1f} MiB)")
