"""What the command lines share: their options, the way from a config to a Runner, and how a mistake is told.

MMEngine is imported inside the functions, so that a tool can start, and say in a sentence what is wrong, where MMEngine
itself cannot be imported.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ..errors import UserError
from ..stack import check_stack

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.runner import Runner

TASKS = {"mmdet": "detection", "mmseg": "segmentation"}
"""The task of a config, by its ``default_scope``."""

_LAUNCHERS = {
    "pytorch": ("torchrun", "RANK"),
    "slurm": ("srun", "SLURM_PROCID"),
    "mpi": ("mpirun", "OMPI_COMM_WORLD_RANK"),
}
"""For each of ``--launcher``: the program that starts the processes, and the variable that tells each its rank."""

_LOCAL_RANKS = {"slurm": "SLURM_LOCALID", "mpi": "OMPI_COMM_WORLD_LOCAL_RANK"}
"""The variable that tells each process its rank on its machine, where that is not ``LOCAL_RANK``."""

_PATIENCE = 15
"""Seconds for which a process of a distributed run leaves it to the first one to tell what is wrong."""


def run(main: Callable[[], None]) -> None:
    """Runs a tool. A mistake of the user's ends it with one sentence and exit status 2; a bug keeps its stack trace.

    In a distributed run the first process tells it, for all. The others wait for their end, which their launcher brings
    as soon as the first has ended; if they went before it, the launcher would end it before it could speak. One that
    still lives after that has a trouble of its own, such as a file missing on its machine, and tells it. Nor do they
    tell of the connection that they lose when the first ends.
    """
    try:
        main()
        _disconnect()
    except Exception as error:
        if any(os.environ.get(rank, "0") != "0" for _, rank in _LAUNCHERS.values()):
            time.sleep(_PATIENCE)
        sentence = _sentence(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)


def _disconnect() -> None:
    """Ends a distributed run's connections, left open by MMEngine: gloo's threads may abort a process at its end."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _sentence(error: Exception) -> str | None:
    """What to tell the user about an error, None where the error is not the user's."""
    if isinstance(error, UserError):
        # From a dataloader's worker process torch hands the error over with the worker's stack trace as its message.
        text = str(error)
        return text.rstrip().rpartition(f"{type(error).__name__}: ")[2] if "Original Traceback" in text else text
    # An exception that MMEngine's builder itself raises, and nothing below it, is about the config: a type that does
    # not exist, or arguments that do not go with it.
    origin = traceback.extract_tb(error.__traceback__)[-1]
    if Path(origin.filename).parts[-3:] == ("mmengine", "registry", "build_functions.py"):
        return f"the config does not fit what it names: {_first_sentence(error)}"
    return None


def _first_sentence(error: Exception) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else error  # a KeyError's text has quotes
    text = " ".join(str(text).split())
    return text.partition(". ")[0][:300] or type(error).__name__


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are told as every other mistake is."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the options")


def config_parser(description: str) -> Parser:
    """A parser for a tool that reads a config; :func:`load_config` takes its arguments."""
    check_stack()
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
    """A parser for a tool that runs a config; :func:`load_run_config` takes its arguments."""
    parser = config_parser(description)
    parser.add_argument("--work-dir", help="folder for logs and checkpoints (default: ./work_dirs/<config's name>)")
    parser.add_argument("--launcher", choices=["none", *_LAUNCHERS], default="none", help="what starts the processes")
    # Not for people: torch.distributed.launch passes it on to each process, under one name or the other.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def add_cfg_options(parser: Parser) -> None:
    """Adds MMEngine's ``--cfg-options``, which complains of what it cannot read."""
    from mmengine.config import DictAction

    class CfgOptions(DictAction):
        def __call__(self, parser, namespace, values, option_string=None) -> None:
            for pair in values:
                key, equals, _ = pair.partition("=")
                if not equals or not all(key.split(".")):
                    parser.error(f"--cfg-options takes pairs like model.backbone.arch=s1, not {pair!r}")
            try:
                super().__call__(parser, namespace, values, option_string)
            except AssertionError as error:  # brackets that do not match
                parser.error(f"--cfg-options: {error}")

    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=CfgOptions,
        metavar="KEY=VALUE",
        help="settings of the config to change: train_dataloader.batch_size=4, model.backbone.init_cfg=None; a list as "
        'key="[a,b]" or key=a,b, nested as key="[(a,b),(c,d)]", without blanks',
    )


def load_config(args: argparse.Namespace, parts: Sequence[str]) -> Config:
    """The config that the arguments ask for: the file, then the sample data set over it, then ``--cfg-options``.

    Args:
        args: as :func:`config_parser`'s parser returns them.
        parts: what the config must have for the run.

    Raises:
        UserError: the file cannot be read or lacks a part, an option does not fit it, or a package is missing.
    """
    cfg = _read_config(args.config)
    task_of(cfg)
    absent = [part for part in parts if not cfg.get(part)]
    if absent:
        raise UserError(f"{args.config} has no {' and no '.join(absent)}: give a complete config")
    check_stack(needs=(cfg.default_scope,))
    if args.sample:
        from ..data.sample import prepare
        from ..data.sample.overlay import overlay_sample

        overlay_sample(cfg, prepare())
    if args.cfg_options:
        try:
            cfg.merge_from_dict(args.cfg_options)
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(f"--cfg-options does not fit {args.config}: {_first_sentence(error)}") from error
    return cfg


def load_run_config(args: argparse.Namespace, parts: Sequence[str]) -> Config:
    """:func:`load_config`'s config, with the work folder and the launcher that :func:`run_parser`'s arguments say."""
    _check_launcher(args)
    cfg = load_config(args, parts)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or os.path.join("./work_dirs", Path(args.config).stem)
    return cfg


def _check_launcher(args: argparse.Namespace) -> None:
    local_rank = os.environ.get(_LOCAL_RANKS.get(args.launcher, "LOCAL_RANK"), str(args.local_rank))
    os.environ["LOCAL_RANK"] = local_rank  # where MMEngine looks for it, but with mpirun does not put it
    if args.launcher != "none":
        program, rank = _LAUNCHERS[args.launcher]
        if rank not in os.environ:
            raise UserError(f"--launcher {args.launcher} is for processes that {program} starts: start it with that")


def _read_config(path: str) -> Config:
    from mmengine.config import Config

    if not Path(path).is_file():
        raise UserError(f"there is no config {path}: check the path (relative ones start at {os.getcwd()})")
    try:
        return Config.fromfile(path)
    except Exception as error:  # a config is a program, which may fail in any way
        lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
        place = f"line {lines[-1].lineno} of {lines[-1].filename}" if lines else path
        reason = f"{type(error).__name__}: {_first_sentence(error)}"
        raise UserError(f"the config cannot be read, for an error in {place}: {reason}") from error


def task_of(cfg: Config) -> str:
    """``"detection"`` or ``"segmentation"``, told from the config's ``default_scope``."""
    scope = cfg.get("default_scope")
    if scope not in TASKS:
        raise UserError(
            f"{cfg.filename} says default_scope = {scope!r}: the tools serve {' and '.join(map(repr, TASKS))}"
        )
    return TASKS[scope]


def check_checkpoint(path: str) -> None:
    """Refuses a checkpoint that is not there; one behind an address is left to whoever loads it."""
    if "://" not in path and not Path(path).expanduser().is_file():
        raise UserError(f"there is no checkpoint {path}: check the path (relative ones start at {os.getcwd()})")


def build_runner(cfg: Config, require_all: bool) -> Runner:
    """The Runner of a config, one that reads no checkpoint unsafely and accepts none that does not fit the model.

    Args:
        cfg: the config, complete.
        require_all: whether a checkpoint must hold every weight of the model, as for testing and resuming.

    Raises:
        UserError: the run cannot be distributed here, the work folder cannot be made, or the model cannot be built as
            the config says.
    """
    from mmengine.device import get_device
    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner

    from ..checkpoints.reading import guard_checkpoint_loading
    from ..runs.bad_data import name_bad_data
    from ..runs.distributed import CpuRunner, check_processes

    on_cpus = cfg.launcher != "none" and get_device() == "cpu"
    if cfg.launcher != "none":
        check_processes(cfg.launcher)
    if on_cpus and "runner_type" in cfg:
        raise UserError(
            f"--launcher {cfg.launcher} needs GPUs for a config with a runner_type of its own, {cfg.runner_type}, and "
            "this machine has none that torch can use"
        )
    try:
        os.makedirs(cfg.work_dir, exist_ok=True)
    except OSError as error:
        raise UserError(f"the work folder {cfg.work_dir} cannot be made: {error.strerror}") from error
    guard_checkpoint_loading()
    fit = dict(type="mmcare.CheckpointFitHook", require_all=require_all)
    # A config that an earlier run wrote to its work folder has that run's hook already.
    others = [hook for hook in cfg.get("custom_hooks") or [] if hook["type"] != fit["type"]]
    cfg.custom_hooks = [*others, fit]
    kind = CpuRunner if on_cpus else Runner
    return name_bad_data(RUNNERS.build(cfg) if "runner_type" in cfg else kind.from_cfg(cfg))
