"""Transformers through torch: the vectors of ONNX Runtime, whatever is read beside a text."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_bundle
from pair_models import MINILM, require_transformers, save_model

from two_tower.ingest.loading.verify import EIGHT_BIT_TOLERANCE
from two_tower.models.bundle import devices
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.devices import check_device, put_on, reads_in_8_bits
from two_tower.models.bundle.encoders import OnnxEncoder, TokenEncoder
from two_tower.models.bundle.reduction import fit_reduction
from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.networks.transformer import open_transformer, transformer_files
from two_tower.models.text.tokenizer import TokenizerConfig
from two_tower.models.text.transformer_tokenizer import GRAPH
from two_tower.retriever.search.bundles import load_bundle

require_transformers()

TEXTS = [
    *(f"ice number {number} melts in spring" for number in range(6)),
    "Rust is iron oxide.",
    "",
    "water " * 60,
    *("one", "two words", "a somewhat longer text, with signs: (1) & 2!"),
]


def files_of(model: str, *, int8: bool) -> dict[str, bytes]:
    opened = open_transformer(model, TokenizerConfig(max_passage_tokens=48, max_query_tokens=16))
    return transformer_files(opened.tower, opened.tokenizer, int8=int8)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return files_of(MINILM, int8=False)


def test_torch_gives_the_vectors_of_onnx(files: dict[str, bytes]) -> None:
    onnx, ours = TokenEncoder(files), TokenEncoder(files, device="cpu")
    expected, found = onnx.passages_with_tokens(TEXTS), ours.passages_with_tokens(TEXTS)
    np.testing.assert_allclose(found.vectors, expected.vectors, atol=1e-5)
    for one, other in zip(found.tokens, expected.tokens, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("kind", ["distilbert", "mpnet"])
def test_other_architectures(tmp_path: Path, kind: str) -> None:
    folder = save_model(tmp_path / "model", labels=0, kind=kind)
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(folder).save(str(tmp_path / "st"))
    files = files_of(str(tmp_path / "st"), int8=False)
    rows = TokenEncoder(files)._tokenizer.encode_passages(TEXTS)
    onnx, ours = OnnxEncoder(files[GRAPH]), OnnxEncoder(files[GRAPH], device="cpu")
    np.testing.assert_allclose(ours.encode(rows), onnx.encode(rows), atol=1e-5)


def test_in_8_bits_most_vectors_are_equal_and_the_others_near(tmp_path: Path) -> None:
    files = files_of(MINILM, int8=True)
    assert reads_in_8_bits(bundle_of(files))
    assert not reads_in_8_bits(ModelBundle.load(make_bundle(tmp_path / "table")))
    rows = TokenEncoder(files)._tokenizer.encode_passages(TEXTS)
    onnx, ours = OnnxEncoder(files[GRAPH]), OnnxEncoder(files[GRAPH], device="cpu")
    expected, found = onnx.encode(rows), ours.encode(rows)
    assert np.median(np.abs(found - expected).max(axis=1)) < 1e-3
    assert np.abs(found - expected).max() < EIGHT_BIT_TOLERANCE
    assert (found * expected).sum(axis=1).min() > 0.99
    alone = ours.encode(rows.take(np.array([2])))
    np.testing.assert_allclose(alone[0], found[2], atol=1e-5)


def test_an_operation_that_torch_lacks_here_is_named(
    files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from two_tower.models.bundle import torch_graph

    few = {name: each for name, each in torch_graph.OPERATIONS.items() if name != "Erf"}
    monkeypatch.setattr(torch_graph, "OPERATIONS", few)
    with pytest.raises(BundleError, match="operation Erf; leave --device out"):
        OnnxEncoder(files[GRAPH], device="cpu")


def bundle_of(files: dict[str, bytes]) -> ModelBundle:
    dim = OnnxEncoder(files[GRAPH]).dim
    vectors = np.random.default_rng(0).standard_normal((100, dim)).astype(np.float32)
    config: dict[str, Any] = {
        "tower": {"kind": "transformer", "shared": True, "dim": dim},
        "tokenizer": {},
        "pca_dims": [8],
    }
    return ModelBundle.of_files(config, files, reduction=fit_reduction(vectors, (8,)), card={})


def test_a_bundle_reads_where_it_is_put(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of(files)
    assert not reads_in_8_bits(bundle)
    expected = bundle.encode_queries(TEXTS)
    bundle.save(tmp_path / "bundle")
    put: list[str] = []
    read_on = ModelBundle.read_on
    # The machine that runs this may have no GPU: what would be there is computed on the CPU.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        ModelBundle, "read_on", lambda self, device: put.append(device) or read_on(self, "cpu")
    )
    for device in ("auto", "cuda", "cuda:1"):
        loaded = load_bundle(tmp_path / "bundle", device=device)
        assert loaded
        np.testing.assert_allclose(loaded.encode_queries(TEXTS), expected, atol=1e-5)
    load_bundle(tmp_path / "bundle", device="cpu")
    put_on(ModelBundle.load(make_bundle(tmp_path / "table")), "cuda")  # has nothing to put there
    assert put == ["cuda", "cuda", "cuda:1"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_read(
    device: str, tmp_path: Path
) -> None:
    command = "from two_tower.ingest.cli import app; app()"
    words = ["load", str(tmp_path / "none"), "--collection", "c", "--device", device]
    done = subprocess.run([sys.executable, "-c", command, *words], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"device is {device}, but torch sees 0 CUDA devices" in done.stderr


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected auto, cpu or cuda"):
        check_device(name)


@pytest.mark.parametrize(("module", "extra"), [("torch", "train"), ("onnx", "transformer")])
def test_a_missing_package_is_named_with_its_extra(
    module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from two_tower.models import extras

    def find(name: str) -> object:
        return None if name == module else importlib.util.find_spec(name)

    monkeypatch.setattr(extras, "find_spec", find)
    monkeypatch.setattr(devices, "find_spec", find)
    with pytest.raises(ConfigError, match=rf"cuda needs {module}.*two-tower-search\[{extra}\]"):
        check_device("cuda")
    check_device("auto")
