"""The certificate: what an exported file is, what it takes and returns, and what was measured when it was made.

It is JSON, inside an ONNX file and beside any other. Its hash finds accidental edits; whoever can write the file can
also write another hash.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

from .errors import FileError
from .strict_json import build, canonical, parse, plain

VERSION = 1
LARGEST = 2**23
"""Characters of a certificate that is still read; one has some ten thousand."""

NOT_RUN = "not run on a device"

_KEY, _HASH = "mmcare_certificate", "certificate_sha256"


@dataclass(frozen=True)
class Input:
    """The input of a file.

    Attributes:
        shape: (B, 3, H, W), None for what is free.
    """

    name: str
    shape: tuple[int | None, Literal[3], int | None, int | None]
    dtype: Literal["float32"] = "float32"
    layout: Literal["NCHW"] = "NCHW"
    channels: Literal["RGB"] = "RGB"
    range: tuple[Literal[0], Literal[255]] = (0, 255)


@dataclass(frozen=True)
class Normalization:
    """What the file does with a picture first.

    Attributes:
        mean: of R, G, B, subtracted.
        std: of R, G, B, by which is divided.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    inside: Literal[True] = True


@dataclass(frozen=True)
class Resizing:
    """How a picture is resized for the file, as in the config's test pipeline.

    Attributes:
        scale: width and height; None to keep the picture's size.
        keep_ratio: whether they are bounds for a picture that keeps its ratio, the longer one for its longer side.
        multiple: then, each side is enlarged to a multiple of it; None for none.
    """

    scale: tuple[int, int] | None
    keep_ratio: bool
    multiple: int | None
    interpolation: Literal["bilinear"] = "bilinear"


@dataclass(frozen=True)
class Output:
    """An output of a file; sizes that are free are None."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Metric:
    """A metric of the trained model in PyTorch and of the file on the same pictures.

    Attributes:
        name: the evaluator's name of it, such as ``coco/bbox_mAP``.
        data: the data set.
        images: the number of its pictures.
    """

    name: str
    data: str
    images: int
    pytorch: float
    file: float


@dataclass(frozen=True)
class OutputError:
    """The largest error of an output against PyTorch, as :func:`mmcare.runtime.compare` defines it."""

    largest: float
    tolerance: float


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one call, in PyTorch and of the file, in one run.

    Attributes:
        shape: of the input, (B, 3, H, W).
        threads: their number.
        processor: its name.
    """

    shape: tuple[int, Literal[3], int, int]
    threads: int
    pytorch_ms: float
    file_ms: float
    processor: str | None = None


@dataclass(frozen=True)
class Measured:
    """What was measured when the file was made.

    Attributes:
        metric: None if there was no data to measure it.
        errors: by output.
        latency: None if it was not measured.
        probe: a picture and what PyTorch returns for it; see :mod:`.probe`. None if there is none.
        note: why nothing was measured: :data:`NOT_RUN` of a format that does not run where it is made.
    """

    metric: Metric | None
    errors: dict[str, OutputError]
    latency: Latency | None
    probe: dict[str, Any] | None
    note: str | None = None


@dataclass(frozen=True)
class Certificate:
    """What an exported file is, what it takes and returns, and what was measured.

    Attributes:
        format: the target's name, such as "onnx".
        form: of the network in the graph; see docs/export.md.
        quantization: None for float32; otherwise what was done.
        classes: their names in the order of the labels.
        palette: a colour (R, G, B) for each class; None for none.
        thresholds: those of the decoding, as in the config's ``test_cfg``.
        config: the model's config.
        versions: of the packages that made the file.
        weights_sha256: hash of the checkpoint.
        operators: how often the graph has each.
        sha256: hash of each file by its name; of ONNX, without the certificate.
    """

    format: str
    part: Literal["model", "network", "backbone"]
    form: str
    quantization: dict[str, Any] | None
    task: Literal["detection", "segmentation"]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...] | None
    input: Input
    normalization: Normalization
    resizing: Resizing
    outputs: tuple[Output, ...]
    thresholds: dict[str, Any]
    config: dict[str, Any]
    versions: dict[str, str]
    weights_sha256: str
    operators: dict[str, int]
    measured: Measured
    sha256: dict[str, str] = field(default_factory=dict)

    @property
    def mask_threshold(self) -> float:
        """The probability from which a pixel belongs to a mask."""
        return (self.thresholds.get("rcnn") or {}).get("mask_thr_binary", 0.5)

    def to_json(self) -> str:
        """Return the certificate as JSON, with its hash.

        Raises:
            ValueError: a number is not finite, or a value is not JSON's.
        """
        content = {_KEY: VERSION, **plain(self)}
        content[_HASH] = sha256(canonical(content)).hexdigest()
        return json.dumps(content, indent=1, allow_nan=False)


def read_certificate(text: str, source: str) -> Certificate:
    """Return the certificate in a text.

    Args:
        text: JSON.
        source: name of the file in messages.

    Raises:
        FileError: it is no certificate, of another version, or was edited.
    """
    try:
        content = parse(text, LARGEST)
        if not isinstance(content, dict) or _KEY not in content:
            raise ValueError(f"it has no {_KEY}")
        version = content.pop(_KEY)
    except ValueError as error:
        raise FileError(f"the certificate of {source} cannot be read, as {error}: export the model again") from None
    if version != VERSION or isinstance(version, bool):
        raise FileError(
            f"the certificate of {source} has version {version!r}, but this release reads {VERSION}: update mmcare, or "
            "export the model again"
        )
    given = content.pop(_HASH, None)
    if given != sha256(canonical({_KEY: VERSION, **content})).hexdigest():
        raise FileError(f"the certificate of {source} was edited, as its hash is another one: export the model again")
    try:
        return build(Certificate, content)
    except ValueError as error:
        raise FileError(f"the certificate of {source} cannot be used, as {error}: export the model again") from None
