"""A tiny corpus that can be learnt: each topic has words of its own in passages and queries."""

from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.models.data import Dataset, Passage, Qrel, Query
from two_tower.models.examples import mining
from two_tower.models.training import run
from two_tower.retriever.collection.bm25_vectors import EngineAnalyzer

LETTERS = list("abcdefghijklmnopqrstuvwxyz")

ANALYZER = EngineAnalyzer()
train_bundle = partial(run.train_bundle, analyzer=ANALYZER)
mine_file = partial(mining.mine_file, analyzer=ANALYZER)

# Small enough to train in a second.
QUICK = {
    "tokenizer": {"vocab_size": 1000},
    "word2vec": {"epochs": 1},
    "tower": {"dim": 64},
    "pretrain": {"epochs": 2, "batch_size": 32},
    "labelled": {"epochs": 3, "batch_size": 32},
    "fusion": {"folds": 0},
    "pca_dims": [8, 4],
}


def topic_words(topic: int) -> list[str]:
    """Eight invented words that occur in this topic only."""
    random = np.random.default_rng([1, topic])
    return ["".join(random.choice(LETTERS, 5)) for _ in range(8)]


def write_aliases(path: Path, *, topics: int = 20) -> Dataset:
    """Write DATA whose queries share no word with their passages: only labels connect them.

    A topic has three train queries of two aliases; its dev queries turn their order around.
    """
    with DatasetWriter(path, source="aliases") as writer:
        for topic in range(topics):
            words, aliases = topic_words(topic), topic_words(topics + topic)[:3]
            writer.add_passage(Passage(f"p{topic}", " ".join(words * 2)))
            for number, (first, second) in enumerate(combinations(aliases, 2)):
                queries = {"train": f"{first} {second}", "dev": f"{second} {first}"}
                for split, text in queries.items():
                    query_id = f"{split}{topic}-{number}"
                    writer.add_query(Query(query_id, text))
                    writer.add_qrel(Qrel(query_id, f"p{topic}", 1, split))
    return Dataset.open(path)


def write_topics(
    path: Path,
    *,
    topics: int = 30,
    dev: bool = True,
    relevance: int = 1,
    seed: int = 0,
    source: str = "topics",
) -> Dataset:
    """Write DATA with two passages and two queries per topic; every third topic is dev."""
    random = np.random.default_rng(seed)
    with DatasetWriter(path, source=source) as writer:
        for topic in range(topics):
            words = topic_words(topic)
            for copy in range(2):
                text = " ".join(random.permutation(words[copy : copy + 7] * 3))
                title = f"About {words[0]}" if copy else ""
                writer.add_passage(Passage(f"p{topic}-{copy}", text, title))
                query = f"{words[copy]} {words[3 + copy]} {words[7 * copy]}"
                writer.add_query(Query(f"q{topic}-{copy}", query))
                split = "dev" if dev and topic % 3 == 0 else "train"
                writer.add_qrel(Qrel(f"q{topic}-{copy}", f"p{topic}-{copy}", relevance, split))
    return Dataset.open(path)
