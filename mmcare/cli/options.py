"""The options that the tools share, and the config that they ask for.

The parsers need neither torch nor MMEngine: ``--help`` answers at once, and a wrong option is told on a machine where
these are broken. What the options mean is found out afterwards, when the installation has been checked.
"""

from __future__ import annotations

import argparse
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import UserError
from ..runs import LAUNCHERS, load_config
from ..stack import check_stack

if TYPE_CHECKING:
    from mmengine.config import Config


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are told like every other mistake."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the options")


def config_parser(description: str) -> Parser:
    """Return a parser for a tool that reads a config; :func:`read_config` takes its arguments."""
    parser = Parser(description=description)
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--sample",
        action="store_true",
        help="run on a small generated data set, with a schedule to match, instead of the config's own",
    )
    add_cfg_options(parser)
    return parser


def run_parser(description: str) -> Parser:
    """Return a parser for a tool that runs a config; :func:`read_run_config` takes its arguments."""
    parser = config_parser(description)
    parser.add_argument("--work-dir", help="folder for logs and checkpoints (default: ./work_dirs/<config's name>)")
    parser.add_argument("--launcher", choices=["none", *LAUNCHERS], default="none", help="what starts the processes")
    # Not for people: torch.distributed.launch passes it on to each process, under one name or the other.
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
    """Add ``--cfg-options``, whose pairs :func:`parse_cfg_options` takes."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=_Pairs,
        metavar="KEY=VALUE",
        help="settings of the config to change: train_dataloader.batch_size=4, model.backbone.init_cfg=None; a list as "
        'key="[a,b]" or key=a,b, nested as key="[(a,b),(c,d)]", without blanks',
    )


def parse_cfg_options(pairs: Sequence[str] | None) -> dict[str, Any] | None:
    """Return the settings in ``KEY=VALUE`` pairs as MMEngine reads them; None for None.

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


def read_config(args: Namespace, parts: Sequence[str]) -> Config:
    """Return the config that the arguments of :func:`config_parser`'s parser ask for.

    Args:
        args: the arguments.
        parts: the top-level keys that the config must have.

    Raises:
        UserError: the installation is broken, or the config cannot be read or lacks a part.
    """
    check_stack()
    return load_config(args.config, parts, args.sample, parse_cfg_options(args.cfg_options))


def read_run_config(args: Namespace, parts: Sequence[str]) -> Config:
    """Return the config for :func:`run_parser`'s arguments, with the work folder and the launcher that they say."""
    _check_launcher(args)
    cfg = read_config(args, parts)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or os.path.join("./work_dirs", Path(args.config).stem)
    return cfg


def _check_launcher(args: Namespace) -> None:
    launcher = LAUNCHERS.get(args.launcher)
    local_rank = launcher.local_rank if launcher else "LOCAL_RANK"
    # MMEngine looks for it there, whatever the launcher, but with mpirun does not put it there.
    os.environ["LOCAL_RANK"] = os.environ.get(local_rank, str(args.local_rank))
    if launcher and launcher.rank not in os.environ:
        raise UserError(
            f"--launcher {args.launcher} is for processes that {launcher.program} starts: start it with that"
        )
