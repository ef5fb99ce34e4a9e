"""The files of a data folder: listed once, found by name, and never looked for outside of the folder."""

from __future__ import annotations

import json
import os
import posixpath
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import UserError

PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""The endings of pictures' names, in lower case."""

MOST_PIXELS = 178_956_970
"""Larger pictures are refused, as Pillow refuses them: a file of some kilobytes can claim to be of any size."""

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "img_dir", "jpegimages")


class Folder:
    """A data folder. Its files have their paths within the folder as names, with ``/`` between the parts.

    Args:
        path: the folder.

    Raises:
        UserError: there is no such folder, or no file in it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(os.path.abspath(os.path.expanduser(path)))
        if not self.path.is_dir():
            what = "is a file" if self.path.exists() else "does not exist"
            raise UserError(f"--data takes the folder of a data set, and {path} {what}: check the path")
        self.files: dict[str, os.stat_result] = dict(sorted(_files_below(self.path)))
        if not self.files:
            raise UserError(f"the folder {path} is empty: put pictures and their annotations into it")
        self._contents: dict[str, Any] = {}

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def ending_in(self, *suffixes: str) -> list[str]:
        """Return the names of the files with these endings, which are given in lower case."""
        return [name for name in self.files if name.lower().endswith(suffixes)]

    @cached_property
    def pictures(self) -> list[str]:
        return self.ending_in(*PICTURES)

    @cached_property
    def picture_folders(self) -> list[str]:
        """The folders that have pictures in them; the folder itself is ``""``."""
        return sorted({posixpath.dirname(name) for name in self.pictures})

    @cached_property
    def _pictures_by_stem(self) -> dict[str, list[str]]:
        pictures = defaultdict(list)
        for name in self.pictures:
            pictures[stem(name)].append(name)
        return pictures

    def below(self, folder: str) -> list[str]:
        """Return the names of the pictures in a folder, at any depth."""
        start = f"{folder}/" if folder else ""
        return [name for name in self.pictures if name.startswith(start)]

    def find(self, name: str, folders: Iterable[str], where: str) -> str | None:
        """Return the picture that an annotation file means by a path; None if there is no such picture.

        Args:
            name: the path as it stands in the file.
            folders: the folders in which the path may start, the likeliest first.
            where: the place in the annotation file, for messages.

        Raises:
            UserError: the path leads out of the folder.
        """
        plain = name.replace("\\", "/")  # as written on Windows
        if plain.startswith("/") or re.match("[A-Za-z]:/", plain):
            raise UserError(f"{where} names the picture {name} by an absolute path: write its path within {self.path}")
        paths = [posixpath.normpath(posixpath.join(folder, plain)) for folder in folders]
        found = next((path for path in paths if path in self.files), None)
        if found is None and all(path.startswith("../") for path in paths):
            raise UserError(
                f"{where} names the picture {name}, which is outside of {self.path}: put it into the folder"
            )
        return found

    def picture_of(self, annotation: str) -> str | None:
        """Return the picture whose name differs from an annotation file's only in the ending and in the folder.

        Raises:
            UserError: there are several.
        """
        pictures = self._pictures_by_stem.get(stem(annotation), [])
        split = split_of(posixpath.dirname(annotation))
        beside = [name for name in pictures if posixpath.dirname(name) == posixpath.dirname(annotation)]
        alike = [name for name in pictures if split_of(posixpath.dirname(name)) == split]
        found = beside or alike or pictures
        if len(found) > 1:
            raise UserError(
                f"{self / annotation} may belong to {found[0]} or to {found[1]}: give each picture a name of its own"
            )
        return found[0] if found else None

    def text(self, name: str) -> str:
        """Return the content of a text file.

        Raises:
            UserError: it cannot be read, or is not text in UTF-8.
        """
        try:
            return (self / name).read_text(encoding="utf-8-sig")
        except OSError as error:
            raise UserError(f"{self / name} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{self / name} is not text in UTF-8: save it anew or replace it") from error

    def json(self, name: str) -> Any:
        """Return the content of a JSON file, without the picture that labelme may have put into it.

        Raises:
            UserError: it is not JSON.
        """
        if name not in self._contents:
            try:
                content = json.loads(self.text(name))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{self / name} is not JSON ({error}): replace it, or remove it") from error
            if isinstance(content, dict):
                content.pop("imageData", None)
            self._contents[name] = content
        return self._contents[name]

    def classes(self) -> tuple[str, ...] | None:
        """Return the names in ``classes.txt``, one a line; None if there is no such file.

        Raises:
            UserError: it has no name, or one name twice.
        """
        if "classes.txt" not in self.files:
            return None
        names = tuple(line.strip() for line in self.text("classes.txt").splitlines() if line.strip())
        return checked_classes(names, self / "classes.txt")

    def size_of(self, name: str) -> tuple[int, int]:
        """Return width and height of a picture in pixels, as it is shown: rotated if its EXIF data says so.

        Only the file's header is read.

        Raises:
            UserError: it is not a picture, or too large.
        """
        width, height, turned = _header(self / name)
        return (height, width) if turned else (width, height)

    def check_pictures(self, names: Iterable[str]) -> None:
        """Check that pictures can be decoded.

        Raises:
            UserError: some cannot.
        """
        faulty = [name for name in names if not _is_whole(self / name)]
        if faulty:
            raise UserError(
                f"{count(len(faulty), 'picture')} in {self.path} cannot be decoded, as the files are damaged "
                f"({some(faulty)}): replace them, or remove them with their annotations"
            )


def split_of(name: str) -> str | None:
    """Return ``"train"``, ``"val"`` or ``"test"`` if a word in a name says so, as in ``valid`` and ``train2017``."""
    return next(filter(None, map(_SPLITS.get, re.findall("[a-z]+", name.lower()))), None)


def stem(name: str) -> str:
    """Return a file's name without its folder and its ending."""
    return posixpath.splitext(posixpath.basename(name))[0]


def index_of_images(parts: list[str]) -> int | None:
    """Return where the last part of a path that says ``images`` is; None if there is none."""
    found = [index for index, part in enumerate(parts) if part.lower() in _IMAGE_FOLDERS]
    return found[-1] if found else None


def checked_classes(names: Iterable[Any], source: object) -> tuple[str, ...]:
    """Return names of classes, after checking that there are some and that they differ.

    Raises:
        UserError: the names cannot be classes.
    """
    names = tuple(names)
    if not names:
        raise UserError(f"{source} names no class: add the names of the classes")
    if odd := [name for name in names if not isinstance(name, str) or not name.strip()]:
        raise UserError(f"{source} names a class {odd[0]!r}, which is not a text: correct it")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{source} names the class {twice[0]} twice: rename one of the two")
    return names


def count(number: int, noun: str) -> str:
    """Return ``1 picture`` or ``2 pictures``."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def some(names: Iterable[object]) -> str:
    """Return the first few of many names."""
    names = [*map(str, names)]
    return ", ".join(names[:3]) + ("…" if len(names) > 3 else "")


def _files_below(root: Path) -> Iterable[tuple[str, os.stat_result]]:
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        # A link to a folder further up would be followed for ever.
        folders[:] = [] if real in seen else [name for name in folders if not _is_hidden(name)]
        if real in seen:
            continue
        seen.add(real)
        for name in files:
            path = os.path.join(folder, name)
            if not _is_hidden(name) and os.path.isfile(path):
                yield Path(path).relative_to(root).as_posix(), os.stat(path)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _header(path: Path) -> tuple[int, int, bool]:
    """Return a picture's width, its height, and whether it is shown on its side."""
    from PIL import ExifTags, Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                width, height = picture.size
                turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    except Image.DecompressionBombError:
        width = height = MOST_PIXELS
    except Exception as error:  # Pillow's decoders raise many kinds
        raise UserError(
            f"{path} is not a picture that can be decoded: replace it, or remove it with its annotations"
        ) from error
    if width * height > MOST_PIXELS:
        raise UserError(
            f"{path} would have more than {MOST_PIXELS // 10**6} million pixels when decoded: cut it into smaller "
            "pictures, or remove it"
        )
    return width, height, turned


def _is_whole(path: Path) -> bool:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as picture:
                picture.draft("RGB", (1, 1))  # JPEG is decoded at an eighth of its size, which is faster
                picture.load()
    except Exception:
        return False
    return True
