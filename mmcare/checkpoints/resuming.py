"""The choice of the checkpoint from which an interrupted training resumes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile, is_zipfile

from ..errors import UserError
from .reading import read_checkpoint

if TYPE_CHECKING:
    from mmengine.config import Config

_POINTER = "last_checkpoint"
"""The file in the work folder in which MMEngine looks for the checkpoint to resume from."""


def choose_checkpoint(cfg: Config) -> tuple[str | None, str | None]:
    """Return the checkpoint from which a config with ``resume=True`` resumes.

    That is the config's ``load_from``, or the newest undamaged checkpoint in the work folder. A config without a random
    seed gets the checkpoint's, because the samplers order the training images by it.

    Returns:
        The checkpoint, or None if there is none or it is not a local file, which MMEngine then finds itself; and a
        sentence for the log if it is not the one in ``last_checkpoint``, otherwise None.

    Raises:
        UserError: the config's checkpoint or all checkpoints in the work folder are damaged, or the chosen one lacks
            part of the training state.
    """
    path, note = cfg.get("load_from"), None
    if path:
        damage = find_damage(path) if is_zipfile(path) else None
        if damage:
            raise UserError(f"{damage}: --resume without a file finds the newest undamaged checkpoint")
    else:
        pointer = Path(cfg.work_dir) / _POINTER
        name = pointer.read_text(errors="replace").strip() if pointer.is_file() else None
        if name and ("://" in name or Path(name).is_dir()):  # a server's file, or DeepSpeed's folder
            return None, None
        path, faults = _newest_whole(cfg, pointer, name)
        if path is None:
            return None, f"{_folder(cfg)} has no checkpoint to resume from, so the training starts from the beginning"
        if faults:
            note = f"{'; '.join(faults)}: resuming from the newest undamaged checkpoint, {path}"
    checkpoint = read_checkpoint(path)
    _check_state(checkpoint, path, cfg)
    randomness = cfg.get("randomness") or {}
    if randomness.get("seed") is None:
        cfg.randomness = {**randomness, "seed": checkpoint["meta"].get("seed")}
    return str(path), note


def find_damage(path: str | Path) -> str | None:
    """Return how a file written by ``torch.save`` is damaged, or None if it is not.

    Unlike torch, read the whole file and verify its checksums.
    """
    try:
        with ZipFile(path) as archive:
            part = archive.testzip()
    except Exception as error:  # a damaged file may raise anything in zipfile
        return f"{path} is damaged or truncated ({os.path.getsize(path):,} bytes; {error})"
    return part and f"{path} is damaged (in {part})"


def _newest_whole(cfg: Config, pointer: Path, name: str | None) -> tuple[Path | None, list[str]]:
    """Return the checkpoint to resume from, None if there is none, and the faults of those tried before it."""
    faults = []
    named = None
    if name:
        # The folder may have been moved, or the path may be relative to another folder.
        named = next((path for path in (_folder(cfg) / Path(name).name, Path(name)) if path.is_file()), None)
    if name is not None and named is None:
        faults.append(f"{pointer} names {name}, which does not exist" if name else f"{pointer} is empty")
    paths = _newest_first(cfg, pointer, named)
    for path in paths:
        damage = find_damage(path)
        if damage is None:
            return path, faults
        faults.append(damage)
    if faults:
        raise UserError(
            f"there is no undamaged checkpoint in {_folder(cfg)} ({'; '.join(faults)}): start again with another "
            "--work-dir, or give a checkpoint from elsewhere with --resume CHECKPOINT"
        )
    return None, faults


def _newest_first(cfg: Config, pointer: Path, named: Path | None) -> list[Path]:
    """Return the checkpoints to try: the one in ``last_checkpoint``, then those with lower numbers.

    Checkpoints saved after ``last_checkpoint`` was written come first: the process was killed between the two. Other
    higher numbers belong to a training that was abandoned when an earlier checkpoint was resumed.
    """
    hook = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    template = hook.get("filename_tmpl") or ("epoch_{}.pth" if hook.get("by_epoch", True) else "iter_{}.pth")
    pattern = re.escape(template).replace(r"\{\}", r"(\d+)")
    numbers = {path: int(found[1]) for path in _folder(cfg).glob("*") if (found := re.fullmatch(pattern, path.name))}
    paths = sorted(numbers, key=lambda path: numbers[path], reverse=True)
    if named is None:
        return paths
    written = pointer.stat().st_mtime_ns
    last = numbers.get(named, max(numbers.values(), default=0) + 1)
    newer = [path for path in paths if numbers[path] > last and path.stat().st_mtime_ns > written]
    return [*newer, named, *(path for path in paths if numbers[path] < last)]


def _folder(cfg: Config) -> Path:
    """Return where CheckpointHook saves: the work folder, or a folder of the same name in ``out_dir``."""
    out_dir = ((cfg.get("default_hooks") or {}).get("checkpoint") or {}).get("out_dir")
    return Path(out_dir) / Path(cfg.work_dir).name if out_dir else Path(cfg.work_dir)


def _check_state(checkpoint: dict[str, Any], path: str | Path, cfg: Config) -> None:
    """Refuse a checkpoint with incomplete training state, parts of which MMEngine would silently reset."""
    meta = checkpoint.get("meta") if isinstance(checkpoint.get("meta"), dict) else {}
    instead = f"start from its weights instead, without --resume and with --cfg-options load_from={path}"
    if "optimizer" in checkpoint and "message_hub" not in checkpoint:
        raise UserError(f"{path} is from another trainer, such as MMDetection 2.x, and cannot be resumed: {instead}")
    lacking = [name for name in ("epoch", "iter") if name not in meta]
    needed = ["message_hub", "optimizer", *(["param_schedulers"] if cfg.get("param_scheduler") else [])]
    lacking += [name for name in needed if name not in checkpoint]
    if lacking:
        raise UserError(
            f"{path} holds weights but not the training state ({', '.join(lacking)}), as is usual for published "
            f"checkpoints and best_*.pth: resume from an epoch_*.pth or iter_*.pth, or {instead}"
        )
