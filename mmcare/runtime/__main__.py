"""The command ``mmcare-runtime``, also ``python -m mmcare_runtime``: predicts pictures, and verifies files."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from typing import NoReturn

from .errors import FileError


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise FileError(f"{message}; {self.prog} --help lists the options")


def main() -> None:
    """Run the command line. An error ends it with one sentence and exit status 2."""
    try:
        args = _parse_args()
        args.run(args)
    except FileError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _parse_args() -> Namespace:
    parser = _Parser(prog="mmcare-runtime", description="Run what mmcare export wrote, without PyTorch.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    predict = commands.add_parser("predict", help="print what a model finds in pictures, a line of JSON for each")
    predict.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture file")
    predict.add_argument("--model", required=True, metavar="FILE", help="exported file")
    predict.add_argument(
        "--fit", action="store_true", help="make pictures smaller that are too large for a file of a fixed size"
    )
    predict.set_defaults(run=_predict)
    verify = commands.add_parser("verify", help="compare an exported file with its certificate")
    verify.add_argument("model", metavar="FILE", help="exported file")
    verify.set_defaults(run=_verify)
    for command in (predict, verify):
        command.add_argument("--threads", type=int, help="number of threads")
    return parser.parse_args()


def _predict(args: Namespace) -> None:
    from .model import Model

    model = Model(args.model, args.threads, fit=args.fit)
    for picture in args.pictures:
        print(json.dumps({"source": picture, **model(picture).to_json()}), flush=True)


def _verify(args: Namespace) -> None:
    from .verifying import require, show, verify

    checks = verify(args.model, args.threads)
    print(show(checks))
    require(args.model, checks)


if __name__ == "__main__":
    main()
