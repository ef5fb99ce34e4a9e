"""A check for missing input files before anything is built.

MMEngine opens the data set and the ImageNet weights one after the other, after it has built the model. Users who start
a config for the first time would learn of missing files one failed run at a time. This check reports all of them at
once, with their download pages.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import innermost_datasets, is_pretrained, type_name
from ..errors import UserError

if TYPE_CHECKING:
    from mmengine.config import Config

DATASETS = {
    "CocoDataset": ("COCO 2017", "https://cocodataset.org/#download"),
    "ADE20KDataset": ("ADE20K", "http://sceneparsing.csail.mit.edu/"),
    "ImageNet": ("ImageNet-1K", "https://www.image-net.org/download.php"),
}
"""Names and download pages of the data sets in the configs, by dataset type."""

WEIGHTS = {
    "CARE": "https://github.com/zhouyuan888888/CARE-Transformer",
    "CASViT": "https://github.com/Tianfang-Zhang/CAS-ViT",
}
"""Download pages of the authors' ImageNet weights, by backbone type."""

_PREFIXES = {"img": "images", "img_path": "images", "seg": "label maps", "seg_map_path": "label maps"}
_PURPOSES = {"train": "to train on", "val": "to validate on", "test": "to test on"}


@dataclass(frozen=True)
class _Need:
    """A file or folder that the run reads."""

    path: str
    what: str
    source: str | None
    is_folder: bool = False


def check_inputs(cfg: Config, splits: Sequence[str], weights: bool) -> None:
    """Check that all local files and folders that a run reads exist.

    Args:
        cfg: the complete config, with the options of the command line.
        splits: the splits that the run uses: "train", "val", "test".
        weights: whether the run initializes the model, and so reads the files of ``init_cfg``.

    Raises:
        UserError: files are missing; the message lists all of them, with download pages and how to run without them.
    """
    pretrained = dict(_pretrained(cfg.get("model"), "model")) if weights else {}
    lacking = _lacking([*_of_splits(cfg, splits), *pretrained.values()])
    if not lacking:
        return

    lines = ["files that this run needs are missing:"]
    lines += [
        f"  {path}: {need.what}, {fault}" + (f"; from {need.source}" if need.source else "")
        for path, (need, fault) in lacking.items()
    ]
    if not all(os.path.isabs(path) for path in lacking):
        lines.append(f"Relative paths start at {os.getcwd()}.")
    if any(need not in pretrained.values() for need, _ in lacking.values()):
        lines.append("To try this config without its data set, add --sample.")
    absent = [f"{key}=None" for key, need in pretrained.items() if need.path in lacking]
    if absent:
        lines.append(f"To train without these weights, add --cfg-options {' '.join(absent)}")
    raise UserError("\n".join(lines))


def missing_inputs(cfg: Config, splits: Sequence[str]) -> list[str]:
    """Return the local files and folders of the data of some splits that cannot be used."""
    return list(_lacking(_of_splits(cfg, splits)))


def _of_splits(cfg: Config, splits: Sequence[str]) -> Iterator[_Need]:
    for split in splits:
        yield from _of_dataloader(cfg.get(f"{split}_dataloader"), split)
        yield from _of_evaluator(cfg.get(f"{split}_evaluator"))


def _lacking(needs: Iterable[_Need]) -> dict[str, tuple[_Need, str]]:
    """Return the needs that are not met and why, by path."""
    lacking: dict[str, tuple[_Need, str]] = {}
    for need in needs:
        fault = None if _is_remote(need.path) else _fault(need)
        if fault:
            lacking.setdefault(need.path, (need, fault))  # the evaluator reads the same annotations as the dataset
    return lacking


def _of_dataloader(dataloader: dict[str, Any] | None, split: str) -> Iterator[_Need]:
    for dataset in innermost_datasets((dataloader or {}).get("dataset")):
        if (dataset.get("backend_args") or {}).get("backend", "local") != "local":
            continue
        root = dataset.get("data_root") or ""
        kind = type_name(dataset)
        name, source = kind or "the dataset", None
        if not (dataset.get("metainfo") or {}).get("classes"):  # with classes of its own, it is another data set
            name, source = DATASETS.get(kind, (name, source))
        purpose = _PURPOSES[split]
        if dataset.get("ann_file"):
            yield _Need(os.path.join(root, dataset["ann_file"]), f"{name}'s annotations {purpose}", source)
        prefixes = dataset.get("data_prefix") or {}
        if not isinstance(prefixes, dict) or dataset.get("split"):  # MMPretrain's: a folder, named after the split
            prefixes = {"img": prefixes or dataset["split"]}
        for key, prefix in prefixes.items():
            if prefix or root:
                what = f"{name}'s {_PREFIXES.get(key, key)} {purpose}"
                yield _Need(os.path.join(root, prefix or ""), what, source, is_folder=True)


def _of_evaluator(evaluator: dict[str, Any] | list[dict[str, Any]] | None) -> Iterator[_Need]:
    for metric in evaluator if isinstance(evaluator, list) else [evaluator or {}]:
        if metric.get("ann_file") and (metric.get("backend_args") or {}).get("backend", "local") == "local":
            yield _Need(metric["ann_file"], f"the annotations that {type_name(metric)} compares with", None)


def _pretrained(node: Any, key: str) -> Iterator[tuple[str, _Need]]:
    """Yield every ``init_cfg`` of type Pretrained in a model's config, with its key for ``--cfg-options``."""
    if isinstance(node, dict):
        inits = node.get("init_cfg")
        for init in inits if isinstance(inits, (list, tuple)) else [inits]:
            if is_pretrained(init) and init.get("checkpoint"):
                owner = type_name(node)
                path = os.path.expanduser(init["checkpoint"])
                yield f"{key}.init_cfg", _Need(path, f"pretrained weights of {owner}", WEIGHTS.get(owner))
        for name, child in node.items():
            yield from _pretrained(child, f"{key}.{name}")
    elif isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            yield from _pretrained(child, f"{key}.{index}")


def _is_remote(path: str) -> bool:
    return "://" in path


def _fault(need: _Need) -> str | None:
    """Return the fault of a path, or None."""
    path = Path(need.path)
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        dangling = next((place for place in (path, *path.parents) if place.is_symlink() and not place.exists()), None)
        return (
            f"missing: {dangling} is a link to {os.readlink(dangling)}, which does not exist" if dangling else "missing"
        )
    except OSError as error:
        return f"unreadable ({error.strerror})"
    if path.is_dir() != need.is_folder:
        return "a file where a folder is expected" if need.is_folder else "a folder where a file is expected"
    if need.is_folder:
        with os.scandir(path) as entries:  # reads a single entry; COCO's folder has 118,287
            return None if any(entries) else "an empty folder"
    return None if size else "an empty file"
