"""The fields of a protobuf message, read without its classes and without trusting its lengths."""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED = {FIXED64: 8, FIXED32: 4}


class DamageError(ValueError):
    """A message is not well formed."""


def fields(message: memoryview) -> Iterator[tuple[int, int, int | memoryview, tuple[int, int]]]:
    """Yield the number, the wire type, the value and the place (start, end) of each field of a message.

    A value is an integer, not negative, or the bytes of a text, a message or a fixed number.

    Raises:
        DamageError: the message is not well formed.
    """
    position, end = 0, len(message)
    while position < end:
        start = position
        key, position = varint(message, position)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, position = varint(message, position)
        else:
            if kind == BYTES:
                length, position = varint(message, position)
            elif kind in _FIXED:
                length = _FIXED[kind]
            else:
                raise DamageError(f"a field has the wire type {kind}")
            if number == 0 or length > end - position:
                raise DamageError("a field is longer than its message")
            value = message[position : position + length]
            position += length
        yield number, kind, value, (start, position)


def varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return the integer at a position, and the position after it.

    Raises:
        DamageError: there is none.
    """
    value = shift = 0
    while shift < 64:
        if position >= len(message):
            raise DamageError("it ends in the middle of a field")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise DamageError("a number is too long")


def encode(number: int, content: bytes) -> bytes:
    """Return a field of bytes."""
    return _varint(number << 3 | BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
