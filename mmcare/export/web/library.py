"""onnxruntime-web, which runs ONNX files in a browser: its files, from npm or from a place that the user gives."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
import tarfile
from hashlib import sha256, sha512
from pathlib import Path
from tempfile import TemporaryDirectory

from ...errors import UserError

NAME = "onnxruntime-web"
VERSION = "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of the package, as npm has it."""
SCRIPT = "dist/ort.wasm.bundle.min.mjs"
WASM = "dist/ort-wasm-simd-threaded.wasm"
FILES = {
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""The files of the package that a page has, and their SHA-256."""


def read_library(source: str | Path | None) -> dict[str, bytes]:
    """Return the content of :data:`FILES`.

    Args:
        source: the package as npm packs it (a .tgz), or the folder of an unpacked one; by default it is taken from the
            cache, or from npm.

    Raises:
        UserError: it is not there, not this release, or was changed; or npm is missing or fails.
    """
    if source is None:
        return _read_package(_cached())
    source = Path(source)
    if source.is_dir():
        return _read_folder(source)
    if not source.is_file():
        raise UserError(f"there is no {source}: give the folder or the .tgz of {NAME} {VERSION} as --{NAME}")
    if not _is_package(source):
        raise UserError(
            f"{source} is not {NAME} {VERSION} as npm has it, or was changed: give this release as --{NAME}"
        )
    return _read_package(source)


def _read_folder(folder: Path) -> dict[str, bytes]:
    files = {}
    for name, wanted in FILES.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{folder} has no {name}: give the folder of {NAME} {VERSION} as --{NAME}")
        files[name] = path.read_bytes()
        if sha256(files[name]).hexdigest() != wanted:
            raise UserError(f"{path} is not that of {NAME} {VERSION}, or was changed: give this release as --{NAME}")
    return files


def _read_package(path: Path) -> dict[str, bytes]:
    """Return the files of a package that was checked."""
    with tarfile.open(path) as package:
        return {name: package.extractfile(f"package/{name}").read() for name in FILES}


def _is_package(path: Path) -> bool:
    digest = sha512()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return f"sha512-{base64.b64encode(digest.digest()).decode()}" == INTEGRITY


def _cached() -> Path:
    """Return the path of the package in the cache, where it is put first if it is not there."""
    folder = Path(os.environ.get("MMCARE_CACHE") or "~/.cache/mmcare").expanduser()
    path = folder / f"{NAME}-{VERSION}.tgz"
    if path.is_file() and _is_package(path):
        return path
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"a page needs {NAME} {VERSION} from npm, which is not installed: install npm, or give the package as "
            f"--{NAME}"
        )
    print(f"getting {NAME} {VERSION} from npm for {path}", file=sys.stderr)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".download-") as work:
            command = [npm, "pack", f"{NAME}@{VERSION}", "--ignore-scripts", "--pack-destination", work]
            done = subprocess.run(command, cwd=work, capture_output=True, text=True)
            packed = Path(work) / path.name
            if done.returncode or not packed.is_file():
                raise UserError(
                    f"npm could not get {NAME} {VERSION} ({_reason(done.stderr)}): give the package as --{NAME}"
                )
            if not _is_package(packed):
                raise UserError(f"what npm got is not {NAME} {VERSION}, or was changed: give the package as --{NAME}")
            os.replace(packed, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): set MMCARE_CACHE to another folder") from None
    return path


def _reason(printed: str) -> str:
    """Return what npm says went wrong, without its codes."""
    lines = [line.removeprefix("npm error").strip() for line in printed.splitlines() if line.startswith("npm error")]
    return next((line for line in lines if line and not line.startswith(("code ", "errno ", "syscall "))), "no reason")
