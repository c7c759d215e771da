"""The weights of a transformer, taken back from its ONNX graph.

A bundle keeps a transformer as a graph alone. Torch's exporter keeps the names of parameters but
for the matrices of linear layers, which it turns around and numbers: their layer is in the name of
the node that multiplies by them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from two_tower.models.errors import BundleError
from two_tower.models.vectors import FloatArray

TOWER = "tower.model."  # what the exported module calls the model
QUANTIZED = "_quantized"


def restore_weights(model: nn.Module, graph: bytes) -> bool:
    """Give the model the weights that a graph of the same architecture has.

    8-bit integers are scaled back. A parameter that the graph does not use stays as it is.

    Args:
        model: the sentence-transformers model that the graph was trained from.
        graph: the content of transformer.onnx.

    Returns:
        whether they were 8-bit integers.

    Raises:
        BundleError: the graph is of another model.
    """
    import onnx

    proto = onnx.load_from_string(graph).graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.initializer}
    state = model.state_dict()
    parameters = {n.removesuffix(QUANTIZED) for n in stored if n.startswith(TOWER)}
    parameters -= {name for name in parameters if name.endswith(("_scale", "_zero_point"))}
    if unknown := parameters - {TOWER + name for name in state}:
        raise BundleError(
            f"the bundle's graph has {min(unknown)}, which the model that it names lacks; "
            "install the model that it was trained from"
        )
    arrays = {name: _value(stored, TOWER + name) for name in state}
    missing = [name for name, array in arrays.items() if array is None and state[name].ndim == 2]
    for node in proto.node:
        if node.op_type in ("MatMul", "MatMulInteger") and node.input[1] in stored and missing:
            matrix = _value(stored, node.input[1].removesuffix(QUANTIZED))  # (in, out)
            path = [*node.name.split("/")[:-1], "weight"]
            name = max(missing, key=lambda name: _common_end(path, name))
            missing.remove(name)
            arrays[name] = None if matrix is None else matrix.T
    with torch.no_grad():
        for name, array in arrays.items():
            if array is None:
                continue
            if array.shape != tuple(state[name].shape):
                raise BundleError(
                    f"the bundle's graph has {name} of {array.shape}, the model that it names "
                    f"{tuple(state[name].shape)}; install the model that it was trained from"
                )
            state[name].copy_(torch.from_numpy(np.array(array)))
    return any(name.endswith(QUANTIZED) for name in stored)


def _value(arrays: Mapping[str, Any], name: str) -> FloatArray | None:
    if name in arrays:
        array: FloatArray = arrays[name]
        return array
    if name + QUANTIZED not in arrays:
        return None
    steps = arrays[name + QUANTIZED].astype(np.float32) - arrays[f"{name}_zero_point"]
    scaled: FloatArray = (steps * arrays[f"{name}_scale"]).astype(np.float32)
    return scaled


def _common_end(path: Sequence[str], name: str) -> int:
    """Return how many parts at their ends a node's path and a parameter's name share."""
    parts = ".".join(path).split(".")
    pairs = zip(reversed(parts), reversed(name.split(".")), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(parts))
