"""How far the chances of `retriever calibrate` hold: half of the judged queries fit, half measure.

    python tests/bench/chances.py --bundle BUNDLE --path ENGINE --name NAME --data DATA \
        --split test --foreign DATA2 --foreign DATA3 --row light/scifact

For each of ten splits, at most 100 judged queries say the chances; the others measure them, with
queries of other corpora and of random letters that took no part. The row is added to
tests/bench/results/chances.json. The collection's weights are left as they are.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from two_tower.models.data import Dataset
from two_tower.models.provenance import commit
from two_tower.retriever.calibration.chances import (
    UNLIKELY,
    Read,
    fitted,
    made_queries,
    read_ways,
    without_gaps,
)
from two_tower.retriever.evaluation.measures import judged_queries
from two_tower.retriever.search.retriever import Retriever

RESULTS = Path(__file__).parent / "results" / "chances.json"

SPLITS, FITTED, SURE = 10, 100, 0.8

FOREIGN, JUDGED = 50, 300  # queries of each other corpus, and of the own one


def main() -> None:
    """Measure one collection."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--bundle", required=True)
    flags.add_argument("--path", required=True)
    flags.add_argument("--name", required=True)
    flags.add_argument("--data", required=True)
    flags.add_argument("--split", default="dev")
    flags.add_argument("--foreign", action="append", default=[])
    flags.add_argument("--row", required=True)
    args = flags.parse_args()
    queries, qrels = judged_queries(Dataset.open(args.data), args.split, count=None)
    rng = np.random.default_rng(0)
    queries = [queries[row] for row in rng.permutation(len(queries))[:JUDGED]]
    foreign = [query for folder in args.foreign for query in drawn(folder, rng)]
    answers = {(qrel.query_id, qrel.passage_id) for qrel in qrels if qrel.relevance > 0}
    with Retriever.open(args.name, bundle=args.bundle, path=args.path) as retriever:
        made = made_queries(retriever, rng=rng)
        letters = made_queries(retriever, rng=rng)[-FOREIGN:]
        others = [*made, *foreign, *letters]
        ways = read_ways(retriever, queries, others, answers=answers)
        weight = retriever.fusion.hybrid.tower if retriever.fusion else 0.0
    counts = (len(queries), len(made), len(foreign))
    row = {}
    for name, read in zip(("hybrid", "cross")[: len(ways)], ways, strict=True):
        row[name] = measure(read, *counts)
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    stored[args.row] = {"commit": commit(), "queries": len(queries), "weight": weight, **row}
    RESULTS.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")
    print(json.dumps({args.row: stored[args.row]}))


def drawn(folder: str, rng: np.random.Generator) -> list[str]:
    """Return some queries of DATA, of whatever split."""
    texts = sorted({query.text for query in Dataset.open(folder).queries()})
    return [texts[row] for row in rng.permutation(len(texts))[:FOREIGN]]


def measure(read: Read, judged: int, made: int, foreign: int) -> dict[str, float]:
    """Return the means over the splits."""
    rows = []
    for split in range(SPLITS):
        order = np.random.default_rng(split).permutation(judged)
        size = min(FITTED, judged // 2)
        learnt, rest = order[:size], order[size:]
        chances = fitted(read.take(np.concatenate([learnt, judged + np.arange(made)])), size)
        worth = without_gaps(read.worth)[rest] * chances.hits.hybrid
        said = 0.5 + 0.5 * np.tanh(chances.hits.log_odds(worth)[:, 0] / 2)
        answerable = 0.5 + 0.5 * np.tanh(chances.answerable.log_odds(read.signs) / 2)
        right = read.relevant[rest, 0]
        surest = right[np.argsort(-said, kind="stable")[: round(SURE * len(rest))]]
        outside = answerable[judged + made :]
        rows.append(
            {
                "said": said.mean(),
                "right": right.mean(),
                "gap": abs(said.mean() - right.mean()),
                "right_at_80": surest.mean(),
                "doubted": (answerable[rest] < UNLIKELY).mean(),
                "foreign_refused": (outside[:foreign] < UNLIKELY).mean(),
                "letters_refused": (outside[foreign:] < UNLIKELY).mean(),
            }
        )
    return {key: round(float(np.mean([row[key] for row in rows])), 4) for key in rows[0]}


if __name__ == "__main__":
    main()
