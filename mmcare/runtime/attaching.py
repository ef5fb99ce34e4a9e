"""Where a certificate stands: in an ONNX file as its metadata, and otherwise beside the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from . import protobuf
from .certificate import LARGEST, Certificate, read_certificate
from .errors import FileError

KEY = "mmcare"
"""The key of the certificate in an ONNX file's metadata."""
_METADATA = 14
"""The field of an ONNX model's metadata."""


def attach_certificate(certificate: Certificate, files: Mapping[str, bytes], main: str) -> dict[str, bytes]:
    """Return the files of an export with the certificate, which gets their hashes.

    Args:
        certificate: its ``sha256`` is replaced.
        files: their contents by name.
        main: the name of the one that a runtime opens.

    Returns:
        The same, and ``<main>.json``; of an ONNX file the file itself, with the certificate inside. It comes last.

    Raises:
        ValueError: the certificate has a value that JSON has not.
    """
    if is_onnx(main):
        model = b"".join(_without_certificate(memoryview(files[main])))
        text = replace(certificate, sha256={main: sha256(model).hexdigest()}).to_json()
        entry = protobuf.encode(1, KEY.encode()) + protobuf.encode(2, text.encode())
        return {main: model + protobuf.encode(_METADATA, entry)}
    hashes = {name: sha256(content).hexdigest() for name, content in files.items()}
    return {**files, beside(main): replace(certificate, sha256=hashes).to_json().encode()}


def certificate_of(path: Path) -> Certificate:
    """Return the certificate of a file whose hash it has.

    Raises:
        FileError: there is none, it cannot be used, or it belongs to another file.
    """
    if is_onnx(path.name):
        return _inside(path)
    sidecar = path.with_name(beside(path.name))
    if not sidecar.is_file():
        raise FileError(f"{path} has no certificate, as there is no {sidecar.name} beside it: put it there")
    certificate = read_certificate(_read_text(sidecar), str(sidecar))
    named = _named(path, certificate)
    for name, wanted in certificate.sha256.items():
        file = named[name]
        if not file.is_file():
            raise FileError(f"{path} needs {file.name}, which is not beside it: put it there")
        with file.open("rb") as content:
            _check_hash(file, wanted, iter(lambda content=content: content.read(2**20), b""))
    return certificate


def is_onnx(name: str) -> bool:
    return name.lower().endswith(".onnx")


def beside(name: str) -> str:
    """Return the name of a file's certificate."""
    return f"{name}.json"


def _inside(path: Path) -> Certificate:
    content = memoryview(path.read_bytes())
    try:
        texts = [text for _, text in _entries(content) if text is not None]
        model = list(_without_certificate(content))
    except (ValueError, UnicodeDecodeError) as error:
        raise FileError(f"{path} is not an ONNX file or is damaged ({error}): copy or export it again") from None
    if len(texts) != 1:
        raise FileError(f"{path} has {'no' if not texts else 'more than one'} certificate: export the model again")
    certificate = read_certificate(texts[0], str(path))
    if len(certificate.sha256) != 1:
        raise FileError(f"the certificate of {path} names {len(certificate.sha256)} files: export the model again")
    _check_hash(path, *certificate.sha256.values(), model)
    return certificate


def _entries(model: memoryview) -> Iterator[tuple[tuple[int, int], str | None]]:
    """Yield the place of each field of an ONNX model, and the certificate in it."""
    for number, kind, value, place in protobuf.fields(model):
        text = None
        if (number, kind) == (_METADATA, protobuf.BYTES):
            entry = {inner: content for inner, _, content, _ in protobuf.fields(value)}
            if bytes(entry.get(1, b"")) == KEY.encode():
                if len(entry.get(2, b"")) > 4 * LARGEST:
                    raise ValueError("its certificate is too large")
                text = str(entry.get(2, b""), "utf-8")
        yield place, text


def _without_certificate(model: memoryview) -> Iterator[memoryview]:
    """Yield the parts of an ONNX model but its certificate."""
    return (model[start:end] for (start, end), text in _entries(model) if text is None)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return str(file.read(4 * LARGEST), "utf-8")
    except UnicodeDecodeError:
        raise FileError(f"{path} is not a text: export the model again") from None


def _named(path: Path, certificate: Certificate) -> dict[str, Path]:
    """Return the paths of the files that a certificate names; they may have been renamed together.

    Raises:
        FileError: they are not those of the file.
    """
    names = certificate.sha256
    stems = {Path(name).stem for name in names}
    plain = all(name == Path(name).name for name in names)
    if not plain or len(stems) != 1 or path.suffix not in {Path(name).suffix for name in names}:
        raise FileError(f"the certificate beside {path} is of other files, {', '.join(names) or 'none'}: copy its own")
    return {name: path.with_suffix(Path(name).suffix) for name in names}


def _check_hash(path: Path, wanted: str, parts: Iterator[bytes] | list[memoryview]) -> None:
    found = sha256()
    for part in parts:
        found.update(part)
    if found.hexdigest() != wanted:
        raise FileError(
            f"{path} is not the file that its certificate was made for, or was changed: copy or export it again"
        )
