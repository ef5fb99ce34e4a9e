"""Downloads of checkpoints into torch's hub cache."""

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
"""Seconds without data after which a download fails."""


def is_address(path: str | Path) -> bool:
    """Return whether a path is an http(s) address."""
    return urlparse(str(path)).scheme in ("http", "https")


def download(url: str, prove: Callable[[Path], Any]) -> Path:
    """Download the file at an address, unless torch's hub cache has it, and return its path in the cache.

    Args:
        url: the http(s) address.
        prove: raises UserError for a file that is incomplete or not a checkpoint; such a file is not cached.

    Raises:
        UserError: the file cannot be downloaded, or ``prove`` refuses it.
    """
    # Many addresses end in the same name, and the end of an address may not be a valid file name.
    name = re.sub(r"[^\w.-]", "_", Path(urlparse(url).path).name)[-100:]
    target = Path(torch.hub.get_dir()) / "checkpoints" / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    if is_main_process():
        _fetch(url, target, prove)
    barrier()
    _fetch(url, target, prove)  # for processes on machines with a separate cache
    return target


def _fetch(url: str, target: Path, prove: Callable[[Path], Any]) -> None:
    if target.exists():
        return
    print_log(f"downloading {url} to {target}", logger="current")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
            file = Path(folder) / "file"
            with _socket_timeout():
                torch.hub.download_url_to_file(url, str(file), progress=sys.stderr.isatty())
            prove(file)  # torch does not notice a connection that ends too early
            os.replace(file, target)
    except UserError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        raise UserError(
            f"{url} could not be downloaded ({error}): download it manually and give the path of the file"
        ) from None


@contextmanager
def _socket_timeout() -> Iterator[None]:
    """Set a timeout for new connections, which torch's download function has no argument for."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
