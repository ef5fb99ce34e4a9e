"""Plot the curves of a training: ``mmcare curves WORK_DIR``."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ...errors import UserError
from ...files import write_picture
from ...runs import draw_curves, read_curves, summarize
from .. import Parser

FORMATS = (".png", ".svg", ".pdf", ".jpg")


def parse_args() -> Namespace:
    parser = Parser(description="Plot the loss and the metrics of a training.")
    parser.add_argument("work_dir", type=Path, help="work folder of the training")
    parser.add_argument("--out", type=Path, help="picture to write (default: curves.png in the work folder)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    out = args.out or args.work_dir / "curves.png"
    if out.suffix not in FORMATS:
        raise UserError(f"--out can be {', '.join(FORMATS)}: give a name with one of these endings, not {out}")
    curves = read_curves(args.work_dir)
    print(summarize(curves))
    write_picture(draw_curves(curves, args.work_dir.resolve().name), out)
    print(f"curves: {out}")
