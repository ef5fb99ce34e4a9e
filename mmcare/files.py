"""Atomic writing of files: a crash, a kill or a full disk leaves no incomplete file under the final name."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for writing; it replaces the file at ``path`` only when all of it is on disk.

    Raises:
        OSError: the file could not be written; ``filename`` is the path. An older file at the path is unchanged.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def clear_leftovers(folder: str | Path, of: str | None = None) -> list[str]:
    """Remove the files that :func:`whole_file` left in a folder when its process was killed; return their names.

    Args:
        folder: the folder.
        of: the final name of the file whose leftovers are removed; by default those of all.
    """
    name = ".+" if of is None else re.escape(of)
    leftovers = [
        path for path in Path(folder).glob(".*.partial") if re.fullmatch(rf"\.{name}\.\d+\.partial", path.name)
    ]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return [path.name for path in leftovers]


def write_file(path: str | Path, content: bytes) -> None:
    """Write a file atomically; create missing parent folders.

    Raises:
        UserError: the file cannot be written.
    """
    write_files({Path(path): content})


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files that belong together; create missing parent folders.

    All are on disk before the first one gets its name. They get them in their order.

    Raises:
        UserError: a file cannot be written; none was.
    """
    try:
        with ExitStack() as stack:
            for path, content in reversed(contents.items()):  # the stack closes them in the opposite order
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    file = stack.enter_context(whole_file(path))
                    file.write(content)
                    file.flush()
                except OSError as error:
                    raise UserError(
                        f"{path} ({len(content) / 2**20:.1f} MiB) cannot be written: {error.strerror or error}"
                    ) from error
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written: {error.strerror or error}") from error


def write_folder(path: str | Path, files: Mapping[str, bytes]) -> None:
    """Write a folder, which appears whole, and replaces a folder that is there; create missing parent folders.

    Args:
        path: the folder.
        files: the contents by the names in the folder, with ``/`` between a subfolder and a name.

    Raises:
        UserError: the folder cannot be written. An older one at the path is unchanged.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as work:
            new, old = Path(work) / "new", Path(work) / "old"
            for name, content in files.items():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                with (new / name).open("xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            if path.exists():
                os.replace(path, old)
            try:
                os.replace(new, path)
            except OSError:
                if old.exists():
                    os.replace(old, path)
                raise
    except OSError as error:
        size = sum(map(len, files.values())) / 2**20
        raise UserError(f"{path} ({size:.1f} MiB) cannot be written: {error.strerror or error}") from error


def write_picture(figure: Figure, path: str | Path) -> None:
    """Write a matplotlib figure atomically; the ending of the path selects the format.

    Raises:
        UserError: the file cannot be written.
    """
    content = io.BytesIO()
    figure.savefig(content, format=Path(path).suffix[1:], dpi=120)
    write_file(path, content.getvalue())
