"""Bundles and archives from strangers: every claim of the threat model, tried by its own attack."""

import json
import os
import resource
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from crossing import CONFIG as CROSS
from crossing import cross_bundle
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save
from test_security_hostile import plant

from two_tower.ingest.versions.snapshots import open_archive
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.encoders import OnnxEncoder, open_session
from two_tower.models.bundle.files import (
    CARD,
    CONFIG,
    CROSS_SCORER,
    FUSION,
    PCA,
    TOKENIZER,
    TOWERS,
    digests,
)
from two_tower.models.bundle.onnx_graph import LARGEST_TENSOR
from two_tower.models.errors import BundleError, DataError
from two_tower.models.text.transformer_tokenizer import INPUT

__all__ = ["cross_bundle"]

FILES = (CARD, CONFIG, PCA, TOKENIZER, TOWERS)


@pytest.fixture
def bundle(tmp_path: Path, tiny_bundle: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def refused(bundle: Path, match: str = ".") -> None:
    with pytest.raises(BundleError, match=match) as failure:
        ModelBundle.load(bundle)
    assert "\n" not in str(failure.value)
    assert len(str(failure.value)) < 800


@pytest.mark.parametrize("name", FILES)
def test_a_link_that_leads_out_is_not_followed(bundle: Path, name: str) -> None:
    outside = bundle.parent / "outside"
    (bundle / name).rename(outside)
    (bundle / name).symlink_to(outside)
    refused(bundle, "leads out of the folder")


@pytest.mark.parametrize("name", FILES)
def test_a_link_inside_is_followed(bundle: Path, name: str) -> None:
    (bundle / name).rename(bundle / "moved")
    (bundle / name).symlink_to("moved")
    assert ModelBundle.load(bundle).dim == 24


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["pipe", "circle", "folder", "device", "socket"])
def test_what_is_no_plain_file_is_not_read(bundle: Path, name: str, kind: str) -> None:
    path = bundle / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "circle":
        path.symlink_to(name)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        os.mknod(path, 0o600 | stat.S_IFSOCK)
    else:
        path.symlink_to("/dev/zero")
    refused(bundle, "cannot be read")


@pytest.mark.parametrize("name", [FUSION, CROSS_SCORER])
def test_an_extra_that_is_a_link_is_not_followed(bundle: Path, name: str) -> None:
    (bundle / name).symlink_to("/etc/passwd")
    refused(bundle, "cannot be read")


CONFIGS: dict[str, Any] = {
    "no object": [], "deep": None, "no tower": {"tower": None}, "a list": {"tower": []},
    "no kind": {"tower": {"shared": True}}, "kind": {"tower": {"kind": [], "shared": True}},
    "another kind": {"tower": {"kind": "quantum", "shared": True}},
    "dims in words": {"pca_dims": ["eight"]}, "negative dims": {"pca_dims": [-8]},
    "absurd dims": {"pca_dims": [10**12]}, "dims": {"pca_dims": 8}, "prefixes": {"prefixes": [1]},
    "prefix": {"prefixes": {"query": 1}}, "tokenizer": {"tokenizer": "x"}, "late": {"late": True},
    "late dims": {"late": {"dim": 10**9}}, "documents": {"documents": "x"},
    "no documents": {"documents": {}}, "vocabulary": {"tokenizer": {"vocab_size": -1}},
    "recurrent": {"tower": {"kind": "gru", "shared": True, "dim": 24,
                            "rnn": {"hidden": 100_000, "bidirectional": True}}},
}  # fmt: skip


@pytest.mark.parametrize("what", CONFIGS)
def test_a_configuration_of_another_form_is_refused(bundle: Path, what: str) -> None:
    config = json.loads((bundle / CONFIG).read_text())
    change = CONFIGS[what]
    content = json.dumps({**config, **change} if isinstance(change, dict) else change).encode()
    plant(bundle, CONFIG, b"[" * 100_000 if what == "deep" else content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(bundle)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


@pytest.mark.parametrize("change", [{"cross": {"hidden": 7000}}, {"cross": {"dim": 10**6}}])
def test_the_size_of_a_cross_scorer_is_that_of_its_tensors(
    tmp_path: Path, cross_bundle: Path, change: dict[str, dict[str, int]]
) -> None:
    folder = shutil.copytree(cross_bundle, tmp_path / "bundle")
    fusion = json.loads((folder / FUSION).read_text())
    fusion["cross"] |= change["cross"]
    (folder / FUSION).write_text(json.dumps(fusion))
    card = json.loads((folder / CARD).read_text())
    card["extras"] |= digests({FUSION: (folder / FUSION).read_bytes()})
    (folder / CARD).write_text(json.dumps(card))
    opened = ModelBundle.load(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    numbers = np.ones(2, np.float32)
    if "dim" in change["cross"]:  # the vectors say how wide they are
        assert opened.cross_scores("a", ["b", "c"], bm25=numbers, cosine=numbers).shape == (2,)
    else:
        with pytest.raises(BundleError, match="does not fit its configuration"):
            opened.cross_scores("a", ["b", "c"], bm25=numbers, cosine=numbers)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    assert CROSS.hidden == 4


@pytest.mark.parametrize("extras", [[], "x", {"../x": "y"}, {FUSION: 7}, {"card.json": "x"}])
def test_a_card_of_another_form_is_refused(bundle: Path, extras: Any) -> None:
    card = json.loads((bundle / CARD).read_text())
    (bundle / CARD).write_text(json.dumps({**card, "extras": extras}))
    if extras:
        refused(bundle)


@pytest.mark.parametrize("name", [TOWERS, PCA])
@pytest.mark.parametrize("dtype", [np.float64, np.int8, np.float16])
def test_numbers_of_another_type_are_refused(bundle: Path, name: str, dtype: Any) -> None:
    plant(bundle, name, save({"query.vectors": np.zeros((4, 4), dtype)}))
    refused(bundle)


def graph(*nodes: onnx.NodeProto, constants: list[TensorProto] | None = None) -> bytes:
    """A graph from `input_ids` to `out`; all of it is in the operations."""
    inputs = [helper.make_tensor_value_info(INPUT, TensorProto.INT64, [1, None])]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 4])]
    made = helper.make_graph(list(nodes), "g", inputs, outputs, constants or [])
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(made, opset_imports=opsets, ir_version=8).SerializeToString()


def honest() -> bytes:
    table = numpy_helper.from_array(np.ones((9, 4), np.float32), "table")
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
    from two_tower.models.text.tokenizer import token_rows

    np.testing.assert_allclose(encoder.encode(token_rows([[1, 2]])), [[0.5] * 4])
    with pytest.raises(BundleError, match="graph fails"):
        encoder.encode(token_rows([[1_000_000]]))


def zipped(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def lying(path: Path, size: int) -> Path:
    """An archive whose directory says that an entry unpacks to `size` bytes."""
    manifest = {
        "format": "two-tower-search-snapshot/1", "collection": "c--12345678", "points": 1,
        "embedded": True, "engine_version": "1", "created_at": "2026-11-29T00:00:00+00:00",
        "metadata": {}, "files": [{"name": "x", "size": size, "sha256": "0" * 64}],
    }  # fmt: skip
    zipped(path, {"x": b"\0" * 1000, "manifest.json": json.dumps(manifest).encode()})
    content = path.read_bytes()
    content = content.replace(
        (1000).to_bytes(4, "little"), min(size, 2**32 - 2).to_bytes(4, "little")
    )
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("size", [10**9, 2**32 - 2, 10**15])
def test_an_archive_does_not_unpack_without_bound(tmp_path: Path, size: int) -> None:
    path = lying(tmp_path / "a.zip", size)
    with pytest.raises(DataError, match="is no complete archive"), open_archive(path):
        pass
