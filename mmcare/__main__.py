"""The command ``mmcare``, also ``python -m mmcare``: ``mmcare train CONFIG``, ``mmcare --help``.

Under torchrun: ``torchrun --nproc_per_node=8 -m mmcare train CONFIG --launcher pytorch``.
"""

from __future__ import annotations

import sys
from argparse import REMAINDER, RawDescriptionHelpFormatter
from importlib import import_module
from textwrap import fill

from .cli import Parser, run
from .errors import UserError, closest
from .runs import list_configs
from .version import __version__

COMMANDS = {
    "train": ("train", "train a detector, a segmentor or a classifier, or continue a training"),
    "test": ("test", "evaluate a trained model, write or draw its predictions"),
    "predict": ("predict", "predict pictures and videos, draw and write what is found"),
    "curves": ("analyze_logs", "plot a training's loss and metrics"),
    "browse": ("browse_dataset", "look at the training images with their annotations"),
    "config": ("print_config", "print a config in full, as a run has it"),
    "flops": ("get_flops", "count parameters and multiply-accumulates"),
    "benchmark": ("benchmark", "compare time and memory of backbones and detectors"),
    "visualize": ("visualize", "draw what a network looks at: its maps, attention, context"),
    "export": ("export", "write a trained model as a file for another runtime"),
    "verify": ("verify", "compare an exported file with its certificate"),
    "publish": ("publish_model", "make a release of a checkpoint"),
}
"""The module of each command in :mod:`mmcare.cli.commands`, and what it is for."""


def main() -> None:
    """Run the command that the command line names."""
    run(_dispatch)


def _dispatch() -> None:
    parser = Parser(
        prog="mmcare",
        description="Train, test and measure detectors and segmentors on the backbones CARE and CAS-ViT.",
        epilog=_list_names(),
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mmcare {__version__}")
    parser.add_argument("command", metavar="COMMAND", help="one of the commands below")
    parser.add_argument("arguments", metavar="...", nargs=REMAINDER, help="its arguments: COMMAND --help lists them")
    args = parser.parse_args()
    if args.command not in COMMANDS:
        otherwise = f"choose one of {', '.join(COMMANDS)}"
        raise UserError(f"mmcare has no command {args.command!r}: {closest(args.command, COMMANDS, otherwise)}")
    module, _ = COMMANDS[args.command]
    sys.argv = [f"mmcare {args.command}", *args.arguments]  # argparse names the command after the first
    import_module(f".cli.commands.{module}", __package__).main()


def _list_names() -> str:
    """Return what ``--help`` says of the commands and the configs."""
    commands = [f"  {name:11}{purpose}" for name, (_, purpose) in COMMANDS.items()]
    configs = fill(", ".join(list_configs()), 100, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(("commands:", *commands, "", "configs that a command takes by name:", configs))


if __name__ == "__main__":
    main()
