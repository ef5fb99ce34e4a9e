"""Write a trained model as a file for another runtime: ``mmcare export CONFIG CHECKPOINT``."""

from __future__ import annotations

import sys
import warnings
from argparse import Namespace
from functools import partial
from pathlib import Path

from ...data.own import BACKGROUNDS, FORMATS, OwnData
from ...errors import UserError
from ...export import PAGE, PARTS, TARGETS, SlowerWarning, check_options, export, export_page
from ...runs import load_config
from ...stack import check_stack
from .. import Parser, add_cfg_options, add_shape, parse_cfg_options

NOT_FASTER = 3
"""Exit status for a file that was written, but is not faster for its smaller numbers."""


def parse_args() -> Namespace:
    parser = Parser(
        description="Write a trained detector or segmentor as a file for another runtime. It takes RGB images from 0 "
        "to 255, and has the normalization, the decoding and non-maximum suppression inside."
    )
    parser.add_argument("config", help="config file, or a name that mmcare --help lists")
    parser.add_argument("checkpoint", help="checkpoint file, or its http(s) address")
    parser.add_argument(
        "--format",
        default="onnx",
        help=f"{', '.join(TARGETS)}; or {PAGE}, a folder with a page that runs the model in a browser (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--part",
        default="model",
        help="model; network, without decoding; or backbone, its four maps alone (default: %(default)s)",
    )
    add_shape(parser, "the longer side of the test pipeline's pictures for both")
    parser.add_argument("--batch", type=int, default=1, help="number of images (default: 1)")
    parser.add_argument("--dynamic", action="store_true", help="take any number and size of images instead")
    parser.add_argument("--opset", type=int, help="version of ONNX's operators (default: 20)")
    parser.add_argument(
        "--quantize",
        metavar="NUMBERS",
        help="fp16 or int8, where the format has them: smaller numbers up to the maps of the heads; "
        "docs/quantization.md has what that costs",
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="DIR", help="pictures like those to be predicted, for the ranges of int8"
    )
    parser.add_argument("--max-images", type=int, metavar="N", help="most pictures of the calibration (default: 100)")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="file to write (default: in work_dirs/export, after the config)"
    )
    parser.add_argument(
        "--onnxruntime-web",
        type=Path,
        metavar="PACKAGE",
        help=f"with --format {PAGE}: the package of npm, as a .tgz or a folder (default: from the cache, or from npm)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there already")
    data = parser.add_mutually_exclusive_group()
    data.add_argument(
        "--sample",
        action="store_true",
        help="for a model that was trained with --sample: measure the metric on that data instead of the config's",
    )
    data.add_argument(
        "--data", metavar="FOLDER", help="measure the metric on your own data set, with the classes of the checkpoint"
    )
    data.add_argument("--no-metric", action="store_true", help="measure errors and latency, but no metric")
    parser.add_argument("--data-format", choices=FORMATS, help="with --data: as --format of mmcare train")
    parser.add_argument("--background", choices=BACKGROUNDS, help="with --data: as for mmcare train")
    parser.add_argument("--metric-images", type=int, metavar="N", help="most images for the metric (default: all)")
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    is_page = args.format == PAGE
    target = check_options("onnx" if is_page else args.format, args.part, args.opset, args.quantize, args.calibration)
    ending = "" if is_page else target.ending
    part = "" if args.part == PARTS[0] else f"_{args.part}"
    numbers = f"_{args.quantize}" if args.quantize else ""
    path = args.out or Path("work_dirs/export") / f"{Path(args.config).stem}{part}{numbers}{ending}"
    if not args.data and (args.data_format or args.background):
        raise UserError("--data-format and --background say how to read one's own data: add --data FOLDER")
    if args.onnxruntime_web and not is_page:
        raise UserError(f"--onnxruntime-web is what a page runs the model with: add --format {PAGE}, or omit it")
    check_stack()
    data = OwnData(args.data, args.data_format, args.background) if args.data else None
    cfg = load_config(args.config, ("model",), args.sample, parse_cfg_options(args.cfg_options), data)
    write = partial(export, target=args.format)
    if is_page:
        write = partial(export_page, onnxruntime_web=args.onnxruntime_web)
    slower = None
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlowerWarning)  # it comes when the file is there
        try:
            write(
                cfg,
                args.checkpoint,
                path,
                part=args.part,
                shape=args.shape,
                batch=args.batch,
                dynamic=args.dynamic,
                opset=args.opset,
                quantize=args.quantize,
                calibration=args.calibration,
                max_images=args.max_images,
                overwrite=args.overwrite,
                metric=not args.no_metric,
                metric_images=args.metric_images,
            )
        except SlowerWarning as warning:
            slower = warning
    size = sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
    print(f"{path} ({size / 2**20:.1f} MiB)")
    if slower:
        print(f"warning: {slower}", file=sys.stderr)
        sys.exit(NOT_FASTER)
