"""Towers as ONNX graphs: `input_ids` (1, tokens) int64 -> `vector` (1, dim) float32 of length 1."""

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from two_tower.models.config import from_mapping
from two_tower.models.errors import ConfigError
from two_tower.models.networks.recurrent import RnnTower
from two_tower.models.networks.tower_config import TowerConfig
from two_tower.models.networks.towers import make_tower
from two_tower.models.text.transformer_tokenizer import INPUT, MISSING
from two_tower.models.vectors import FloatArray

OUTPUT = "vector"
OPSET = 18
IR_VERSION = 8  # ONNX Runtime 1.14 and later read it


def mean_graph(weighted: FloatArray) -> bytes:
    """Return the graph of a mean tower.

    Args:
        weighted: (vocab, dim) float32, token vectors times their weights.

    Raises:
        ConfigError: a package of the extra is not installed.
    """
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        raise ConfigError(MISSING.format(name="onnx")) from None
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "weighted": weighted,
        "smallest": np.array(np.finfo(np.float32).tiny, dtype=np.float32),
        "tokens": np.array([1], dtype=np.int64),  # the axis
    }
    nodes = [
        helper.make_node("Gather", ["weighted", INPUT], ["each"]),  # (1, tokens, dim)
        helper.make_node("ReduceSum", ["each", "tokens"], ["sum"], keepdims=0),  # (1, dim)
        helper.make_node("ReduceL2", ["sum", "tokens"], ["length"], keepdims=1),  # (1, 1)
        helper.make_node("Max", ["length", "smallest"], ["divisor"]),
        helper.make_node("Div", ["sum", "divisor"], [OUTPUT]),
    ]
    graph = helper.make_graph(
        nodes,
        "mean_tower",
        [helper.make_tensor_value_info(INPUT, TensorProto.INT64, [1, "tokens"])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [1, weighted.shape[1]])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
    content: bytes = model.SerializeToString()
    return content


def recurrent_graph(tower: Mapping[str, Any], arrays: Mapping[str, FloatArray]) -> bytes:
    """Return the graph of a recurrent tower.

    Args:
        tower: that part of config.json.
        arrays: the tower's parameters, by the names that it gives them.

    Raises:
        ConfigError: a package of the extra is not installed.
    """
    network = make_tower(
        from_mapping(TowerConfig, tower, where="tower."),
        vectors=arrays["vectors"],
        weights=arrays["weights"],
    )
    assert isinstance(network, RnnTower), "mean towers have a graph of their own"
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tower.onnx"
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # advice on another exporter, and on batches
                torch.onnx.export(
                    OneRow(network),
                    (torch.arange(1, 9)[None],),
                    path,
                    input_names=[INPUT],
                    output_names=[OUTPUT],
                    dynamic_axes={INPUT: {1: "tokens"}},
                    opset_version=OPSET,
                    dynamo=False,  # the other exporter needs one more package
                )
        except torch.onnx.errors.OnnxExporterError:
            raise ConfigError(MISSING.format(name="onnx")) from None
        return path.read_bytes()


class OneRow(nn.Module):
    """What `RnnTower` computes, for one row without buckets and padding: it can be traced."""

    def __init__(self, tower: RnnTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, ids: Tensor) -> Tensor:
        """Return (1, dim) float32, L2-normalised, for ids (1, tokens) int64."""
        tower = self.tower
        scale = tower.weights.index_select(0, ids[0])[:, None]
        inputs = tower.vectors.index_select(0, ids[0]) * scale  # (tokens, dim)
        pooled = [self._pool(tower.onward(inputs[:, None])[0])]
        if tower.back is not None:
            pooled.append(self._pool(tower.back(inputs.flip(0)[:, None])[0]))
        states = torch.cat(pooled, dim=1)  # (1, width)
        if tower.projection is not None:
            states = tower.projection(states)
        if tower.config.skip:
            states = states + functional.normalize(inputs.sum(dim=0, keepdim=True), dim=1)
        return functional.normalize(states, dim=1)

    def _pool(self, states: Tensor) -> Tensor:
        """Return (1, hidden) of states (tokens, 1, hidden)."""
        if self.tower.config.pooling == "last":
            return states[-1]
        return states.amax(dim=0) if self.tower.config.pooling == "max" else states.mean(dim=0)
