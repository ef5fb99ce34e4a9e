"""The way from a config and a checkpoint to a page."""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ..exporting import export
from ..targets import PARTS
from .library import read_library
from .page import check_folder, write_page

if TYPE_CHECKING:
    from mmengine.config import Config


def export_page(
    config: str | Path | Config,
    checkpoint: str | Path,
    path: str | Path,
    onnxruntime_web: str | Path | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """Write a folder with a page that runs a trained model in a browser, and shows what it finds in pictures.

    The page has all that it needs. It opens from a disk as well as from a server, and connects to nothing.

    Args:
        config, checkpoint: as for :func:`mmcare.export.export`.
        path: the folder to write.
        onnxruntime_web: this package, as npm packs it or unpacked; by default it is taken from the cache, or from npm.
        overwrite: replace a page that is there already.
        options: those of :func:`mmcare.export.export` for an ONNX file. Without ``shape`` the page takes pictures of
            any size.

    Returns:
        The path.

    Raises:
        UserError: as for :func:`mmcare.export.export`; onnxruntime-web is not to be had; or the folder is there and not
            a page.
    """
    path = Path(path)
    if options.get("part", PARTS[0]) != PARTS[0]:
        raise UserError(f"a page shows what a whole model finds, not a {options['part']}: omit --part")
    if options.get("batch", 1) != 1:
        raise UserError("a page takes one picture at a time: omit --batch")
    check_folder(path, overwrite)
    library = read_library(onnxruntime_web)
    options["dynamic"] = options.get("dynamic", False) or options.get("shape") is None
    with TemporaryDirectory(prefix="mmcare-page-") as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = export(config, checkpoint, Path(folder) / "model.onnx", **options)
        name = config if isinstance(config, str | Path) else config.filename
        write_page(path, model, Path(name or "model").stem, library)
    for warning in caught:  # when the page is there
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return path
