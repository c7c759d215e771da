"""ONNX graphs from strangers: what they may hold, take and give, each tried by its own attack."""

import itertools
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from two_tower.models.bundle.encoders import OnnxEncoder
from two_tower.models.bundle.onnx_graph import LARGEST_TENSOR
from two_tower.models.bundle.onnx_session import MOST_BYTES, open_session
from two_tower.models.errors import BundleError
from two_tower.models.text.tokenizer import token_rows
from two_tower.models.text.transformer_tokenizer import INPUT


def graph(*nodes: onnx.NodeProto, constants: list[TensorProto] | None = None) -> bytes:
    """A graph from `input_ids` to `out`; all of it is in the operations."""
    inputs = [helper.make_tensor_value_info(INPUT, TensorProto.INT64, [1, None])]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 4])]
    made = helper.make_graph(list(nodes), "g", inputs, outputs, constants or [])
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(made, opset_imports=opsets, ir_version=8).SerializeToString()


def honest(rows: int = 9) -> bytes:
    table = numpy_helper.from_array(np.ones((rows, 4), np.float32), "table")
    axes = numpy_helper.from_array(np.array([1]), "axes")
    return graph(
        helper.make_node("Gather", ["table", INPUT], ["each"]),
        helper.make_node("ReduceSum", ["each", "axes"], ["out"], keepdims=0),
        constants=[table, axes],
    )


def elsewhere(location: str, *, in_node: bool = False) -> bytes:
    tensor = TensorProto(name="table", data_type=TensorProto.FLOAT, dims=[1, 4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "16"}.items():
        tensor.external_data.add(key=key, value=value)
    if in_node:
        return graph(helper.make_node("Constant", [], ["out"], value=tensor))
    return graph(helper.make_node("Identity", ["table"], ["out"]), constants=[tensor])


def sized(kind: str, sizes: list[int], **attributes: Any) -> bytes:
    shape = numpy_helper.from_array(np.array(sizes, np.int64), "shape")
    one = numpy_helper.from_array(np.ones((1, 1), np.float32), "one")
    inputs = {"ConstantOfShape": ["shape"]}.get(kind, ["one", "shape"])
    made = helper.make_node(kind, inputs, ["out"], **attributes)
    return graph(made, constants=[shape, one])


def constant_node(sizes: list[int]) -> bytes:
    value = numpy_helper.from_array(np.array(sizes, np.int64))
    return graph(
        helper.make_node("Constant", [], ["shape"], value=value),
        helper.make_node("ConstantOfShape", ["shape"], ["out"]),
    )


def looped(kind: str) -> bytes:
    body = helper.make_graph([], "b", [], [])
    names = ("then_branch", "else_branch") if kind == "If" else ("body",)
    return graph(helper.make_node(kind, ["c"], ["out"], **dict.fromkeys(names, body)))


def larger_than_its_bytes() -> bytes:
    tensor = TensorProto(name="table", data_type=TensorProto.FLOAT, dims=[2**20, 2**20])
    tensor.raw_data = b"\0" * 16
    return graph(helper.make_node("Identity", ["table"], ["out"]), constants=[tensor])


HUGE = [LARGEST_TENSOR, 16]

GRAPHS: dict[str, Callable[[], bytes]] = {
    "absolute": lambda: elsewhere("/etc/passwd"),
    "parent": lambda: elsewhere("../../../../etc/passwd"),
    "beside": lambda: elsewhere("towers.safetensors"),
    "in an operation": lambda: elsewhere("/etc/passwd", in_node=True),
    "constant of shape": lambda: sized("ConstantOfShape", HUGE),
    "expand": lambda: sized("Expand", HUGE),
    "tile": lambda: sized("Tile", HUGE),
    "pad": lambda: sized("Pad", [0, 0, *HUGE]),
    "constant in an operation": lambda: constant_node(HUGE),
    "larger than its bytes": larger_than_its_bytes,
    **{kind: (lambda kind=kind: looped(kind)) for kind in ("If", "Loop", "Scan")},
    "empty": lambda: b"",
    "no graph": lambda: b"\xff" * 100,
    "cut short": lambda: honest()[:-40],
    "negative size": lambda: honest().replace(b"\x08\x09\x08\x04", b"\x08\xff\x08\x04"),
}  # fmt: skip


@pytest.mark.parametrize("what", GRAPHS)
def test_a_hostile_graph_is_refused_before_it_is_opened(what: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BundleError) as failure:
        open_session(GRAPHS[what](), inputs=(INPUT,))
    assert "\n" not in str(failure.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_an_honest_graph_is_opened_and_its_failures_are_errors() -> None:
    encoder = OnnxEncoder(honest())
    assert encoder.dim == 4
    np.testing.assert_allclose(encoder.encode(token_rows([[1, 2]])), [[0.5] * 4])
    with pytest.raises(BundleError, match="graph fails"):
        encoder.encode(token_rows([[1_000_000]]))


def unfolding() -> bytes:
    """Functions that call each other twice, thirty levels deep."""

    def twice(level: int) -> onnx.FunctionProto:
        kind = "Identity" if level == 0 else f"f{level - 1}"
        domain = "" if level == 0 else "own"
        nodes = [helper.make_node(kind, [a], [b], domain=domain) for a, b in ("xy", "yz")]
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        return helper.make_function("own", f"f{level}", ["x"], ["z"], nodes, opsets)

    model = onnx.load_from_string(honest())
    model.functions.extend(twice(level) for level in range(30))
    return model.SerializeToString()


BODY = helper.make_graph([], "b", [], [])

OTHER_OPERATIONS: dict[str, Callable[[], bytes]] = {
    "functions that unfold": unfolding,
    "a beam search": lambda: graph(
        helper.make_node("BeamSearch", [INPUT], ["out"], domain="com.microsoft", decoder=BODY)
    ),
    "a graph in what has none": lambda: graph(helper.make_node("Abs", ["x"], ["out"], body=BODY)),
    "a sequence": lambda: graph(helper.make_node("SplitToSequence", [INPUT], ["out"])),
    "a string": lambda: graph(helper.make_node("Cast", [INPUT], ["out"], to=TensorProto.STRING)),
    "a constant string": lambda: graph(
        helper.make_node("Constant", [], ["out"], value_string="a" * 1000)
    ),
    "strings": lambda: graph(
        helper.make_node("Identity", ["s"], ["out"]),
        constants=[helper.make_tensor("s", TensorProto.STRING, [1], [b"a" * 1000])],
    ),
    "its own operation": lambda: graph(helper.make_node("\x1b[2J", [INPUT], ["out"])),
    "another domain": lambda: graph(helper.make_node("Add", [INPUT, INPUT], ["out"], domain="x")),
}


@pytest.mark.parametrize("what", OTHER_OPERATIONS)
def test_a_graph_has_only_operations_of_encoders(what: str) -> None:
    with pytest.raises(BundleError, match="which no graph of ours has") as failure:
        open_session(OTHER_OPERATIONS[what](), inputs=(INPUT,))
    assert str(failure.value).isprintable()


node = helper.make_node


def computed(*nodes: onnx.NodeProto, **constants: Any) -> bytes:
    """A graph that computes `x`, of any size, and sums it up."""
    numbers = {"one": np.ones(1, np.float32), "two": np.array([2]), "many": np.array([2**20]),
               "row": np.ones(100_000, np.float32), "as_column": np.array([-1, 1]),
               "four": np.array([1, 4]), "zero": np.array(0), "step": np.array(1)}  # fmt: skip
    return graph(
        *nodes,
        node("Cast", ["x"], ["numbers"], to=TensorProto.FLOAT),
        node("ReduceSum", ["numbers"], ["sum"], keepdims=0),
        node("Expand", ["sum", "four"], ["out"]),
        constants=[numpy_helper.from_array(a, name) for name, a in (numbers | constants).items()],
    )


def doubled(kind: str, first: str) -> list[onnx.NodeProto]:
    """What joins a tensor to itself thirty times."""
    names = [first, *(f"d{level}" for level in range(30)), "x"]
    attributes = {"axis": 0} if kind == "Concat" else {}
    return [
        node(kind, [a, a if kind == "Concat" else "two"], [b], **attributes)
        for a, b in itertools.pairwise(names)
    ]


SQUARE = node("Mul", ["many", "many"], ["size"])
COMPUTED: dict[str, Callable[[], bytes]] = {
    "constant of shape": lambda: computed(SQUARE, node("ConstantOfShape", ["size"], ["x"])),
    "expand": lambda: computed(SQUARE, node("Expand", ["one", "size"], ["x"])),
    "tile": lambda: computed(node("Tile", ["row", "many"], ["x"])),
    "pad": lambda: computed(
        SQUARE, node("Concat", ["many", "size"], ["ends"], axis=0),
        node("Pad", ["one", "ends"], ["x"]),
    ),
    "range": lambda: computed(
        SQUARE, node("Squeeze", ["size"], ["end"]), node("Range", ["zero", "end", "step"], ["x"])
    ),
    "one hot": lambda: computed(
        SQUARE, node("Concat", ["one", "one"], ["values"], axis=0),
        node("OneHot", ["two", "size", "values"], ["x"]),
    ),
    "eye": lambda: computed(
        node("Concat", ["many", "many"], ["sides"], axis=0),
        node("ConstantOfShape", ["sides"], ["zeros"]), node("EyeLike", ["zeros"], ["x"]),
    ),
    "a row times a column": lambda: computed(
        node("Reshape", ["row", "as_column"], ["column"]), node("Mul", ["row", "column"], ["x"])
    ),
    "einsum": lambda: computed(node("Einsum", ["row", "row"], ["x"], equation="i,j->ij")),
    "numbers joined to themselves": lambda: computed(*doubled("Concat", "one")),
    "sizes joined to themselves": lambda: computed(*doubled("Concat", "many")),
    "shapes joined to themselves": lambda: computed(
        node("Shape", [INPUT], ["shape"]), *doubled("Concat", "shape")
    ),
    "inputs joined to themselves": lambda: computed(
        node("Squeeze", [INPUT], ["ids"]), *doubled("Concat", "ids")
    ),
    "tiles of tiles": lambda: computed(*doubled("Tile", "one")),
    "the shape of the input": lambda: computed(
        node("Shape", [INPUT], ["shape"]), node("Mul", ["shape", "many"], ["size"]),
        node("ConstantOfShape", ["size"], ["x"]),
    ),
    "the input": lambda: computed(
        node("Squeeze", [INPUT], ["ids"]), node("Mul", ["ids", "many"], ["size"]),
        node("ConstantOfShape", ["size"], ["x"]),
    ),
}  # fmt: skip

TRIED = """
import sys
from pathlib import Path

import numpy as np

from two_tower.models.bundle import onnx_session
from two_tower.models.bundle.encoders import OnnxEncoder
from two_tower.models.errors import BundleError
from two_tower.models.text.tokenizer import token_rows

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1000

onnx_session.MOST_BYTES = 2**28
OnnxEncoder(Path(sys.argv[1]).read_bytes()).encode(token_rows([[1, 2]]))
for path in map(Path, sys.argv[2:]):
    before = peak()
    try:
        OnnxEncoder(path.read_bytes()).encode(token_rows([[30_000] * 3]))
        said = "nothing"
    except BundleError as error:
        said = str(error)
    print(path.stem, peak() - before, said, sep="\t")
"""


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """What each graph took, in MB, and what was said, in a process of its own."""
    folder = tmp_path_factory.mktemp("graphs")
    (folder / "honest").write_bytes(honest(rows=40_000))
    for name, made in COMPUTED.items():
        (folder / f"{name}.onnx").write_bytes(made())
    paths = [folder / "honest", *(folder / f"{name}.onnx" for name in COMPUTED)]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", TRIED, *map(str, paths)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    lines = (line.split("\t") for line in done.stdout.splitlines())
    return {name: (int(took), said) for name, took, said in lines}


@pytest.mark.parametrize("what", COMPUTED)
def test_no_size_that_a_graph_computes_takes_more_than_the_limit(
    what: str, tried: dict[str, tuple[int, str]]
) -> None:
    took, said = tried[what]
    assert "graph fails (" in said
    assert took < 300  # MB; the limit there is 268


def test_the_limit_that_ships_holds_in_this_process() -> None:
    encoder = OnnxEncoder(COMPUTED["expand"]())
    with pytest.raises(BundleError, match="graph fails"):
        encoder.encode(token_rows([[1, 2]]))
    assert 4 * 2**30 < MOST_BYTES < 64 * 2**30


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_of_a_graph_that_are_not_finite_are_refused(value: float) -> None:
    odd = numpy_helper.from_array(np.full((1, 4), value, np.float32), "odd")
    encoder = OnnxEncoder(graph(node("Identity", ["odd"], ["out"]), constants=[odd]))
    with pytest.raises(BundleError, match="not finite"):
        encoder.encode(token_rows([[1]]))


def test_a_vector_of_another_width_than_the_graph_says_is_refused() -> None:
    size = numpy_helper.from_array(np.array([1, 3]), "size")
    grown = graph(
        node("Shape", [INPUT], ["shape"]),
        node("Mul", ["shape", "size"], ["wide"]),
        node("ConstantOfShape", ["wide"], ["out"]),
        constants=[size],
    )
    with pytest.raises(BundleError, match=r"gives \(1, 6\), expected \(1, 4\)|graph fails"):
        OnnxEncoder(grown).encode(token_rows([[1, 2]]))
