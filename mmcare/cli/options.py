"""Shared options of the tools, and the config that they select.

The parsers need neither torch nor MMEngine: ``--help`` is fast, and invalid options are reported even if these packages
are broken. Options are interpreted later, after the installation has been checked.
"""

from __future__ import annotations

import argparse
import os
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..data.own import BACKGROUNDS, FORMATS, OwnData
from ..errors import UserError
from ..runs import LAUNCHERS, load_config
from ..stack import check_stack

if TYPE_CHECKING:
    from mmengine.config import Config


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors like all other user errors."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the options")


def config_parser(description: str) -> Parser:
    """Return a parser for a tool that reads a config; :func:`read_config` takes its arguments."""
    parser = Parser(description=description)
    parser.add_argument("config", help="config file, or a name that mmcare --help lists")
    data = parser.add_mutually_exclusive_group()
    data.add_argument(
        "--sample",
        action="store_true",
        help="use a small generated data set with a matching schedule instead of the config's data and schedule",
    )
    data.add_argument(
        "--data",
        metavar="FOLDER",
        help="use your own data set, with its classes, instead of the config's; docs/own-data.md shows the layouts",
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="with --data: the format, if the folder has annotations in two"
    )
    parser.add_argument(
        "--background",
        choices=BACKGROUNDS,
        help="with --data, for segmentation: what pixels of no object are. In label maps they have the label 0, which "
        "is the first class listed in classes.txt, an extra class, or ignored; around polygons one of the last two",
    )
    add_cfg_options(parser)
    return parser


def run_parser(description: str) -> Parser:
    """Return a parser for a tool that runs a config; :func:`read_run_config` takes its arguments."""
    parser = config_parser(description)
    parser.add_argument("--work-dir", help="folder for logs and checkpoints (default: ./work_dirs/<config's name>)")
    parser.add_argument("--launcher", choices=["none", *LAUNCHERS], default="none", help="launcher of the processes")
    # Not for users: torch.distributed.launch passes it to each process under one of these names.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser


class _Pairs(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        for pair in values:
            key, equals, _ = pair.partition("=")
            if not equals or not all(key.split(".")):
                parser.error(f"--cfg-options takes pairs like model.backbone.arch=s1, not {pair!r}")
        namespace.cfg_options = [*(namespace.cfg_options or []), *values]


def add_cfg_options(parser: Parser) -> None:
    """Add ``--cfg-options``; :func:`parse_cfg_options` takes its pairs."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=_Pairs,
        metavar="KEY=VALUE",
        help="config settings to change: train_dataloader.batch_size=4, model.backbone.init_cfg=None; lists are "
        'key="[a,b]" or key=a,b, nested lists key="[(a,b),(c,d)]", without spaces',
    )


def parse_cfg_options(pairs: Sequence[str] | None) -> dict[str, Any] | None:
    """Return the settings in ``KEY=VALUE`` pairs, parsed as by MMEngine; None for None.

    Raises:
        UserError: brackets do not match.
    """
    if pairs is None:
        return None
    from mmengine.config import DictAction

    found = Namespace(settings={})
    parse = DictAction((), "settings")
    for pair in pairs:
        try:
            parse(argparse.ArgumentParser(), found, [pair])
        except AssertionError as error:
            raise UserError(f"--cfg-options: the brackets in {pair!r} do not match") from error
    return found.settings


Adapt = Callable[["Config", Mapping[str, Any]], Mapping[str, Any]]


def read_config(args: Namespace, parts: Sequence[str], adapt: Adapt | None = None) -> Config:
    """Return the config for the arguments of :func:`config_parser`'s parser.

    Args:
        args: the arguments.
        parts: top-level keys that the config must have.
        adapt: changes the config by a tool's own options, see :func:`mmcare.runs.load_config`.

    Raises:
        UserError: the installation is broken, or the config cannot be read or lacks a part.
    """
    if args.data == "":  # a shell variable that is not set
        raise UserError("--data takes the folder of a data set, and its path is empty: give the folder")
    if not args.data and (args.format or args.background):
        raise UserError("--format and --background say how to read one's own data: add --data FOLDER, or omit them")
    check_stack()
    data = OwnData(args.data, args.format, args.background) if args.data else None
    return load_config(args.config, parts, args.sample, parse_cfg_options(args.cfg_options), data, adapt)


def read_run_config(args: Namespace, parts: Sequence[str], adapt: Adapt | None = None) -> Config:
    """Return the config for the arguments of :func:`run_parser`'s parser, with work folder and launcher."""
    _check_launcher(args)
    cfg = read_config(args, parts, adapt)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or os.path.join("./work_dirs", Path(args.config).stem)
    return cfg


def _check_launcher(args: Namespace) -> None:
    launcher = LAUNCHERS.get(args.launcher)
    local_rank = launcher.local_rank if launcher else "LOCAL_RANK"
    # MMEngine reads LOCAL_RANK for every launcher, but does not set it for mpirun.
    os.environ["LOCAL_RANK"] = os.environ.get(local_rank, str(args.local_rank))
    if launcher and launcher.rank not in os.environ:
        raise UserError(
            f"--launcher {args.launcher} is for processes that {launcher.program} starts: use {launcher.program}"
        )
