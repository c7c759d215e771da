"""Measure encoding, BM25, hybrid search and ingest beside other packages, in one run.

    python tests/bench/peers.py [--passages 3000] [--queries 200]

The corpus and the bundle are those of spine.py, in runs/bench, and are made if they are not there.
Every size from 1,000 passages on holds what answers the timed queries, and all systems are asked
the same of them, in turns. What a peer is, is said where it is made: peers_encode.py,
peers_lexical.py, peers_search.py. Prints Markdown tables, writes tests/bench/results/peers.json
and docs/img/peers.png; ten minutes on two cores for all of msmarco-95k. `--table` prints the tables
of a stored result.
"""

import argparse
import json
import os
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "bench")]

from peers_corpus import Row, Source  # noqa: E402
from peers_encode import encode_rows, judge, quick_towers, slow_towers  # noqa: E402
from peers_engines import Engines  # noqa: E402
from peers_lexical import lexical_rows  # noqa: E402
from peers_search import search_rows  # noqa: E402
from peers_table import plot, to_markdown  # noqa: E402
from spine import CORPUS, WORK, prepare_and_train  # noqa: E402

from two_tower.models.bundle.bundle import ModelBundle  # noqa: E402
from two_tower.models.data import Dataset  # noqa: E402
from two_tower.models.provenance import commit  # noqa: E402

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
PEERS = (
    *("bm25s", "faiss-cpu", "model2vec", "PyStemmer", "qdrant-client", "rank-bm25"),
    *("sentence-transformers", "txtai"),
)
RESULT = ROOT / "tests" / "bench" / "results" / "peers.json"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(source: Source, bundle: ModelBundle, sizes: list[int], folder: Path) -> list[Row]:
    """Return the rows of all sections at all sizes; what is slow, at the largest alone."""
    towers, rows = quick_towers(bundle, WORK / "static"), []
    with Engines.running(folder) as engines:
        for size in sizes:
            corpus, last = source.corpus(size, folder / f"data-{size}"), size == sizes[-1]
            say(f"{size:,} passages, {len(corpus.timed.queries)} queries: encode")
            encoded = encode_rows(towers, corpus)
            if last:  # apart: after a transformer's turn the caches are cold for all
                for row, tower in zip(encoded, towers, strict=True):
                    row |= judge(tower, corpus)
                encoded += encode_rows(slow_towers(bundle), corpus)
            say("BM25")
            lexical = lexical_rows(engines, corpus, judge_all=last)
            say("search")
            rows += [*encoded, *lexical, *search_rows(engines, corpus, bundle)]
    return rows


def run(passages: int, queries: int) -> Row:
    """Return the whole report."""
    if not all((WORK / made).is_file() for made in ("data/manifest.json", "bundle/card.json")):
        prepare_and_train(str(CORPUS) if CORPUS.is_dir() else "python-docs")
    data, bundle = Dataset.open(WORK / "data"), ModelBundle.load(WORK / "bundle")
    largest = min(passages, data.passage_count)
    sizes = [*(size for size in SIZES if size < largest), largest]
    with tempfile.TemporaryDirectory() as name:
        rows = measure(Source.arrange(data, timed=queries), bundle, sizes, Path(name))
    return {
        "commit": commit(),
        "date": str(date.today()),
        "cores": os.cpu_count(),
        "source": Path(data.manifest["source"]["name"]).name,
        "versions": {name: version(name) for name in PEERS},
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--passages", type=int, default=SIZES[-1], help="at most so many")
    parser.add_argument("--queries", type=int, default=200, help="so many are timed")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "img" / "peers.png")
    parser.add_argument("--table", type=Path, help="print the tables of this result instead")
    chosen = parser.parse_args()
    if chosen.table:
        print(to_markdown(json.loads(chosen.table.read_text(encoding="utf-8"))))
        return
    report = run(chosen.passages, chosen.queries)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    plot(report, chosen.plot)
    print(to_markdown(report))


if __name__ == "__main__":
    main()
