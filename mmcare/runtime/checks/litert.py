"""LiteRT: a FlatBuffer of LiteRT's own operators, whose places and sizes are inside of the file."""

from __future__ import annotations

import struct
from collections.abc import Callable
from math import prod

from . import Contents, Shape, check_shape

_BYTES = {0: 4, 1: 2, 2: 4, 3: 1, 4: 8, 6: 1, 7: 2, 8: 8, 9: 1, 10: 8, 12: 8, 15: 4, 16: 2}
"""Bytes of a value of each ``TensorType``; what has less than a byte is left out."""


def read(content: Callable[[str], memoryview | None], main: str) -> Contents:
    """Return the inputs of a LiteRT file; its operators have only numbers, and its outputs names of its own."""
    file = content(main)
    if len(file) < 8 or bytes(file[4:8]) != b"TFL3":
        raise ValueError("is no LiteRT file")
    try:
        return _read(file)
    except (struct.error, UnicodeDecodeError, IndexError):
        raise ValueError("is damaged, as it has a place outside of itself") from None


def _read(file: memoryview) -> Contents:
    model = _Table(file, _at(file, "<I", 0))
    codes, graphs = model.tables(1), model.tables(2)
    for code in codes:
        custom = code.text(1)
        if custom:
            raise ValueError(f"has an operator {custom[:60]!r}, but exports have LiteRT's own only")
    buffers = [_buffer_size(file, buffer) for buffer in model.tables(4)]
    if not graphs:
        raise ValueError("has no graph")
    inputs: dict[str, Shape] = {}
    for number, graph in enumerate(graphs):
        tensors = graph.tables(0)
        shapes = [_read_tensor(tensor, buffers) for tensor in tensors]
        names = [tensor.text(3) for tensor in tensors]
        for operator in graph.tables(3):
            if not 0 <= operator.number("<I", 0) < len(codes):
                raise IndexError
            _check_numbers((*operator.numbers(1), *operator.numbers(2)), len(tensors), -1)
        ends = graph.numbers(1), graph.numbers(2)
        for numbers in ends:
            _check_numbers(numbers, len(tensors), 0)
        if number == 0:
            inputs = {names[index]: shapes[index] for index in ends[0]}
    return Contents(inputs, None, None)


def _read_tensor(tensor: _Table, buffers: list[int]) -> Shape:
    """Return the shape of a tensor, after checking it against its data."""
    name, shape, signature = tensor.text(3), tensor.numbers(0), tensor.numbers(7)
    check_shape(name, shape)
    size, kind = buffers[tensor.number("<I", 2)], tensor.number("<b", 1)
    sparse = tensor.place(6) is not None
    if size and kind in _BYTES and not sparse and size != prod(shape) * _BYTES[kind]:
        raise ValueError(f"has a tensor {name[:60]!r} of {'×'.join(map(str, shape))} values in {size} bytes")
    if len(signature) != len(shape):
        return shape
    return tuple(None if free == -1 else side for side, free in zip(shape, signature, strict=True))


def _buffer_size(file: memoryview, buffer: _Table) -> int:
    """Return the number of bytes in a buffer, which may lie behind the FlatBuffer."""
    offset, size = buffer.number("<Q", 1), buffer.number("<Q", 2)
    if offset > 1:
        if offset + size > len(file):
            raise IndexError
        return size
    return buffer.vector(0, 1)[1]


def _check_numbers(numbers: tuple[int, ...], count: int, lowest: int) -> None:
    if any(not lowest <= number < count for number in numbers):
        raise IndexError


class _Table:
    """A table of a FlatBuffer: its fields have places in the file, or are missing."""

    def __init__(self, file: memoryview, start: int) -> None:
        self._file, self._start = file, start
        self._fields = start - _at(file, "<i", start)
        self._size = _at(file, "<H", self._fields)

    def place(self, field: int) -> int | None:
        entry = 4 + 2 * field
        if entry + 2 > self._size:
            return None
        offset = _at(self._file, "<H", self._fields + entry)
        return self._start + offset if offset else None

    def number(self, kind: str, field: int) -> int:
        place = self.place(field)
        return 0 if place is None else _at(self._file, kind, place)

    def vector(self, field: int, width: int) -> tuple[int, int]:
        """Return the place and the length of a vector, whose items have a width; all of it is in the file."""
        place = self.place(field)
        if place is None:
            return 0, 0
        start = place + _at(self._file, "<I", place)
        count = _at(self._file, "<I", start)
        if start + 4 + count * width > len(self._file):
            raise IndexError
        return start + 4, count

    def numbers(self, field: int) -> tuple[int, ...]:
        start, count = self.vector(field, 4)
        return struct.unpack_from(f"<{count}i", self._file, start) if count else ()

    def text(self, field: int) -> str:
        start, count = self.vector(field, 1)
        return str(self._file[start : start + count], "utf-8")

    def tables(self, field: int) -> list[_Table]:
        start, count = self.vector(field, 4)
        places = range(start, start + 4 * count, 4)
        return [_Table(self._file, place + _at(self._file, "<I", place)) for place in places]


def _at(file: memoryview, kind: str, place: int) -> int:
    return struct.unpack_from(kind, file, place)[0]
