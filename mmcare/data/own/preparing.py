"""From a data folder to the files that MMDetection and MMSegmentation read.

::

    work_dirs/data/<name of the folder>-<fingerprint>/
        train.json, val.json, test.json     detection: COCO's format, with paths within the data folder
        train.txt, val.txt, test.txt        segmentation: names of pictures
        label_maps/                         segmentation: those drawn from polygons
        data.png                            what was found
        data.json                           the rest of a :class:`PreparedData`

The data folder itself is only read. The fingerprint is a hash of its files' names, sizes and times, of the options and
of this code. So a folder is made once and never changed: earlier trainings go on with the one that they started with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import uuid
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...files import write_file, write_picture
from . import label_maps
from .description import Description
from .folder import Folder, count, some
from .formats import read
from .splits import complete

if TYPE_CHECKING:
    from .report import Counts

BACKGROUNDS = ("listed", "extra", "ignore")
"""The values of ``--background``: pixels of no object are the first listed class, an extra class, or ignored."""
EXTRA_CLASS = "background"
_ROOT = Path("work_dirs/data")


@dataclass(frozen=True)
class OwnData:
    """A data folder, and the options for reading it."""

    folder: str
    format: str | None = None
    """One of :data:`FORMATS`; None to tell it by the files."""
    background: str | None = None
    """For segmentation, one of :data:`BACKGROUNDS`."""


@dataclass(frozen=True)
class PreparedData:
    """A data set in the format of MMDetection or MMSegmentation."""

    folder: str
    """The data folder, as an absolute path."""
    classes: list[str]
    splits: dict[str, list[dict[str, Any]]]
    """By split, the arguments for the datasets of its parts: more than one if the pictures' names end differently."""
    report: str
    """What was found, as a text of several lines."""
    without_mask: str | None
    """The place of an object that has no mask; None if all have one."""
    reduce_zero_label: bool = False
    """Whether the label 0 does not count in the label maps, and the classes start at 1."""


def prepare(data: OwnData, task: str, root: Path = _ROOT) -> PreparedData:
    """Read a data folder, and write what a training and a test need of it below ``root``, unless it is there.

    Args:
        data: the folder and how to read it.
        task: ``"detection"`` or ``"segmentation"``.
        root: the folder for what is written.

    Raises:
        UserError: the data set cannot be used, or ``root`` cannot be written.
    """
    folder = Folder(data.folder)
    if data.background and task == "detection":
        raise UserError("--background is for segmentation, and this config detects: omit the option")
    name = re.sub(r"[^\w.-]", "_", folder.path.name) or "data"
    final = Path(os.path.abspath(root)) / f"{name}-{_fingerprint(folder, data, task)}"
    if not (final / "data.json").is_file():
        temporary = final.with_name(f".making-{uuid.uuid4().hex}")
        try:
            temporary.mkdir(parents=True)
            _make(temporary, final, folder, data, task)
            os.rename(temporary, final)
        except OSError as error:
            if not (final / "data.json").is_file():  # no other process was faster
                raise UserError(
                    f"{final} cannot be written ({error.strerror or error}): remove it, or start in another folder"
                ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return PreparedData(**json.loads((final / "data.json").read_text(encoding="utf-8")))


def _fingerprint(folder: Folder, data: OwnData, task: str) -> str:
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in folder.files.items()]
    digest = hashlib.sha256(json.dumps([str(folder.path), data.format, data.background, task, files]).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


def _make(temporary: Path, final: Path, folder: Folder, data: OwnData, task: str) -> None:
    """Write the files of a data set into ``temporary``, which will be renamed to ``final``."""
    from .report import draw, tabulated

    source, description = read(folder, data.format, task)
    complete(description, folder)
    folder.check_pictures(picture.name for pictures in description.splits.values() for picture in pictures)
    if task == "detection":
        classes, reduce, unit = description.classes, False, "objects"
        counts = _count_objects(description)
        splits = {split: [_write_coco(temporary, final, split, description)] for split in description.splits}
    else:
        has_maps = any(picture.label_map for picture in description.splits["train"])
        background = _chosen_background(data, has_maps, description, folder)
        reduce, unit = background == "ignore" and has_maps, "pixels"
        classes = (*((EXTRA_CLASS,) if background == "extra" else ()), *description.classes)
        if has_maps:
            counts = _count_labels(description, folder, classes, background)
            splits = {split: _list_label_maps(temporary, final, split, description) for split in description.splits}
        else:
            counts, splits = _draw_label_maps(temporary, final, description, classes, folder)
    if not any(found[name] for found in counts["train"] for name in description.classes):
        raise UserError(
            f"the {count(len(counts['train']), 'picture')} of {folder.path} to train on have no annotated object "
            f"(read as {source}): check that their annotations are where docs/own-data.md shows"
        )
    report = tabulated(folder.path, source, classes, description, counts, unit)
    write_picture(draw(folder, classes, description, counts, unit, int(reduce)), temporary / "data.png")
    prepared = PreparedData(
        folder=str(folder.path),
        classes=[*classes],
        splits=splits,
        report=f"{report}\ndrawn in {os.path.relpath(final / 'data.png')}",
        without_mask=next(iter(_without_mask(description)), None),
        reduce_zero_label=reduce,
    )
    write_file(temporary / "data.json", json.dumps(dataclasses.asdict(prepared)).encode())


def _without_mask(description: Description) -> list[str]:
    return [
        f"the {instance.name} in {picture.name}"
        for pictures in description.splits.values()
        for picture in pictures
        for instance in picture.instances
        if not instance.segmentation and not instance.crowd
    ]


def _count_objects(description: Description) -> dict[str, list[Counts]]:
    """Return how many objects of each class the pictures of each split have."""
    return {
        split: [Counter(instance.name for instance in picture.instances) for picture in pictures]
        for split, pictures in description.splits.items()
    }


# -- detection ---------------------------------------------------------------------------------------------------------


def _write_coco(temporary: Path, final: Path, split: str, description: Description) -> dict[str, Any]:
    numbers = {name: index for index, name in enumerate(description.classes, start=1)}
    images, annotations = [], []
    for picture in description.splits[split]:
        image = {"id": len(images) + 1, "file_name": picture.name, "width": picture.width, "height": picture.height}
        images.append(image)
        for instance in picture.instances:
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image["id"],
                "category_id": numbers[instance.name],
                "bbox": instance.box,
                "area": instance.area or instance.box[2] * instance.box[3],
                "iscrowd": int(instance.crowd),
            }
            annotations.append(annotation | ({"segmentation": instance.segmentation} if instance.segmentation else {}))
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_file(temporary / f"{split}.json", json.dumps(content).encode())
    return dict(ann_file=str(final / f"{split}.json"), data_prefix=dict(img=""))


# -- segmentation ------------------------------------------------------------------------------------------------------


def _chosen_background(data: OwnData, has_maps: bool, description: Description, folder: Folder) -> str:
    if not has_maps:
        if without := _without_mask(description):
            raise UserError(
                f"segmentation needs outlines, and {without[0]} has only a box: annotate polygons, or train a detector "
                "such as detection/retinanet_care_s1"
            )
        if data.background not in ("extra", "ignore"):
            raise UserError(
                f"the polygons in {folder.path} leave pixels without a class: add --background extra if these are a "
                f"class {EXTRA_CLASS!r} of their own, or --background ignore if they do not count"
            )
    elif data.background is None:
        raise UserError(
            f"the label 0 in the label maps of {folder.path} may mean three things: add --background listed if it is "
            f"the first class in classes.txt ({description.classes[0]}), --background extra if it is a class that is "
            "not listed there, or --background ignore if it marks pixels that do not count"
        )
    if data.background == "extra" and EXTRA_CLASS in description.classes:
        raise UserError(
            f"--background extra adds a class {EXTRA_CLASS!r}, and {folder.path} has one already: use --background "
            f"{'listed' if has_maps else 'ignore'}, or rename it"
        )
    return data.background


def _count_labels(
    description: Description, folder: Folder, classes: tuple[str, ...], background: str
) -> dict[str, list[Counts]]:
    """Return how many pixels of each class the label maps of each split have."""
    first = int(background == "ignore")  # the label of the first class
    counts = {}
    seen: set[int] = set()
    for split, pictures in description.splits.items():
        counts[split] = []
        for picture in pictures:
            labels = label_maps.examine(folder, picture)
            seen |= labels.keys()
            known = {label: classes[label - first] for label in labels if first <= label < len(classes) + first}
            unknown = labels.keys() - known.keys() - {label_maps.IGNORED} - set(range(first))
            if unknown:
                raise UserError(
                    f"the label map {folder / picture.label_map} has the label {max(unknown)}, but with --background "
                    f"{background} the {len(classes)} classes ({some(classes)}) have the labels {first} to "
                    f"{len(classes) - 1 + first}: correct classes.txt, the label map or the option"
                )
            counts[split].append(Counter({name: labels[label] for label, name in known.items()}))
    if seen == {0, label_maps.IGNORED}:  # as drawn by tools that make black and white pictures
        raise UserError(
            f"the label maps in {folder.path} have only the labels 0 and {label_maps.IGNORED}, and the latter marks "
            "pixels that do not count: save the pixels of the objects with the number of their class"
        )
    return counts


def _list_label_maps(temporary: Path, final: Path, split: str, description: Description) -> list[dict[str, Any]]:
    parts = defaultdict(list)
    for picture in description.splits[split]:
        *place, name = label_maps.places(picture)
        parts[tuple(place)].append(name)
    datasets = []
    for index, ((images, suffix, maps, map_suffix), names) in enumerate(sorted(parts.items())):
        list_name = f"{split}.txt" if len(parts) == 1 else f"{split}_{index}.txt"
        write_file(temporary / list_name, "\n".join(names).encode())
        datasets.append(
            dict(
                ann_file=str(final / list_name),
                data_prefix=dict(img_path=images, seg_map_path=maps),
                img_suffix=suffix,
                seg_map_suffix=map_suffix,
            )
        )
    return datasets


def _draw_label_maps(
    temporary: Path, final: Path, description: Description, classes: tuple[str, ...], folder: Folder
) -> tuple[dict[str, list[Counts]], dict[str, list[dict[str, Any]]]]:
    import numpy as np

    if len(classes) > label_maps.IGNORED:
        raise UserError(f"{folder.path} has {len(classes)} classes, and label maps hold {label_maps.IGNORED} at most")
    counts, splits = {}, {}
    for split, pictures in description.splits.items():
        counts[split] = []
        for picture in pictures:
            labels = label_maps.draw(picture, classes, background=classes[0] == EXTRA_CLASS)
            label_maps.write(temporary / "label_maps" / f"{picture.name}.png", labels)
            values, numbers = np.unique(labels[labels != label_maps.IGNORED], return_counts=True)
            names = [classes[value] for value in values]
            counts[split].append(Counter(dict(zip(names, numbers.tolist(), strict=True))))
        write_file(temporary / f"{split}.txt", "\n".join(picture.name for picture in pictures).encode())
        place = dict(img_path="", seg_map_path=str(final / "label_maps"))
        splits[split] = [
            dict(ann_file=str(final / f"{split}.txt"), data_prefix=place, img_suffix="", seg_map_suffix=".png")
        ]
    return counts, splits
