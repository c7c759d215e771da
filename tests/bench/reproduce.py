"""Rebuild known tables with this project's systems.

    pip install bm25s PyStemmer
    python tests/bench/reproduce.py

First the source notes' table, TF-IDF, BM25 and bi-encoder on about 100k passages, from the report
of msmarco-95k dev that is committed. Then BM25 on four other corpora: the engine's leg beside
bm25s, which scores the engine's own terms (so that only the scoring differs) or terms as Anserini
makes them (so that the analyzer differs as well), and beside published figures. Writes
tests/bench/results/reproductions.json and prints both tables; half a minute.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from conftest import HashEncoder  # noqa: E402

from two_tower.ingest.dataset.writer import DatasetWriter  # noqa: E402
from two_tower.ingest.loading import loader  # noqa: E402
from two_tower.ingest.sources.choose import open_source  # noqa: E402
from two_tower.ingest.versions import versions as collections  # noqa: E402
from two_tower.models.data import Dataset, Passage, Query  # noqa: E402
from two_tower.models.provenance import commit  # noqa: E402
from two_tower.retriever.collection.bm25_vectors import EngineAnalyzer  # noqa: E402
from two_tower.retriever.engine.connect import connect  # noqa: E402
from two_tower.retriever.evaluation.evaluate import Evaluation, measure_all  # noqa: E402
from two_tower.retriever.evaluation.systems import Ranker, System, choose_systems  # noqa: E402
from two_tower.retriever.search.retriever import Retriever  # noqa: E402
from two_tower.retriever.search.settings import SearchSettings  # noqa: E402

RESULTS = Path(__file__).parent / "results"
NOTES = RESULTS / "msmarco-95k-dev.json"
TARGET = RESULTS / "reproductions.json"
ZERO_SHOT = ROOT.parent / "shared" / "data" / "zero-shot"
ROWS = {"tfidf": "TF-IDF", "bm25": "BM25", "dense": "bi-encoder"}
PUBLISHED = {"nfcorpus": 0.3218, "scifact": 0.6789}
SOURCE = "Pyserini's BEIR page, BM25 flat (k1=0.9, b=0.4)"
MEASURE = "ndcg@10"
SAME, ANSERINI = "bm25s, engine's terms", "bm25s, Anserini's analysis"


class Terms:
    """Text to terms, in one of two ways.

    `Anserini` is Lucene's English chain: lower case, its 33 stop words, Porter's stemmer.
    """

    def __init__(self, kind: str) -> None:
        import Stemmer

        self._analyzer = EngineAnalyzer() if kind == SAME else None
        self._stemmer = Stemmer.Stemmer("porter")

    def of(self, texts: Sequence[str]) -> list[list[str]]:
        import bm25s

        if self._analyzer:
            counts = map(self._analyzer.term_counts, texts)
            return [[str(t) for t, n in terms.items() for _ in range(n)] for terms in counts]
        found: list[list[str]] = bm25s.tokenize(
            list(texts),
            token_pattern=r"(?u)\b\w+\b",
            stopwords="en",
            stemmer=self._stemmer,
            return_ids=False,
            show_progress=False,
        )
        return found


class Bm25s(NamedTuple):
    """bm25s over a corpus, as a system to measure."""

    kind: str
    passages: Sequence[Passage]

    def start(self) -> Ranker:
        import bm25s

        terms = Terms(self.kind)
        index = bm25s.BM25(k1=0.9, b=0.4, method="lucene")
        index.index(terms.of([p.content for p in self.passages]), show_progress=False)
        ids = [p.passage_id for p in self.passages]

        def rank_one(query: Query, k: int) -> list[str]:
            known = [t for t in set(terms.of([query.text])[0]) if t in index.vocab_dict]
            if not known:
                return []
            rows, scores = index.retrieve([known], k=k, show_progress=False, n_threads=1)
            pairs = zip(rows[0].tolist(), scores[0].tolist(), strict=True)
            return [ids[row] for row, score in pairs if score > 0]

        return Ranker(lambda queries, k: [rank_one(query, k) for query in queries], None)


def prepare(source: Path, target: Path) -> Dataset:
    opened = open_source(str(source))
    with DatasetWriter(target, source=opened.name) as writer:
        opened.write_to(writer)
    return Dataset.open(target)


def compare(data: Dataset, folder: Path) -> Evaluation:
    """Load the embedded engine and measure its BM25 beside bm25s."""
    encoder: Any = HashEncoder(dim=4, pca_dims=())
    engine = connect(path=folder / "edge")
    report = loader.load(engine, data, encoder, name="zero-shot")
    collections.promote(engine, "zero-shot", report.collection)
    with Retriever(engine, "zero-shot", encoder, settings=SearchSettings()) as retriever:
        passages = list(retriever.passages())
        others = [System(kind, "", Bm25s(kind, passages).start) for kind in (SAME, ANSERINI)]
        systems = [*choose_systems(retriever, ["bm25"], others={}), *others]
        return measure_all(retriever, data, systems=systems, split="test")


def zero_shot(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        evaluation = compare(prepare(ZERO_SHOT / name, Path(folder, "DATA")), Path(folder))
    report = evaluation.report
    rows = {
        row.system: {
            MEASURE: round(row.metrics[MEASURE], 4),
            "half_width": round(float(np.ptp(row.intervals[MEASURE])) / 2, 4),
            "p": row.comparisons[MEASURE].p if row.comparisons else None,
        }
        for row in report.systems
    }
    about = {"passages": report.passages, "queries": report.systems[0].queries}
    return about | {"systems": rows, "published": PUBLISHED.get(name)}


def notes_table() -> dict[str, Any]:
    stored = json.loads(NOTES.read_text(encoding="utf-8"))
    rows = {row["system"]: row["metrics"] for row in stored["systems"]}
    depths = ("recall@1", "recall@3", "recall@10")
    return {
        "passages": stored["passages"],
        "queries": stored["systems"][0]["queries"],
        "commit": stored["commit"],
        "systems": {
            label: {depth: round(rows[name][depth], 4) for depth in depths}
            for name, label in ROWS.items()
        },
    }


def notes_markdown(notes: dict[str, Any]) -> str:
    """Return the source notes' table."""
    lines = ["| system | recall@1 | recall@3 | recall@10 |", "| --- | ---: | ---: | ---: |"]
    for label, metrics in notes["systems"].items():
        lines.append(f"| {label} | {' | '.join(f'{value:.3f}' for value in metrics.values())} |")
    return "\n".join(lines)


def zero_shot_markdown(found: dict[str, Any]) -> str:
    """Return nDCG@10 of each implementation on each corpus."""
    lines = [f"| corpus | passages | queries | engine's BM25 | {SAME} | {ANSERINI} | published |"]
    lines.append("| --- " + "| ---: " * 6 + "|")
    for name, row in found.items():
        values = " | ".join(f"{system[MEASURE]:.4f}" for system in row["systems"].values())
        published = f"{row['published']:.4f}" if row["published"] else ""
        counts = f"{row['passages']:,} | {row['queries']:,}"
        lines.append(f"| {name} | {counts} | {values} | {published} |")
    return "\n".join(lines)


def main() -> None:
    names = sorted(path.name for path in ZERO_SHOT.iterdir())
    result = {
        "commit": commit(),
        "command": "python tests/bench/reproduce.py",
        "measure": MEASURE,
        "published": SOURCE,
        "notes": notes_table(),
        "zero_shot": {name: zero_shot(name) for name in names},
    }
    TARGET.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(notes_markdown(result["notes"]), zero_shot_markdown(result["zero_shot"]), sep="\n\n")


if __name__ == "__main__":
    main()
