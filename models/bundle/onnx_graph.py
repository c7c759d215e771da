"""What a stranger's ONNX graph may hold: checked before a runtime opens it.

A graph can name files of the machine as its numbers, run loops without an end, grow without bound
where the runtime unfolds its functions, and ask for any amount of memory. Ours do none of that. The
format is protocol buffers; the few fields that matter are read here, without a copy of the numbers.
What sizes a graph computes by itself is not known here: `onnx_session` limits what they take.
"""

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import numpy as np

from two_tower.models.errors import BundleError

LARGEST_TENSOR = 2**27
"""Numbers in a tensor whose size a constant says."""

MOST_NODES = 200_000

OPERATIONS = frozenset({
    *("Abs", "Add", "And", "ArgMax", "ArgMin", "Attention", "BatchNormalization", "BitShift"),
    *("BitwiseAnd", "BitwiseNot", "BitwiseOr", "Cast", "CastLike", "Ceil", "Clip", "Concat"),
    *("Constant", "ConstantOfShape", "Conv", "Cos", "CumSum", "DequantizeLinear", "Div"),
    *("DynamicQuantizeLinear", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike"),
    *("Flatten", "Floor", "GRU", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm"),
    *("Greater", "GreaterOrEqual", "GroupNormalization", "HardSigmoid", "HardSwish"),
    *("Identity", "InstanceNormalization", "IsInf", "IsNaN", "LSTM", "LayerNormalization"),
    *("LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "MatMul", "MatMulInteger"),
    *("Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "OneHot", "Or", "PRelu", "Pad"),
    *("Pow", "QLinearMatMul", "QuantizeLinear", "RMSNormalization", "RNN", "Range"),
    *("Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Round"),
    *("RotaryEmbedding", "ScatterElements", "ScatterND", "Selu", "Shape", "Sigmoid", "Sign"),
    *("Sin", "Size", "Slice", "Softmax", "Softplus", "Softsign", "Split", "Sqrt", "Squeeze"),
    *("Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose"),
    *("Trilu", "Unsqueeze", "Where", "Xor"),
})  # fmt: skip
"""What an encoder of texts computes with. All of it takes its memory where a limit holds, which
sequences, strings, `NonZero` and `Unique` do not; others run graphs of their own."""

DOMAINS = ("", "ai.onnx")

SIZED = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "Pad": 1, "OneHot": 1, "Range": 1}
"""Operation -> which of its inputs says how large the output is."""

INT64, INT32, STRING = 7, 6, 8


class _Tensor(NamedTuple):
    """A constant.

    Attributes:
        name: may be empty.
        dims: its shape.
        kind: of its numbers, as ONNX counts types.
        raw: its bytes, where they are stored as such.
        numbers: int64 that are stored one by one, or int32.
        is_elsewhere: whether a file has its numbers.
    """

    name: str
    dims: tuple[int, ...]
    kind: int
    raw: memoryview
    numbers: tuple[int, ...]
    is_elsewhere: bool


def check_graph(content: bytes) -> None:
    """Refuse a graph that reads files, has parts that repeat, or asks for absurd sizes.

    Raises:
        BundleError: it does, or it is no graph.
    """
    try:
        _Checker().model(memoryview(content))
    except (IndexError, ValueError, UnicodeDecodeError, OverflowError) as error:
        raise BundleError(
            f"the transformer's graph is broken ({error}); train the bundle again"
        ) from None


class _Checker:
    """Walks one model."""

    def __init__(self) -> None:
        self._nodes = 0
        self._sizes: dict[str, int] = {}  # name of a small constant -> product of its numbers

    def model(self, message: memoryview) -> None:
        for number, value in _fields(message):
            if number == 7:
                self._graph(_bytes(value))
            elif number == 25:
                raise _refused("functions of its own")

    def _graph(self, message: memoryview) -> None:
        nodes = []
        for number, value in _fields(message):
            if number == 5:
                self._tensor(_bytes(value), "")
            elif number == 15:  # values and indices of a sparse tensor
                for _, part in _fields(_bytes(value)):
                    if isinstance(part, memoryview):
                        self._tensor(part, "")
            elif number == 1:
                nodes.append(_bytes(value))
        for node in nodes:
            self._node(node)

    def _node(self, message: memoryview) -> None:
        self._nodes += 1
        if self._nodes > MOST_NODES:
            raise _refused(f"more than {MOST_NODES:,} operations")
        inputs: list[str] = []
        outputs: list[str] = []
        kind = domain = ""
        attributes = []
        for number, value in _fields(message):
            if number == 1:
                inputs.append(_text(value))
            elif number == 2:
                outputs.append(_text(value))
            elif number == 4:
                kind = _text(value)
            elif number == 5:
                attributes.append(_bytes(value))
            elif number == 7:
                domain = _text(value)
        if kind not in OPERATIONS or domain not in DOMAINS:
            raise _refused(f"the operation {'.'.join((domain, kind)).strip('.')!r:.80}")
        for attribute in attributes:
            self._attribute(attribute, outputs[0] if outputs else "")
        place = SIZED.get(kind)
        if place is not None and len(inputs) > place:
            size = self._sizes.get(inputs[place], 0)
            if size > LARGEST_TENSOR:
                raise _refused(f"a tensor of {size:,} numbers made by {kind}")

    def _attribute(self, message: memoryview, output: str) -> None:
        ints = []
        name, integer = "", 0
        for number, value in _fields(message):
            if number in (5, 10):
                self._tensor(_bytes(value), output)
            elif number in (6, 11):
                raise _refused("a graph within it")
            elif number in (22, 23):
                for _, part in _fields(_bytes(value)):
                    if isinstance(part, memoryview):
                        self._tensor(part, "")
            elif number == 8:
                ints += _integers(value)
            elif number == 1:
                name = _text(value)
            elif number == 3 and isinstance(value, int):
                integer = value
        if (name == "to" and integer == STRING) or name in ("value_string", "value_strings"):
            raise _refused("strings")
        if any(abs(number) > LARGEST_TENSOR for number in ints if number not in UNBOUNDED):
            raise _refused("an attribute of absurd size")

    def _tensor(self, message: memoryview, name: str) -> None:
        tensor = _read_tensor(message)
        if tensor.is_elsewhere:
            raise _refused("numbers that stand in another file")
        if tensor.kind == STRING:
            raise _refused("strings")
        count = prod(tensor.dims)
        if min(tensor.dims, default=0) < 0 or count > 8 * max(len(message), 1):
            raise _refused(f"a tensor of {tensor.dims} in {len(message):,} bytes")
        if tensor.kind in (INT64, INT32) and count <= 64:
            width = np.int64 if tensor.kind == INT64 else np.int32
            stored = np.frombuffer(tensor.raw, width).tolist() if tensor.raw else tensor.numbers
            self._sizes[tensor.name or name] = prod(max(1, abs(n)) for n in stored)


UNBOUNDED = (2**63 - 1, -(2**63), 2**31 - 1, -(2**31))
"""How a slice says "to the end"."""


def _read_tensor(message: memoryview) -> _Tensor:
    name, kind, raw, is_elsewhere = "", 0, memoryview(b""), False
    dims: list[int] = []
    numbers: list[int] = []
    for number, value in _fields(message):
        if number == 1:
            dims += _integers(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number in (5, 7):
            numbers += _integers(value)
        elif number == 8:
            name = _text(value)
        elif number == 9:
            raw = _bytes(value)
        elif number == 13 or (number == 14 and value != 0):
            is_elsewhere = True
    return _Tensor(name, tuple(dims), kind, raw, tuple(numbers[:64]), is_elsewhere)


def _refused(what: str) -> BundleError:
    return BundleError(
        f"the transformer's graph has {what}, which no graph of ours has; train the bundle again"
    )


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the fields of a protocol buffer: number, and an integer or bytes.

    Raises:
        ValueError: it is none.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"field {number} has wire type {wire}")
        if at + size > len(message):
            raise ValueError(f"field {number} ends behind the message")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _integers(value: int | memoryview) -> list[int]:
    """Return one signed integer, or several that are packed."""
    if isinstance(value, int):
        return [_signed(value)]
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(_signed(number))
    return numbers


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message is expected")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)).decode()
