"""Train a detector, segmentor or classifier: ``mmcare train CONFIG``, with MMDetection's options."""

from __future__ import annotations

import errno
import logging
import sys
from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...data import innermost_datasets
from ...errors import UserError
from ...files import write_file
from ...runs import (
    RECIPES,
    TRACKERS,
    apply_recipe,
    build_runner,
    check_checkpoint,
    check_inputs,
    check_start,
    explain_config_faults,
    track,
)
from .. import read_run_config, run_parser

if TYPE_CHECKING:
    from mmengine.config import Config

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def parse_args() -> Namespace:
    parser = run_parser("Train a detector, segmentor or classifier.")
    parser.add_argument("--amp", action="store_true", help="train in mixed precision (bfloat16 on a CPU)")
    parser.add_argument(
        "--auto-scale-lr", action="store_true", help="scale the learning rate with the total batch size"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="resume from this checkpoint, or without a path from the newest undamaged one in the work folder",
    )
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        help="train with these settings instead of the config's: "
        + "; ".join(f"{name}, {purpose}" for name, purpose in RECIPES.items()),
    )
    parser.add_argument(
        "--track", choices=TRACKERS, help="also record losses and metrics with this tracker, on this machine"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = read_run_config(args, ("model", "train_dataloader", "train_cfg", "optim_wrapper"), partial(adapt, args))
    if args.auto_scale_lr:
        scale_lr(cfg)
    start = cfg.get("load_from")
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
    if cfg.get("load_from"):
        check_checkpoint(cfg.load_from)
    refuse_overwriting(cfg)
    if args.data:
        keep_picture(cfg)
    logging.raiseExceptions = False  # on a full disk, logging would print a stack trace for each line
    try:
        train(cfg, args, start)
    except KeyboardInterrupt:
        from mmengine.dist import is_main_process

        if is_main_process():
            print(f"interrupted: --resume continues from the last checkpoint in {cfg.work_dir}", file=sys.stderr)
        sys.exit(130)  # 128 + SIGINT, as in shells
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise UserError(
            f"{error.filename or cfg.work_dir} could not be written ({error.strerror}): free some space, and continue "
            "from the last checkpoint, which is undamaged, with --resume"
        ) from error


def adapt(args: Namespace, cfg: Config, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Change a config as --recipe and --track say; return the --cfg-options that are still to be applied."""
    if args.track:
        track(cfg, args.track)
    return apply_recipe(cfg, args.recipe, options, args.launcher) if args.recipe else options


def train(cfg: Config, args: Namespace, start: str | None) -> None:
    """Train; if there is nothing to resume, start from the weights in ``start``, if any."""
    from ...checkpoints import choose_checkpoint, guard_checkpoint_saving

    checkpoint, note = choose_checkpoint(cfg) if cfg.get("resume") else (None, None)
    if checkpoint:
        cfg.load_from = checkpoint  # MMEngine would use the one in last_checkpoint, even if it is damaged
    elif note:
        cfg.resume, cfg.load_from = False, start
        if start:
            check_checkpoint(start)
    if args.recipe and not cfg.get("resume"):
        check_start(cfg, args.recipe)
    check_inputs(cfg, splits=("train", "val"), weights=True)
    if args.amp:
        enable_amp(cfg)
    guard_checkpoint_saving(cfg)
    with explain_config_faults(cfg, splits=("train", "val")):
        runner = build_runner(cfg, require_all=cfg.get("resume", False))
        runner.register_hook(dict(type="mmcare.FiniteLossHook"))
        if note:
            runner.logger.warning(note)
        runner.train()


def scale_lr(cfg: Config) -> None:
    if not {"enable", "base_batch_size"} <= set(cfg.get("auto_scale_lr") or {}):
        raise UserError(
            f"--auto-scale-lr needs auto_scale_lr = dict(enable=False, base_batch_size=…) in {cfg.filename}, with the "
            "batch size for which its learning rate was chosen"
        )
    cfg.auto_scale_lr.enable = True


def refuse_overwriting(cfg: Config) -> None:
    """Refuse a work folder with checkpoints of another training, which this training would overwrite."""
    folder = Path(cfg.work_dir)
    source = cfg.get("load_from")
    resumed_here = cfg.get("resume") and (not source or Path(source).resolve().parent == folder.resolve())
    checkpoints = sorted(path.name for path in folder.glob("*.pth"))
    if checkpoints and not resumed_here:
        raise UserError(
            f"{folder} already has checkpoints ({checkpoints[0]}…) that this training would overwrite: continue that "
            "training with --resume, or give another --work-dir"
        )


def keep_picture(cfg: Config) -> None:
    """Copy the picture of one's own data to the work folder."""
    drawn = Path(next(innermost_datasets(cfg.train_dataloader.dataset)).ann_file).with_name("data.png")
    kept = Path(cfg.work_dir) / "data.png"
    if drawn.is_file() and not kept.exists():
        write_file(kept, drawn.read_bytes())


def enable_amp(cfg: Config) -> None:
    from mmengine.device import get_device

    wrapper = cfg.optim_wrapper
    kind = wrapper.get("type", "OptimWrapper")
    kind = getattr(kind, "__name__", kind)  # MMEngine's pure Python configs have classes instead of names
    if kind not in ("OptimWrapper", "AmpOptimWrapper"):
        raise UserError(f"--amp replaces an OptimWrapper, and {cfg.filename} has a {kind}: remove one of the two")
    device = get_device()
    if device == "cpu":
        wrapper.type = "mmcare.CpuAmpOptimWrapper"
        for option in ("loss_scale", "dtype"):
            wrapper.pop(option, None)
    elif device == "mps":
        raise UserError("--amp: MMEngine has no mixed precision for Apple's GPUs, omit the option")
    elif kind == "OptimWrapper":
        wrapper.type = "AmpOptimWrapper"
        wrapper.loss_scale = "dynamic"
