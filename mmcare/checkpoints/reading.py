"""Safe reading of untrusted checkpoint files.

A checkpoint is a pickle, and a pickle can run code. Every file is read with torch's ``weights_only`` unpickler and the
few harmless classes of :mod:`~mmcare.checkpoints.unpickling`. A file that asks for anything else is refused.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch

from ..errors import UserError
from .downloading import download, is_address
from .unpickling import Refused, only_harmless_classes


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint file without running any code from it.

    Args:
        path: a file written by ``torch.save`` or safetensors, or an http(s) address, which is downloaded to torch's
            hub cache first.
        map_location: device for the tensors, or any other value that ``torch.load`` takes; safetensors are read to the
            CPU unless it is a device.

    Returns:
        The content of the file; for safetensors a dict with ``state_dict`` and ``meta``, whose JSON values are decoded.

    Raises:
        UserError: the file does not exist, is not a checkpoint, is damaged, or holds objects other than weights.
    """
    if is_address(path):
        file = download(str(path), prove=lambda file: _read(file, "cpu", str(path)))
    else:
        file = _local_file(path)
    return _read(file, map_location, str(file))


def _local_file(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to {os.readlink(path)}, which does not exist: fix the link")
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}: check the path")
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the checkpoint file in it")
    return path


def _read(path: Path, map_location: Any, source: str) -> dict[str, Any]:
    """Read a local file; ``source`` is its name in error messages."""
    head = _first_bytes(path, source)
    if _is_safetensors(head):
        return _read_safetensors(path, map_location, source)
    _refuse_archives(path, source)
    try:
        with only_harmless_classes():
            checkpoint = torch.load(path, map_location=map_location or "cpu", weights_only=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a damaged file may raise anything in torch and the pickled classes
        raise UserError(_reason(path, source, error)) from None
    if not isinstance(checkpoint, dict):
        kind = type(checkpoint).__name__
        raise UserError(f"{source} holds a {kind} instead of named weights: give a checkpoint file")
    return checkpoint


# -- files that are not checkpoints ------------------------------------------------------------------------------------


def _first_bytes(path: Path, source: str) -> bytes:
    """Return the first bytes of a file, and refuse a file that cannot be a checkpoint."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror}): check its permissions") from None
    if not head:
        raise UserError(f"{source} is empty: get the file again")
    if not any(head):
        raise UserError(f"{source} starts with zeros only, as after a crash or a broken copy: get the file again")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise UserError(
            f"{source} is a web page, not a checkpoint: download the file itself, not the page that links to it"
        )
    if text.startswith(b"version https://git-lfs"):
        raise UserError(f"{source} is a Git LFS pointer, not the checkpoint itself: fetch it with `git lfs pull`")
    if not _is_safetensors(head) and _is_text(head):
        raise UserError(f"{source} is a text file, not a checkpoint: give a file written by torch.save")
    return head


def _is_text(head: bytes) -> bool:
    return all(byte in b"\t\r\n\f\x1b" or byte >= 32 for byte in head) and b"\x7f" not in head


def _refuse_archives(path: Path, source: str) -> None:
    if _is_program(path):
        raise UserError(f"{source} is a TorchScript program, not a checkpoint: give the weights it was exported from")
    if _is_tar(path):
        raise UserError(f"{source} is a tar archive, not a checkpoint: unpack it and give the checkpoint in it")


def _is_program(path: Path) -> bool:
    try:
        with ZipFile(path) as archive:
            return any(Path(name).name == "constants.pkl" for name in archive.namelist())
    except Exception:  # not a zip archive, or a damaged one, which is reported later
        return False


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except Exception:  # a damaged archive
        return False


# -- safetensors -------------------------------------------------------------------------------------------------------


def _is_safetensors(head: bytes) -> bool:
    """Return whether a file starts with eight bytes of length and then a JSON header."""
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def _read_safetensors(path: Path, map_location: Any, source: str) -> dict[str, Any]:
    from safetensors import safe_open

    device = str(map_location) if isinstance(map_location, str | torch.device) else "cpu"
    try:
        with safe_open(path, framework="pt", device=device) as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            meta = file.metadata() or {}
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise UserError(f"{source} is a damaged safetensors file ({_one_line(error)}): get the file again") from None
    return {"state_dict": state, "meta": {key: _from_json(value) for key, value in meta.items()}}


def _from_json(text: str) -> Any:
    """Return the decoded JSON text; the text itself if it is not JSON, as in files not written by mmcare."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


# -- why a file was not read -------------------------------------------------------------------------------------------


def _reason(path: Path, source: str, error: Exception) -> str:
    """Return why torch did not read a file; torch's own message would advise trusting the file."""
    asked_for = str(error) if isinstance(error, Refused) else next(iter(_asked_for(path)), None)
    if asked_for:
        return (
            f"{source} asks to load {_printable(asked_for)}, which is not a weight and could run code, so it was not "
            "opened: get a checkpoint with only weights, from a source that you trust"
        )
    detail = "" if isinstance(error, pickle.UnpicklingError) else f"; torch says: {_one_line(error)}"
    return (
        f"{source} is damaged, truncated or not a checkpoint ({path.stat().st_size:,} bytes{detail}): "
        "get the file again"
    )


def _asked_for(path: Path) -> list[str]:
    """Return the names of the classes and functions that a file asks for and that are refused, without running it."""
    names: set[str] = set()
    try:
        with only_harmless_classes():
            for checkpoint in [path] if is_zipfile(path) else map(_as_zip, _pickles(path)):
                names.update(torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint))
    except Exception:  # damage, or the end of the pickles
        pass
    return sorted(names)


def _pickles(path: Path) -> Iterator[bytes]:
    """Yield the pickles at the start of a file in the format before torch 1.6; the tensors' data follows them."""
    with path.open("rb") as file:
        while True:
            start = file.tell()
            for _ in pickletools.genops(file):
                pass
            length = file.tell() - start
            file.seek(start)
            yield file.read(length)


def _as_zip(content: bytes) -> io.BytesIO:
    """Return a pickle in torch's format since 1.6, the only one of which torch lists the names."""
    file = io.BytesIO()
    with ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3")
    file.seek(0)
    return file


def _one_line(error: Exception) -> str:
    """Return the first sentence of an error's message, or its type if it has none."""
    line = next(iter(str(error).strip().splitlines()), "").partition(". ")[0]
    return _printable(line) or type(error).__name__


def _printable(text: str) -> str:
    """Return the start of a text from a file, without terminal control characters."""
    return re.sub(r"[^ -~]", "?", text)[:160]
