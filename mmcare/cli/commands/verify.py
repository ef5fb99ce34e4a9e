"""Compare an exported file with its certificate, without torch: ``mmcare verify FILE``."""

from __future__ import annotations

from argparse import Namespace

from ...runtime import require, show, verify
from .. import Parser


def parse_args() -> Namespace:
    parser = Parser(
        description="Compare an exported file with its certificate: its hash, its operators, what it takes, and what "
        "it returns for a picture for which the certificate has PyTorch's results. The latency is measured again. It "
        "needs no torch."
    )
    parser.add_argument("file", help="exported file")
    parser.add_argument("--threads", type=int, help="number of threads (default: the certificate's)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    checks = verify(args.file, args.threads)
    print(show(checks))
    require(args.file, checks)
