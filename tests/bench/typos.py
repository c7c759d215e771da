"""What a typo costs, and how much of it the reading of unknown words gives back.

    python tests/bench/typos.py COLLECTION DATA [--split dev] [--path DIR] [--bundle BUNDLE]

Each judged query gets one edit (a letter left out, put in, taken for another, two swapped; kinds
and places alike) in one of its words that BM25 counts and that have four letters or more. Queries
without such a word are left out. A row is a system; a column the mean over all queries as they are
and misspelt, both without and with `spelling`.
"""

import argparse
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from two_tower import Retriever, SearchSettings
from two_tower.models.data import Dataset
from two_tower.models.text.bm25 import Analyzer
from two_tower.retriever.collection.bm25_vectors import EngineAnalyzer

SHORTEST = 4
AT_ONCE = 256
WORD = re.compile(r"[^\W\d_]+")
SYSTEMS = {
    "bm25": SearchSettings(legs={"bm25": 100}, rerank=False, late=False, cross=False),
    "hybrid": SearchSettings(cross=False),
    "engine": SearchSettings(),
}


class Typo(NamedTuple):
    """A query, and what somebody typed who meant it."""

    query: str
    typed: str
    word: str


def misspelt(query: str, analyzer: Analyzer, letters: str, rng: random.Random) -> Typo | None:
    """Return the query with one edit in one word; None where no word is long enough."""
    words = [m for m in WORD.finditer(query) if len(m[0]) >= SHORTEST]
    words = [m for m in words if analyzer.term_counts(m[0])]
    if not words:
        return None
    match = rng.choice(words)
    word = match[0]
    edited = word
    while edited == word:
        at, kind = rng.randrange(len(word)), rng.choice(["out", "in", "other", "swapped"])
        left, right, letter = word[:at], word[at:], rng.choice(letters)
        edited = {
            "out": left + right[1:],
            "in": left + letter + right,
            "other": left + letter + right[1:],
            "swapped": left + right[1:2] + right[:1] + right[2:],
        }[kind]
    return Typo(query, query[: match.start()] + edited + query[match.end() :], edited)


def measures(
    retriever: Retriever, queries: Sequence[str], relevant: Sequence[set[str]]
) -> tuple[float, float, int]:
    """Return recall@10, MRR@10, and how many queries had a word that was read as another."""
    recall = reciprocal = 0.0
    read = 0
    for start in range(0, len(queries), AT_ONCE):
        part = queries[start : start + AT_ONCE]
        results = retriever.explain_many(part, k=10)
        for result, answers in zip(results, relevant[start : start + AT_ONCE], strict=True):
            ranks = [hit.rank for hit in result.hits if hit.passage_id in answers]
            recall += len(ranks) / len(answers)
            reciprocal += 1 / ranks[0] if ranks else 0.0
            read += bool(result.read_as)
    return recall / len(queries), reciprocal / len(queries), read


def rows(retriever: Retriever, typos: Sequence[Typo], relevant: list[set[str]]) -> Iterator[str]:
    """Yield a line of the table for each system that the collection has."""
    yield "| | as it is | with spelling | misspelt | misspelt, with spelling | recovered |"
    yield "|---|---|---|---|---|---|"
    right, typed = [typo.query for typo in typos], [typo.typed for typo in typos]
    systems = SYSTEMS if retriever.metadata.has_tower else {"bm25": SYSTEMS["bm25"]}
    if not retriever.bundle.has_cross_scorer:
        systems = {name: each for name, each in systems.items() if name != "engine"}
    for name, settings in systems.items():
        plain = retriever.with_settings(replace(settings, spelling=False))
        spelt = retriever.with_settings(settings)
        columns = [measures(r, q, relevant) for q in (right, typed) for r in (plain, spelt)]
        cost = columns[0][0] - columns[2][0]
        gained = columns[3][0] - columns[2][0]
        cells = " | ".join(f"{recall:.4f} ({mrr:.4f})" for recall, mrr, _ in columns)
        yield f"| {name} | {cells} | {gained / cost:.0%} |"
    yield f"\nread otherwise: {columns[1][2]:,} right and {columns[3][2]:,} misspelt queries"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("collection")
    parser.add_argument("data")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--path")
    parser.add_argument("--url")
    parser.add_argument("--bundle")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data = Dataset.open(arguments.data)
    answers: dict[str, set[str]] = {}
    for qrel in data.qrels(arguments.split):
        if qrel.relevance > 0:
            answers.setdefault(qrel.query_id, set()).add(qrel.passage_id)
    texts = {query.query_id: query.text for query in data.queries() if query.query_id in answers}
    letters = "".join(sorted({c for text in texts.values() for c in text.lower() if c.isalpha()}))
    rng, analyzer = random.Random(arguments.seed), EngineAnalyzer()
    typos, relevant = [], []
    for query_id in sorted(texts):
        if typo := misspelt(texts[query_id], analyzer, letters, rng):
            typos.append(typo)
            relevant.append(answers[query_id])
    print(f"{arguments.collection}: {len(typos):,} queries, recall@10 (MRR@10)\n")
    where = {"path": arguments.path, "url": arguments.url, "bundle": arguments.bundle}
    with Retriever.open(arguments.collection, **where) as retriever:
        for line in rows(retriever, typos, relevant):
            print(line, flush=True)


if __name__ == "__main__":
    main()
