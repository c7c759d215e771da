"""Millions of passages that are like real ones: their sentences, put together anew.

Every made passage takes sentences of two or three real passages of one topic (a k-means cluster of
the tower's vectors), until it is as long as some real passage. So words come with the neighbours
that they have, lengths are those of real passages, and vectors lie where real ones do. How near
that is, `likeness` says. The real passages come first, with their queries and judgements.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import MiniBatchKMeans

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.data import Dataset, Passage
from two_tower.models.text.bm25 import Bm25Config
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder

TOPICS = 2000
MOST_SOURCES = 3
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
SAMPLE = 5000
BLOCK = 100_000


def prepare(path: Path, source: Dataset, bundle: ModelBundle, count: int) -> Dataset:
    """Return DATA of `count` passages, `source`'s own first; made unless it is there."""
    if path.is_dir() and Dataset.open(path).passage_count == count:
        return Dataset.open(path)
    real = list(source.passages())
    with DatasetWriter(path, source="recombined sentences", overwrite=True, merge=False) as writer:
        for passage in real:
            writer.add_passage(passage)
        for passage in islice(recombined(real, bundle), count - len(real)):
            writer.add_passage(passage)
        for query in source.queries():
            writer.add_query(query)
        for split in source.splits:
            for qrel in source.qrels(split):
                writer.add_qrel(qrel)
    return Dataset.open(path)


def recombined(real: Sequence[Passage], bundle: ModelBundle) -> Iterator[Passage]:
    """Yield made passages without end, always the same ones."""
    random = np.random.default_rng(0)
    sentences = [SENTENCE_END.split(passage.text) for passage in real]
    lengths = np.array([len(passage.text) for passage in real])
    vectors = bundle.encode_passages([passage.content for passage in real])
    topics = MiniBatchKMeans(TOPICS, random_state=0, n_init=1, batch_size=8192).fit_predict(vectors)
    members = [np.flatnonzero(topics == topic) for topic in range(TOPICS)]
    number = 0
    while True:
        topic_of = topics[random.integers(len(real), size=BLOCK)]  # a topic as often as it is
        goals = lengths[random.integers(len(real), size=BLOCK)]
        draws = random.random((BLOCK, MOST_SOURCES))
        seeds = random.integers(2**63, size=BLOCK)
        for topic, goal, draw, seed in zip(topic_of, goals, draws, seeds, strict=True):
            rows = members[topic][(draw * len(members[topic])).astype(int)]
            parts = [part for row in dict.fromkeys(rows.tolist()) for part in sentences[row]]
            yield Passage(f"made-{number}", _text(parts, goal, seed))
            number += 1


def _text(parts: list[str], goal: int, seed: int) -> str:
    """Put sentences in another order, as many as a passage of `goal` characters has."""
    order = np.random.default_rng(seed).permutation(len(parts))
    text: list[str] = []
    size = 0
    for place in order:
        if text and size + len(parts[place]) / 2 > goal:  # nearer to the goal without it
            break
        text.append(parts[place])
        size += len(parts[place]) + 1
    return " ".join(text)


def likeness(dataset: Dataset, bundle: ModelBundle, real: int) -> dict[str, dict[str, float]]:
    """Return statistics of the real and of the made passages, beside each other."""
    passages = dataset.passages()
    first = list(islice(passages, 0, real, max(1, real // SAMPLE)))
    step = max(1, (dataset.passage_count - real) // SAMPLE)
    made = list(islice(passages, 0, None, step))
    return {"real": statistics(first, bundle), "made": statistics(made, bundle)}


def statistics(passages: Sequence[Passage], bundle: ModelBundle) -> dict[str, Any]:
    """Return characters, BM25 terms and cosines of passages with one another."""
    encoder = Bm25Encoder(Bm25Config(avg_len=1.0))
    terms = [len(vector.indices) for vector in encoder.encode_passages(passages)]
    vectors = bundle.encode_passages([passage.content for passage in passages])
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, np.nan)
    low, middle, high = np.nanpercentile(cosines, [5, 50, 95])
    return {
        "characters": round(float(np.mean([len(passage.text) for passage in passages])), 1),
        "bm25_terms": round(float(np.mean(terms)), 1),
        "cosine_p5": round(float(low), 3),
        "cosine_p50": round(float(middle), 3),
        "cosine_p95": round(float(high), 3),
        "nearest_p50": round(float(np.median(np.nanmax(cosines, axis=1))), 3),
    }
