"""OpenVINO: an .xml of OpenVINO's own operators, and the .bin of the same name with all weights."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from math import prod
from pathlib import Path
from xml.parsers import expat

from . import Contents, Shape, check_shape

_BITS = {"f64": 64, "i64": 64, "u64": 64, "f32": 32, "i32": 32, "u32": 32, "f16": 16, "bf16": 16, "i16": 16, "u16": 16}
_BITS |= {"i8": 8, "u8": 8, "boolean": 8, "f8e4m3": 8, "f8e5m2": 8, "i4": 4, "u4": 4, "nf4": 4, "u1": 1}
_LARGEST_TEXT = 2**26
_NAMES = {"Const": "Constant", "PReLU": "PRelu", "ReLU": "Relu", "SoftMax": "Softmax"}
"""Operators whose names in a file are not those that OpenVINO has for them."""


def read(content: Callable[[str], memoryview | None], main: str) -> Contents:
    """Return what an OpenVINO file holds."""
    name = Path(main).with_suffix(".bin").name
    weights = content(name)
    if weights is None:
        raise ValueError(f"needs {name}, which is not beside it")
    text = content(main)
    if len(text) > _LARGEST_TEXT:
        raise ValueError("is too large for a description of a network")
    reader = _Reader(len(weights))
    try:
        reader.parser.Parse(bytes(text), True)
    except (expat.ExpatError, UnicodeDecodeError) as error:
        raise ValueError(f"is not XML or is damaged ({error})") from None
    if not reader.inputs:
        raise ValueError("is no OpenVINO file, as it has no inputs")
    return Contents(reader.inputs, None, dict(sorted(reader.operators.items())))


class _Reader:
    def __init__(self, weights: int) -> None:
        self.operators: Counter[str] = Counter()
        self.inputs: dict[str, Shape] = {}
        self._weights = weights
        self._place: list[tuple[str, dict[str, str]]] = []
        self._sides: list[str] = []
        self._side = ""
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.parser.StartDoctypeDeclHandler = _refuse_dtd

    def _start(self, tag: str, given: dict[str, str]) -> None:
        if not self._place and tag != "net":
            raise ValueError(f"is no OpenVINO file, but of <{tag[:60]}>")
        if tag == "layer":
            if not re.fullmatch(r"opset\d{1,2}", given.get("version", "")):
                raise ValueError(
                    f"has operators of {given.get('version', '')[:60]!r}, but exports have OpenVINO's own only"
                )
            if not self._in_body():
                kind = given.get("type", "")
                self.operators[_NAMES.get(kind, kind)] += 1
        if tag == "data" and self._place and self._place[-1][0] == "layer":
            self._read_data(self._place[-1][1], given)
        if tag == "port":
            self._sides = []
        self._side = ""
        self._place.append((tag, given))

    def _read_data(self, layer: dict[str, str], data: dict[str, str]) -> None:
        name = layer.get("name", "")
        if layer.get("type") == "Parameter":
            shape = _shape(data.get("shape", ""), name)
            check_shape(name, shape)
            if not self._in_body():
                self.inputs[name] = shape
        elif layer.get("type") == "Const":
            shape = _shape(data.get("shape", ""), name)
            check_shape(name, shape)
            offset, size = (_number(data.get(key, ""), name) for key in ("offset", "size"))
            bits = _BITS.get(data.get("element_type", ""))
            if bits is None or size != (prod(side or 0 for side in shape) * bits + 7) // 8:
                raise ValueError(f"has weights {name[:60]!r} of {data.get('shape', '')[:60]!r} values in {size} bytes")
            if offset + size > self._weights:
                raise ValueError(f"has weights {name[:60]!r} behind the end of its .bin file")

    def _in_body(self) -> bool:
        """Return whether the place is in the graph of a loop or a branch."""
        return any(tag == "body" for tag, _ in self._place)

    def _text(self, text: str) -> None:
        self._side += text

    def _end(self, tag: str) -> None:
        _, given = self._place.pop()
        if tag == "dim":
            self._sides.append(self._side.strip())
        elif tag == "port" and self._sides:
            check_shape("of a port", _shape(",".join(self._sides), "of a port"))
        self._side = ""


def _refuse_dtd(*_: object) -> None:
    raise ValueError("has a document type, which may hold entities, but exports have none")


def _shape(text: str, name: str) -> Shape:
    sides = [side.strip() for side in text.split(",") if side.strip()]
    return tuple(None if side in ("-1", "?") or ".." in side else _number(side, name) for side in sides)


def _number(text: str, name: str) -> int:
    if not re.fullmatch(r"\d{1,18}", text):
        raise ValueError(f"has a size {text[:60]!r} in {name[:60]!r}, which is no number")
    return int(text)
