"""The splits of a data set: a validation split where there is none, and what must be the same in all of them."""

from __future__ import annotations

import hashlib
import posixpath
from collections import defaultdict

from ...errors import UserError
from .description import Description, Picture
from .folder import Folder, some

SHARE = 0.2
"""The share of the training pictures that becomes the validation split."""


def complete(description: Description, folder: Folder) -> None:
    """Take a validation split out of the training pictures if there is none, and check the splits.

    The split depends only on the pictures' names, so that it is the same in each run and on each machine.

    Raises:
        UserError: there are no training pictures, or only one, or classes are only in another split.
    """
    splits = description.splits
    if not splits.get("train"):
        raise UserError(f"{folder.path} has pictures for {some(splits)} only: add those to train on, in a folder train")
    if splits.get("val"):
        _check_classes(description, folder)
    else:
        _split(description, folder)
    description.splits = {split: splits[split] for split in ("train", "val", "test") if splits.get(split)}
    _find_copies(description, folder)


def _split(description: Description, folder: Folder) -> None:
    pictures = description.splits["train"]
    if len(pictures) < 2:
        raise UserError(
            f"{folder.path} has only one annotated picture: one to train on and one to validate on are needed"
        )
    number = max(1, round(SHARE * len(pictures)))
    drawn = sorted(pictures, key=_lot)[:number]
    chosen = {picture.name for picture in drawn}
    description.splits["train"] = [picture for picture in pictures if picture.name not in chosen]
    description.splits["val"] = [picture for picture in pictures if picture.name in chosen]
    what = f"pictures that validate, {SHARE:.0%} of those for training, chosen by their names"
    description.problems[what] = sorted(chosen)


def _lot(picture: Picture) -> tuple[str, str]:
    return hashlib.sha256(posixpath.basename(picture.name).encode()).hexdigest(), picture.name


def _check_classes(description: Description, folder: Folder) -> None:
    """Check that no class is in another split than the training's alone, where only what occurs tells the classes."""
    if description.named_classes:
        return
    trained = {instance.name for picture in description.splits["train"] for instance in picture.instances}
    for split, pictures in description.splits.items():
        for picture in pictures:
            for instance in picture.instances:
                if instance.name not in trained:
                    raise UserError(
                        f"the splits of {folder.path} have different classes: {instance.name} is in {split} "
                        f"({picture.name}) and not in train; correct the name, add such objects to train, or list all "
                        "classes in classes.txt"
                    )


def _find_copies(description: Description, folder: Folder) -> None:
    """Note the pictures of the other splits that are also trained on."""
    by_size = defaultdict(list)
    for split, pictures in description.splits.items():
        for picture in pictures:
            by_size[folder.files[picture.name].st_size].append((split, picture.name))
    for found in by_size.values():
        if len({split for split, _ in found}) > 1:
            digests = [(split, name, hashlib.sha256((folder / name).read_bytes()).digest()) for split, name in found]
            trained = {digest for split, _, digest in digests if split == "train"}
            copies = [name for split, name, digest in digests if split != "train" and digest in trained]
            if copies:
                description.problems["pictures that are also in the training split"] += copies
