"""BM25: ours in both engines beside bm25s and rank-bm25, from text to the 100 best passages."""

import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np
from peers_corpus import Corpus, Row, System, ask_in_turns, compare
from peers_engines import Engines, at_most, loaded

from two_tower.models.data import Passage, Query
from two_tower.models.text.bm25 import Bm25Config, average_length
from two_tower.models.vectors import FloatArray
from two_tower.retriever.collection.bm25_vectors import EngineAnalyzer
from two_tower.retriever.evaluation.systems import rank_bm25_ranker
from two_tower.retriever.search.settings import SearchSettings

DEPTH = 100
MEASURES = ("ndcg@10", "recall@100")
SLOWEST = "rank-bm25"


class Angles:
    """A tower that costs next to nothing, so that a load is BM25's and the engine's.

    It has the part of `ModelBundle` that loading and retrieval use.
    """

    fusion = None
    has_cross_scorer = asks_endpoint = False
    dim = 2
    pca_dims = ()
    late_dim = 0
    fingerprint = "a" * 64

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        """Return (n, 2) float32 of length 1, by the CRC of each text."""
        angles = np.array([zlib.crc32(text.encode(errors="replace")) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    encode_queries = encode_passages

    def reduce(self, vectors: FloatArray) -> dict[int, FloatArray]:
        """Return nothing smaller."""
        return {}


class Bm25s:
    """bm25s with English stop words and PyStemmer, as its README shows; our k and b."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        import bm25s
        import Stemmer

        self._tokenize, self._stemmer = bm25s.tokenize, Stemmer.Stemmer("english")
        self._ids = [passage.passage_id for passage in passages]
        self._depth = at_most(DEPTH, passages)
        usual = Bm25Config(avg_len=1.0)
        self._index = bm25s.BM25(k1=usual.k, b=usual.b, method="lucene")
        self._index.index(self._terms([p.content for p in passages]), show_progress=False)

    def ask(self, text: str) -> list[str]:
        """Return the ids of the best passages that share a term with the query."""
        terms = self._terms([text])
        if not terms[0] or not any(term in self._index.vocab_dict for term in terms[0]):
            return []
        rows, scores = self._index.retrieve(terms, k=self._depth, show_progress=False)
        pairs = zip(rows[0].tolist(), scores[0].tolist(), strict=True)
        return [self._ids[row] for row, score in pairs if score > 0]

    def _terms(self, texts: list[str]) -> list[list[str]]:
        found: list[list[str]] = self._tokenize(
            texts, stopwords="en", stemmer=self._stemmer, return_ids=False, show_progress=False
        )
        return found


class RankBm25:
    """rank-bm25 (Okapi) over our analyzer's terms: it brings none of its own."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        length = average_length((passage.content for passage in passages), EngineAnalyzer())
        self._ranker = rank_bm25_ranker(passages, Bm25Config(avg_len=length))

    def ask(self, text: str) -> list[str]:
        """Return the ids of the best passages that share a term with the query."""
        (passage_ids,) = self._ranker.rank([Query("", text)], DEPTH)
        return passage_ids


def lexical_rows(engines: Engines, corpus: Corpus, *, judge_all: bool) -> list[Row]:
    """Build all indexes and ask them in turns; return a row for each system.

    With `judge_all`, all but the slowest answer all judged queries as well.
    """
    with lexical_systems(engines, corpus) as built:
        systems = [each.system for each in built]
        rows = compare("bm25", corpus, systems, MEASURES)
        for row, each in zip(rows, built, strict=True):
            row["build_s"] = round(each.seconds, 2)
        if judge_all:
            judge(rows, corpus, [system for system in systems if system.name != SLOWEST])
    return rows


class Built(NamedTuple):
    """A system, and the seconds until it could be asked."""

    system: System
    seconds: float


@contextmanager
def lexical_systems(engines: Engines, corpus: Corpus) -> Iterator[list[Built]]:
    """Build every system; ours are dropped at the end."""
    legs = SearchSettings(legs={"bm25": DEPTH}, rerank=False, cross=False)
    depth = at_most(DEPTH, corpus.passages)
    built = []
    with ExitStack() as stack:
        for name, engine in engines.each().items():
            found = stack.enter_context(loaded(engine, corpus, Angles()))
            system = found.system(f"ours, {name}", Angles(), legs, k=depth)
            built.append(Built(system, found.indexed_s))
        peers: dict[str, type[Bm25s | RankBm25]] = {"bm25s": Bm25s, SLOWEST: RankBm25}
        for name, peer in peers.items():
            start = time.perf_counter()
            ask = peer(corpus.passages).ask
            built.append(Built(System(name, ask), time.perf_counter() - start))
        yield built


def judge(rows: list[Row], corpus: Corpus, systems: Sequence[System]) -> None:
    """Add the measures over all judged queries to the systems' rows."""
    asked = ask_in_turns(systems, corpus.judged.queries, ())
    for row in rows:
        if found := asked.get(row["system"]):
            metrics = corpus.judged.metrics(found.rankings, MEASURES)
            row["judged"] = len(found.rankings)
            row |= {f"all_{name}": value for name, value in metrics.items()}
