"""Checkpoints behind an address, fetched once into torch's hub cache."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.logging import print_log

from ..errors import UserError

SILENCE = 60
"""Seconds for which a server may say nothing."""


def is_address(path: str | Path) -> bool:
    """Return whether a checkpoint is to be downloaded."""
    return urlparse(str(path)).scheme in ("http", "https")


def download(url: str, prove: Callable[[Path], Any]) -> Path:
    """Return where torch's hub cache has the file at an address, after downloading it where it is not there yet.

    Args:
        url: the http(s) address.
        prove: raises UserError for a file that is not whole, or none that is of use. What it refuses is not kept.

    Raises:
        UserError: the file cannot be had, or ``prove`` refuses it.
    """
    # Many addresses end in the same name, and what they end in need not be fit for a file's name.
    name = re.sub(r"[^\w.-]", "_", Path(urlparse(url).path).name)[-100:]
    target = Path(torch.hub.get_dir()) / "checkpoints" / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    if is_main_process():
        _fetch(url, target, prove)
    barrier()
    _fetch(url, target, prove)  # for processes on machines with another cache
    return target


def _fetch(url: str, target: Path, prove: Callable[[Path], Any]) -> None:
    if target.exists():
        return
    print_log(f"downloading {url} to {target}", logger="current")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
            file = Path(folder) / "file"
            with _impatience():
                torch.hub.download_url_to_file(url, str(file), progress=sys.stderr.isatty())
            prove(file)  # torch takes the end of a connection for the end of the file
            os.replace(file, target)
    except UserError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        raise UserError(
            f"{url} could not be downloaded ({error}): download it yourself and give the file's path"
        ) from None


@contextmanager
def _impatience() -> Iterator[None]:
    """Let connections made meanwhile fail after a silence; torch's download has no such argument."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
