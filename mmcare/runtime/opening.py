"""The way from a path to a file that runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .attaching import certificate_of
from .certificate import Certificate
from .checks import Contents, check_file
from .errors import FileError
from .sessions import ENDINGS, Session, open_session


class ExportedFile:
    """An exported file that was checked and is ready to run; :func:`open_file` returns it.

    Attributes:
        path: its path.
        certificate: what it says of itself.
        contents: what was read of it.
        takes: its number of images, their height and their width; None for what is free.
    """

    def __init__(self, path: Path, certificate: Certificate, contents: Contents, session: Session) -> None:
        self.path, self.certificate, self.contents = path, certificate, contents
        batch, _, height, width = certificate.input.shape
        self.takes = (batch, height, width)
        self._session = session

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs for images, in the order of the certificate.

        Args:
            images: (B, 3, H, W), float32, RGB from 0 to 255.

        Raises:
            FileError: the file does not take such images, or the runtime fails.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.float32:
            raise FileError(
                f"{self.path} takes float32 images (B, 3, H, W), not {images.dtype} {images.shape}: convert them"
            )
        sizes = (images.shape[0], *images.shape[2:])
        if any(wanted not in (None, size) for wanted, size in zip(self.takes, sizes, strict=True)):
            raise FileError(
                f"{self.path} takes {_describe(self.takes)}, not {_describe(sizes)}: give such images, or export the "
                "model for others"
            )
        found = self._session.run(np.ascontiguousarray(images))
        names = [output.name for output in self.certificate.outputs]
        missing = [name for name in names if name not in found]
        if missing:
            raise FileError(f"{self.path} does not return {', '.join(missing)}: export the model again")
        return {name: found[name] for name in names}


def open_file(path: str | Path, threads: int | None = None, precision: str | None = None) -> ExportedFile:
    """Open an exported file, after checking it and its certificate.

    Args:
        path: the file that ``mmcare export`` wrote.
        threads: number of threads; by default the runtime's own choice.
        precision: of the computation, for a runtime that has several; by default its own choice.

    Raises:
        FileError: the file or its certificate is missing, damaged, changed or unknown, its runtime is not installed, or
            it refuses the file.
    """
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise FileError(f"{path} is not an exported file that runs here: give one that ends in {', '.join(ENDINGS)}")
    if threads is not None and threads < 1:
        raise FileError(f"{path} cannot run with {threads} threads: give 1 or more")
    if not path.is_file():
        raise FileError(f"there is no file {path}: give an exported file")
    contents = check_file(path)
    certificate = certificate_of(path)
    _check_contents(path, contents, certificate)
    return ExportedFile(path, certificate, contents, open_session(path, threads, precision))


def _check_contents(path: Path, contents: Contents, certificate: Certificate) -> None:
    """Raise FileError if a file takes or returns something else than its certificate says."""
    wanted = certificate.input.shape
    if contents.inputs is not None and list(contents.inputs.values()) != [wanted]:
        found = " and ".join(f"{name} {_show(shape)}" for name, shape in contents.inputs.items()) or "nothing"
        raise FileError(f"{path} takes {found}, but its certificate says {_show(wanted)}: export the model again")
    names = {output.name for output in certificate.outputs}
    if contents.outputs is not None and set(contents.outputs) != names:
        raise FileError(
            f"{path} returns {', '.join(contents.outputs)}, but its certificate says {', '.join(sorted(names))}: "
            "export the model again"
        )


def _show(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if side is None else str(side) for side in shape) + ")"


def _describe(sizes: tuple[int | None, ...]) -> str:
    batch, height, width = ("any" if size is None else size for size in sizes)
    return f"{batch} image{'s' * (batch != 1)} of {height}×{width}"
