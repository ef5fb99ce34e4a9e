"""The page: its scripts, the model, the runtime, and a manifest that lists them.

A page that is opened from a disk may load scripts, but no other files. So the model and the runtime are scripts, too:
parts of a gzip stream in base64. The page is the same on a server.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from ...errors import UserError
from ...files import write_folder
from .library import NAME, SCRIPT, VERSION, WASM

PAGE = ("index.html", "style.css", "files.js", "results.js", "page.js")
"""What the page has as it is."""
WORKER = ("preparing.js", "finishing.js", "worker.js")
"""The parts of the script that runs beside the page."""
MANIFEST = "manifest.js"
PART = 12 * 2**20
"""Bytes of a part before base64: engines limit the length of strings, and readers like to see progress."""
NOTICE = f"""This folder was written by `mmcare export --format web`.

{NAME} {VERSION}, which it includes as data/library-*.js and data/wasm-*.js, has the MIT License:

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
_BEFORE, _AFTER = "// Written by mmcare export.\nconst MANIFEST = JSON.parse(", ");\n"


def write_page(folder: Path, model: Path, name: str, library: dict[str, bytes]) -> None:
    """Write the folder of a page, whole or not at all.

    Args:
        folder: its path, which :func:`check_folder` has checked.
        model: an ONNX file with a certificate, of a whole model, for one image.
        name: what the page calls the model.
        library: what :func:`.library.read_library` returns.

    Raises:
        UserError: the folder cannot be written.
        FileError: the model cannot be read.
    """
    from ...runtime import open_file  # needs NumPy

    certificate = json.loads(open_file(model).certificate.to_json())
    assets = files(__package__)
    content = {asset: assets.joinpath(asset).read_bytes() for asset in PAGE}
    content["NOTICE.txt"] = NOTICE.encode()
    embedded = {
        "worker": b"".join(assets.joinpath(asset).read_bytes() for asset in WORKER),
        "library": library[SCRIPT],
        "wasm": library[WASM],
        "model": model.read_bytes(),
    }
    listed = {}
    for kind, data in embedded.items():
        parts = {f"data/{kind}-{number:02}.js": script for number, script in enumerate(_scripts(data), 1)}
        content |= parts
        sizes = [{"path": path, "size": len(script)} for path, script in parts.items()]
        listed[kind] = {"size": len(data), "parts": sizes}
    manifest = {
        "name": name,
        "runtime": f"{NAME} {VERSION}",
        "certificate": certificate,
        "files": listed,
        "contents": sorted([*content, MANIFEST]),
    }
    content[MANIFEST] = (_BEFORE + json.dumps(json.dumps(manifest, allow_nan=False)) + _AFTER).encode()
    write_folder(folder, content)


def _scripts(data: bytes) -> Iterator[bytes]:
    """Yield the scripts that hold a file; see files.js."""
    packed = gzip.compress(data, mtime=0)
    for start in range(0, len(packed), PART):
        yield b'receive("' + base64.b64encode(packed[start : start + PART]) + b'");\n'


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raise UserError if a page cannot take a folder's place, as it is there, or has other files than a page's."""
    if not (folder.exists() or folder.is_symlink()):
        return
    if not overwrite:
        raise UserError(f"{folder} exists: add --overwrite to replace a page, or give another name with -o")
    contents = _contents(folder)
    if contents is None:
        raise UserError(f"{folder} is not a page of mmcare, which --overwrite replaces: give another name with -o")
    others = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()} - contents
    if others:
        raise UserError(
            f"{folder} has files besides its page, such as {min(others)}: move them, or give another name with -o"
        )


def _contents(folder: Path) -> set[str] | None:
    """Return the names of the files of a page; None for another folder."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        if not (text.startswith(_BEFORE) and text.endswith(_AFTER)):
            return None
        return set(json.loads(json.loads(text.removeprefix(_BEFORE).removesuffix(_AFTER)))["contents"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
