"""A transformer's ONNX graph, computed by torch on a device: many texts of one length at a time.

It is the bundle's own graph, 8-bit numbers included. In float32 the vectors are those that ONNX
Runtime gives, to some 1e-6. In 8 bits a last bit may round an activation the other way, and vectors
differ by up to .02 in a number, as they do between two settings of ONNX Runtime.

Texts are the first dimension of all that is computed from them, and 8-bit activations are scaled
text by text. Texts of equal length need no padding, so a batch of them gives what each gives alone.
Shapes and what follows from them stay on the CPU.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional

from two_tower.models.errors import BundleError
from two_tower.models.vectors import FloatArray, IntArray

TYPES = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 11: torch.float64}

ON_CPU = {
    **dict.fromkeys(
        ("Reshape", "Expand", "Unsqueeze", "Squeeze", "ReduceSum", "ReduceMean", "CumSum"), (1,)
    ),
    **{"Slice": (1, 2, 3, 4), "ConstantOfShape": (0,), "Range": (0, 1, 2)},
}
"""Operation -> which of its inputs are sizes and places, not numbers of a text."""

TOKENS_AT_ONCE = 2**15
"""In a batch; the attention of such takes some hundred MB."""

Attributes = Mapping[str, Any]
Operation = Callable[[Attributes, Sequence[Any]], Any]


class TorchGraph:
    """A graph that reads `input_ids` (1, tokens), of which it computes several at once.

    Attributes:
        device: where it computes.
    """

    def __init__(self, content: bytes, device: str) -> None:
        """Take a graph that `onnx_graph.check_graph` lets pass.

        Raises:
            BundleError: it has an operation that is not here.
        """
        graph = onnx.load_from_string(content).graph
        self.device = torch.device(device)
        self._input, self._outputs = graph.input[0].name, [each.name for each in graph.output]
        self._constants: dict[str, Tensor] = {}
        for tensor in graph.initializer:
            self._keep(tensor.name, tensor)
        self._nodes = []
        for node in graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant":
                self._keep(node.output[0], attributes["value"])
            elif node.op_type not in OPERATIONS:
                raise BundleError(
                    f"torch reads no graph with the operation {node.op_type}; leave --device out"
                )
            else:
                self._nodes.append((node.op_type, attributes, list(node.input), list(node.output)))
        self._last_use = {
            name: number for number, (_, _, names, _) in enumerate(self._nodes) for name in names
        }

    def _keep(self, name: str, tensor: Any) -> None:
        """Keep a constant; whole numbers may be sizes, and stay on the CPU."""
        value = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        is_size = value.dtype in (torch.int64, torch.int32)
        self._constants[name] = value if is_size else value.to(self.device)

    @torch.no_grad()
    def run(self, ids: IntArray) -> list[FloatArray]:
        """Return the outputs, float32 with a text a row, for (n, tokens) int64."""
        values = {self._input: torch.from_numpy(ids).to(self.device)}
        for number, (kind, attributes, names, outputs) in enumerate(self._nodes):
            inputs = [values.get(n, self._constants.get(n)) if n else None for n in names]
            made = OPERATIONS[kind](attributes, self._together(kind, inputs))
            made = made if isinstance(made, tuple) else (made,)
            values.update(zip(outputs, made, strict=False))
            for name in names:  # or the activations of all layers would be held
                if self._last_use[name] == number and name not in self._outputs:
                    values.pop(name, None)
        return [values[name].float().cpu().numpy() for name in self._outputs]

    def run_texts(self, texts: Sequence[IntArray]) -> list[list[FloatArray]]:
        """Return the outputs of each text, (tokens,) ids; those of equal length are one batch.

        Raises:
            BundleError: it cannot compute it, or a number is not finite.
        """
        of_length: dict[int, list[int]] = {}
        for place, ids in enumerate(texts):
            of_length.setdefault(len(ids), []).append(place)
        results: list[list[FloatArray]] = [[] for _ in texts]
        for length, places in sorted(of_length.items(), reverse=True):  # memory runs out at once
            size = max(1, TOKENS_AT_ONCE // max(1, length))
            for start in range(0, len(places), size):
                batch = places[start : start + size]
                ids = np.stack([texts[place] for place in batch]).astype(np.int64)
                try:
                    outputs = self.run(ids)
                except RuntimeError as error:  # no memory left, or a graph for one text alone
                    reason = str(error).partition("\n")[0][:200]
                    raise BundleError(
                        f"torch cannot compute the transformer on {self.device} ({reason}); leave "
                        "--device out"
                    ) from None
                if not all(np.isfinite(output).all() for output in outputs):
                    raise BundleError("the transformer's graph gives numbers that are not finite")
                for row, place in enumerate(batch):
                    results[place] = [output[row] for output in outputs]
        return results

    def _together(self, kind: str, inputs: list[Any]) -> list[Any]:
        """Return the inputs where they can meet: on the device if one of them is there."""
        sizes = ON_CPU.get(kind, ())
        places = [i for i, each in enumerate(inputs) if each is not None and i not in sizes]
        if any(inputs[i].device == self.device for i in places):
            for i in places:
                inputs[i] = inputs[i].to(self.device)
        return inputs


def _sizes(value: Tensor) -> list[int]:
    return [int(each) for each in value.reshape(-1).tolist()]


def _axes(attributes: Attributes, inputs: Sequence[Any]) -> list[int]:
    """Return the axes of a reduction, an input or an attribute; all of them where none is given."""
    if len(inputs) > 1 and inputs[1] is not None:
        return _sizes(inputs[1])
    return list(attributes.get("axes", range(inputs[0].ndim)))


def _gather(attributes: Attributes, inputs: Sequence[Any]) -> Any:
    data, places = inputs
    axis = attributes.get("axis", 0) % data.ndim
    size = data.shape[axis]
    rows = data.index_select(axis, torch.where(places < 0, places + size, places).reshape(-1))
    return rows.reshape((*data.shape[:axis], *places.shape, *data.shape[axis + 1 :]))


def _slice(attributes: Attributes, inputs: Sequence[Any]) -> Any:
    data, starts, ends = inputs[0], _sizes(inputs[1]), _sizes(inputs[2])
    axes = _sizes(inputs[3]) if len(inputs) > 3 and inputs[3] is not None else range(len(starts))
    steps = _sizes(inputs[4]) if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    parts = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        parts[axis] = slice(start, min(end, data.shape[axis]), step)
    return data[tuple(parts)]


def _reshape(attributes: Attributes, inputs: Sequence[Any]) -> Any:
    data, sizes = inputs[0], _sizes(inputs[1])
    if not attributes.get("allowzero", 0):
        sizes = [data.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return data.reshape(sizes)


def _expand(attributes: Attributes, inputs: Sequence[Any]) -> Any:
    data, sizes = inputs[0], tuple(_sizes(inputs[1]))
    return data.expand(torch.broadcast_shapes(data.shape, sizes))  # type: ignore[no-untyped-call]


def _unsqueeze(attributes: Attributes, inputs: Sequence[Any]) -> Any:
    data, axes = inputs[0], _sizes(inputs[1])
    rank = data.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        data = data.unsqueeze(axis)
    return data


def _quantize(attributes: Attributes, inputs: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Scale each text's numbers to 0..255, as DynamicQuantizeLinear does one text's."""
    (data,) = inputs
    axes = list(range(1, data.ndim))
    low = data.amin(axes, keepdim=True).clamp(max=0)
    high = data.amax(axes, keepdim=True).clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round(-low / scale).clamp(0, 255)
    return (torch.round(data / scale) + zero).clamp(0, 255), scale, zero


def _dequantize(attributes: Attributes, inputs: Sequence[Any]) -> Any:
    data, scale, *zeros = inputs
    axis = attributes.get("axis", 1)
    shape = [-1 if i == axis % data.ndim else 1 for i in range(data.ndim)]
    if scale.ndim:
        scale = scale.reshape(shape)
    zero = zeros[0].float() if zeros and zeros[0] is not None else torch.zeros_like(scale)
    return (data.float() - (zero.reshape(shape) if zero.ndim else zero)) * scale


def _whole_product(attributes: Attributes, inputs: Sequence[Any]) -> Any:
    """Multiply whole numbers; float32 holds them and their sums as exactly as is needed here."""
    numbers: list[Any] = [each if each is None else each.float() for each in inputs]
    left, right, left_zero, right_zero = (*numbers, None, None)[:4]
    left = left if left_zero is None else left - left_zero
    right = right if right_zero is None else right - right_zero
    return left @ right


def _layer_norm(attributes: Attributes, inputs: Sequence[Any]) -> Any:
    data, weight, bias = (*inputs, None)[:3]
    axis = attributes.get("axis", -1) % data.ndim
    epsilon = attributes.get("epsilon", 1e-5)
    return functional.layer_norm(data, data.shape[axis:], weight, bias, epsilon)


def _gemm(attributes: Attributes, inputs: Sequence[Any]) -> Any:
    left, right, *bias = inputs
    left = left.T if attributes.get("transA") else left
    right = right.T if attributes.get("transB") else right
    product = attributes.get("alpha", 1.0) * (left @ right)
    return product + attributes.get("beta", 1.0) * bias[0] if bias else product


def _reduced(function: Callable[..., Any]) -> Operation:
    return lambda attributes, inputs: function(
        inputs[0], _axes(attributes, inputs), bool(attributes.get("keepdims", 1))
    )


def _clip(attributes: Attributes, inputs: Sequence[Any]) -> Any:
    low, high = (*inputs[1:], None, None)[:2]
    return inputs[0].clamp(low, high)


def _gelu(attributes: Attributes, inputs: Sequence[Any]) -> Any:
    return functional.gelu(inputs[0], approximate=attributes.get("approximate", b"none").decode())


def _plain(function: Callable[..., Any]) -> Operation:
    return lambda attributes, inputs: function(*inputs)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Operation:
    return lambda attributes, inputs: reduce(function, inputs)


def _divide(left: Tensor, right: Tensor) -> Any:
    if left.is_floating_point():
        return left / right
    return torch.div(left, right, rounding_mode="trunc")


OPERATIONS: Mapping[str, Operation] = {
    **{"Add": _plain(torch.add), "Sub": _plain(torch.sub), "Mul": _plain(torch.mul)},
    **{"Div": _plain(_divide), "Pow": _plain(torch.pow), "Sqrt": _plain(torch.sqrt)},
    **{"Erf": _plain(torch.erf), "Tanh": _plain(torch.tanh), "Relu": _plain(torch.relu)},
    **{"Abs": _plain(torch.abs), "Log": _plain(torch.log), "Exp": _plain(torch.exp)},
    **{"Max": _folded(torch.maximum), "Min": _folded(torch.minimum)},
    **{"Sigmoid": _plain(torch.sigmoid), "Neg": _plain(torch.neg), "Gelu": _gelu},
    **{"And": _plain(torch.logical_and), "Or": _plain(torch.logical_or)},
    **{"Not": _plain(torch.logical_not), "IsNaN": _plain(torch.isnan)},
    **{"Equal": _plain(torch.eq), "Greater": _plain(torch.gt), "Less": _plain(torch.lt)},
    **{"GreaterOrEqual": _plain(torch.ge), "LessOrEqual": _plain(torch.le)},
    **{"MatMul": _plain(torch.matmul), "Gemm": _gemm, "MatMulInteger": _whole_product},
    **{"Where": _plain(torch.where), "Identity": _plain(lambda value: value)},
    **{"DynamicQuantizeLinear": _quantize, "DequantizeLinear": _dequantize},
    **{"LayerNormalization": _layer_norm, "Clip": _clip, "Slice": _slice, "Gather": _gather},
    **{"Reshape": _reshape, "Expand": _expand, "Unsqueeze": _unsqueeze},
    "ReduceSum": _reduced(lambda data, axes, keep: data.sum(axes, keep)),
    "ReduceMean": _reduced(lambda data, axes, keep: data.mean(axes, keep)),
    "ReduceL2": _reduced(lambda data, axes, keep: torch.linalg.vector_norm(data, 2, axes, keep)),
    "CumSum": lambda attributes, inputs: inputs[0].cumsum(_sizes(inputs[1])[0]),
    "Squeeze": lambda attributes, inputs: inputs[0].squeeze(_axes(attributes, inputs)),
    "Shape": lambda attributes, inputs: torch.tensor(inputs[0].shape),
    "Range": lambda attributes, inputs: torch.arange(*(each.item() for each in inputs)),
    "ConstantOfShape": lambda attributes, inputs: torch.full(
        _sizes(inputs[0]),
        numpy_helper.to_array(attributes["value"]).item() if "value" in attributes else 0.0,
    ),
    "Cast": lambda attributes, inputs: inputs[0].to(TYPES[attributes["to"]]),
    "Concat": lambda attributes, inputs: torch.cat(list(inputs), attributes["axis"]),
    "Flatten": lambda attributes, inputs: inputs[0].flatten(0, attributes.get("axis", 1) - 1),
    "GatherElements": lambda attributes, inputs: inputs[0].gather(
        attributes.get("axis", 0), inputs[1]
    ),
    "Transpose": lambda attributes, inputs: inputs[0].permute(*attributes["perm"]),
    "Softmax": lambda attributes, inputs: inputs[0].softmax(attributes.get("axis", -1)),
}
