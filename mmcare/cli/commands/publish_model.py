"""Publish a checkpoint without its training state: ``mmcare publish IN OUT``."""

from __future__ import annotations

import hashlib
import io
import json
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...files import write_file
from ...stack import check_stack
from .. import Parser

FORMATS = {"pth": ".pth", "safetensors": ".safetensors"}
# The metadata of a release. A trainer's other metadata, such as paths and the name of the machine, is private.
KEPT = ("cfg", "dataset_meta", "CLASSES", "PALETTE", "epoch", "iter", "time")


def parse_args() -> Namespace:
    parser = Parser(description="Publish a checkpoint: keep only the weights and the metadata that describes them.")
    parser.add_argument("input", metavar="IN", help="checkpoint file, or its http(s) address")
    parser.add_argument(
        "output",
        metavar="OUT",
        help="name of the release; the first 8 hex digits of its SHA-256 are added: retinanet.pth becomes "
        "retinanet-0123abcd.pth",
    )
    parser.add_argument(
        "--weights",
        choices=["ema", "raw"],
        help="averaged (EMA) or raw weights, if there are both (default: those that the trainer evaluates)",
    )
    parser.add_argument("--format", choices=list(FORMATS), help="file format (default: from the ending of OUT, or pth)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_stack()
    stem, kind = name_and_format(args.output, args.format)
    content = release(args.input, args.weights, kind)
    target = Path(f"{stem}-{hashlib.sha256(content).hexdigest()[:8]}{FORMATS[kind]}")
    if target.exists() and target.read_bytes() != content:
        raise UserError(f"{target} exists with other content: move it away, or give another name")
    write_file(target, content)
    print(f"{target} ({len(content) / 2**20:.1f} MiB)")


def name_and_format(output: str, kind: str | None) -> tuple[str, str]:
    """Return OUT without its ending, and the format."""
    stem, suffix = os.path.splitext(output)
    ending = next((name for name in FORMATS if FORMATS[name] == suffix.lower()), None)
    if kind and ending and kind != ending:
        raise UserError(f"--format {kind} does not match {output}: end it with {FORMATS[kind]}, or omit one of them")
    stem = stem if ending else output
    if Path(output).is_dir() or not Path(stem).name:
        raise UserError(f"{output} is a folder: add a file name")
    if not Path(stem).parent.is_dir():
        raise UserError(f"there is no folder {Path(stem).parent} to write to: create it first")
    return stem, kind or ending or "pth"


def release(path: str, weights: str | None, kind: str) -> bytes:
    """Return the content of the released file, which depends only on the checkpoint."""
    import torch

    from ...checkpoints import is_ema_copy, read_checkpoint, select_weights

    checkpoint = read_checkpoint(path)
    try:
        state, which = select_weights(checkpoint, weights)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    print(f"took {which}")
    # Clone the tensors: a view would be saved with all of the storage that it refers to.
    state = {name: value.detach().clone().contiguous() for name, value in state.items() if not is_ema_copy(name)}
    meta = describe(checkpoint.get("meta"))
    if kind == "safetensors":
        from safetensors.torch import save

        return with_sorted_header(save(state, {key: json.dumps(value) for key, value in meta.items()}))
    buffer = io.BytesIO()
    torch.save({"state_dict": state, "meta": meta}, buffer)
    return buffer.getvalue()


def with_sorted_header(content: bytes) -> bytes:
    """Return a safetensors file with a sorted header; the library's order varies from call to call."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:start]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[start:]


def describe(meta: Any) -> dict[str, Any]:
    """Return the published part of a checkpoint's ``meta``, as lists, dicts, strings and numbers only."""
    from ...version import __version__

    meta = meta if isinstance(meta, Mapping) else {}
    kept = {key: value for key, value in meta.items() if key in KEPT or str(key).endswith("_version")}
    if "config" in meta:  # the key in MMDetection 2.x and MMSegmentation 0.x, whose text MMEngine would execute
        kept.setdefault("cfg", meta["config"])
    kept.setdefault("mmcare_version", __version__)
    return json.loads(json.dumps(kept, default=plain))


def plain(value: Any) -> Any:
    """Convert an object for JSON: NumPy numbers and arrays, sets; anything else to its string."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return sorted(value) if isinstance(value, set) else str(value)
