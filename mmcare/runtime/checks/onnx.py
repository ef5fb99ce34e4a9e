"""ONNX: only its own operators, no functions, and all weights inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from math import prod

from .. import protobuf
from . import Contents, Shape, check_shape

_BITS = dict.fromkeys((1, 6, 12), 32) | dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8) | dict.fromkeys((4, 5), 16)
_BITS |= dict.fromkeys((10, 16), 16) | dict.fromkeys((7, 11, 13, 14), 64) | dict.fromkeys((21, 22, 23), 4) | {15: 128}
"""Bits of a value of each ``TensorProto.DataType``."""
_OWN = ("", "ai.onnx")
"""The domain of ONNX's own operators, and another name of it."""
_DEEPEST = 8
"""Graphs within graphs."""
_LARGEST_MADE = 2**28
"""Values of a tensor that an operator makes from its size alone."""
_SHAPED = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}
"""Operators that make tensors of any size from small ones, and which input has the size."""

Message = memoryview


def read(content: Callable[[str], memoryview | None], main: str) -> Contents:
    """Return what an ONNX file holds."""
    reader = _Reader()
    try:
        reader.read_model(content(main))
    except (protobuf.DamageError, UnicodeDecodeError) as error:
        raise ValueError(f"is no ONNX file or is damaged ({error})") from None
    return Contents(reader.inputs, reader.outputs, dict(sorted(reader.operators.items())))


class _Reader:
    def __init__(self) -> None:
        self.operators: Counter[str] = Counter()
        self.inputs: dict[str, Shape] = {}
        self.outputs: tuple[str, ...] = ()
        self._sizes: dict[str, list[int]] = {}  # of small constants, which may be shapes

    def read_model(self, model: Message) -> None:
        graphs = 0
        for number, value in _fields(model):
            if number == 8:  # opset_import
                _check_domain(_text(dict(_fields(value)).get(1)))
            elif number == 7:
                graphs += 1
                inputs, outputs = self._read_graph(value, 0)
                self.inputs, self.outputs = inputs, tuple(outputs)
            elif number in (20, 25):
                raise ValueError("has functions or training steps of its own, which no export makes")
        if graphs != 1:
            raise protobuf.DamageError(f"it has {graphs} graphs")

    def _read_graph(self, graph: Message, depth: int) -> tuple[dict[str, Shape], dict[str, Shape]]:
        if depth > _DEEPEST:
            raise ValueError("has graphs that are nested too deeply")
        nodes, values = [], {11: {}, 12: {}, 13: {}}
        for number, value in _fields(graph):
            if number == 1:
                nodes.append(value)
            elif number == 5:
                self._read_tensor(value)
            elif number in values:  # input, output, value_info
                name, shape = _read_value_info(value)
                check_shape(name, shape)
                values[number][name] = shape
            elif number == 15:
                raise ValueError("has sparse weights, which no export makes")
        for node in nodes:
            self._read_node(node, depth)
        return values[11], values[12]

    def _read_node(self, node: Message, depth: int) -> None:
        inputs, outputs, kind, constant = [], [], "", None
        for number, value in _fields(node):
            if number == 1:
                inputs.append(_text(value))
            elif number == 2:
                outputs.append(_text(value))
            elif number == 4:
                kind = _text(value)
            elif number == 5:
                constant = self._read_attribute(value, depth) or constant
            elif number == 7:
                _check_domain(_text(value))
        self.operators[kind] += 1
        if kind == "Constant" and constant is not None and outputs:
            self._sizes[outputs[0]] = constant
        if kind in _SHAPED and len(inputs) > _SHAPED[kind]:
            check_shape(kind, tuple(self._sizes.get(inputs[_SHAPED[kind]], ())), _LARGEST_MADE)

    def _read_attribute(self, attribute: Message, depth: int) -> list[int] | None:
        """Check what an attribute holds, and return its whole numbers."""
        numbers = None
        for number, value in _fields(attribute):
            if number in (5, 10):  # t, tensors
                numbers = self._read_tensor(value)
            elif number in (6, 11):  # g, graphs
                self._read_graph(value, depth + 1)
            elif number == 8:  # ints
                numbers = [*(numbers or ()), *_integers(value)]
            elif number in (22, 23):
                raise ValueError("has sparse weights, which no export makes")
        return numbers

    def _read_tensor(self, tensor: Message) -> list[int] | None:
        """Check a tensor, and return its values if they are a few whole numbers."""
        shape, kind, raw, others, name, numbers = [], 0, None, 0, "", []
        for number, value in _fields(tensor):
            if number == 1:
                shape += _integers(value)
            elif number == 2 and isinstance(value, int):
                kind = value
            elif number == 8:
                name = _text(value)
            elif number == 9:
                raw = value
            elif number in (13, 14) and value:  # external_data, data_location
                raise ValueError(f"keeps weights ({name[:60] or 'without a name'}) in another file, which is not read")
            elif number in (4, 5, 6, 7, 10, 11):
                others += 1 if isinstance(value, int) else len(value)
                if number == 7 and (isinstance(value, int) or len(value) <= 64):
                    numbers += _integers(value)
        check_shape(name, tuple(shape))
        if kind == 8:
            raise ValueError("has texts as weights, which no export makes")
        size = prod(shape) * _BITS.get(kind, 0) / 8
        if not size <= len(raw) < size + 1 if raw is not None else others * 2 < prod(shape):
            found = len(raw) if raw is not None else others
            raise ValueError(f"has a tensor {name[:60]!r} of {'×'.join(map(str, shape))} values in {found} bytes")
        if raw is not None and kind == 7 and len(raw) <= 64:
            numbers = memoryview(bytes(raw)).cast("q").tolist()
        if numbers:
            self._sizes[name] = numbers
        return numbers or None


def _fields(message: Message | int) -> Iterator[tuple[int, Message | int]]:
    if isinstance(message, int):
        raise protobuf.DamageError("a number stands for a message")
    return ((number, value) for number, _, value, _ in protobuf.fields(message))


def _text(value: Message | int | None) -> str:
    if isinstance(value, int):
        raise protobuf.DamageError("a number stands for a text")
    return str(value or b"", "utf-8")


def _integers(value: Message | int) -> list[int]:
    """Return signed integers, packed or one."""
    if isinstance(value, int):
        return [_signed(value)]
    numbers, position = [], 0
    while position < len(value):
        number, position = protobuf.varint(value, position)
        numbers.append(_signed(number))
    return numbers


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _check_domain(domain: str) -> None:
    if domain not in _OWN:
        raise ValueError(f"has operators of {domain[:60]!r}, but exports have ONNX's own only")


def _read_value_info(value: Message) -> tuple[str, Shape]:
    """Return the name and the shape of an input or output; () if it is no tensor."""
    parts = dict(_fields(value))
    shape = []
    tensor = dict(_fields(dict(_fields(parts.get(2, memoryview(b"")))).get(1, memoryview(b""))))
    for number, dimension in _fields(tensor.get(2, memoryview(b""))):
        if number == 1:
            side = dict(_fields(dimension)).get(1)
            shape.append(_signed(side) if isinstance(side, int) else None)
    return _text(parts.get(1)), tuple(shape)
