"""Print a complete config: ``mmcare config CONFIG``, with MMDetection's options."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ...errors import UserError
from .. import config_parser, read_config

FORMATS = (".py", ".json", ".yml", ".yaml")


def parse_args() -> Namespace:
    parser = config_parser("Print a complete config, with inherited settings and changes by options.")
    parser.add_argument("--save-path", type=Path, help=f"also write it to this file ({', '.join(FORMATS)})")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    path = args.save_path
    if path and path.suffix not in FORMATS:
        raise UserError(f"--save-path can be {', '.join(FORMATS)}: give a name with one of these endings, not {path}")
    cfg = read_config(args, parts=())
    print(cfg.pretty_text)
    if path:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            cfg.dump(path)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from error
