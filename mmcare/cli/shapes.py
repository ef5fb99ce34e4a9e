"""The option ``--shape``: the height and width of an image."""

from __future__ import annotations

import argparse


class _Shape(argparse.Action):
    def __call__(self, parser, namespace, sides, option_string=None) -> None:
        if len(sides) > 2 or min(sides) < 1:
            parser.error(f"--shape takes one or two sides of an image, in pixels, not {' '.join(map(str, sides))}")
        namespace.shape = (sides[0], sides[-1])


def add_shape(
    parser: argparse._ActionsContainer, default: str = "800 1333 in detection, 224 224 in classification, else 512 512"
) -> None:
    """Add ``--shape`` to a parser or group: (height, width) in pixels, or None if it is not given.

    Args:
        parser: the parser or group.
        default: what a tool takes then, for the help.
    """
    parser.add_argument(
        "--shape",
        type=int,
        nargs="+",
        action=_Shape,
        metavar="SIDE",
        help=f"height and width of the image, or one number for both (default: {default})",
    )
