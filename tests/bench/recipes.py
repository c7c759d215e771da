"""What the shipped recipes cost and find: one row each.

    python tests/bench/recipes.py fast transformer

Trains a recipe on msmarco-95k unless runs/recipes/<name>/bundle is there, loads the whole corpus
and four that it has not seen into an embedded engine, and measures them with `retriever evaluate`.
Prints a table and keeps it in tests/bench/results/recipes.json, where rows that are not named
stay. With --table it only prints. Times are of this machine and of what else it did.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

from ablation import ROOT, SHARED, TRAINED_ON, ZERO_SHOT, prepared
from ablation_table import aligned
from spine import run_command

from models.bundle import ModelBundle
from models.data import Dataset
from models.files import write_json
from models.provenance import commit

WORK = ROOT / "runs" / "recipes"
RESULTS = Path(__file__).parent / "results" / "recipes.json"
ENCODED = 2000
ROUNDS = 3
SHOWN = {"dense": "tower alone", "hybrid": "hybrid", "cross": "with cross-scorer"}
MEASURES = ("recall@1", "recall@3", "recall@10", "recall@100", "mrr@10", "ndcg@10")
Row = dict[str, Any]


def measure(recipe: str) -> Row:
    """Return the row of a recipe; what is there of it already is not made again."""
    bundle = WORK / recipe / "bundle"
    data = prepared(SHARED / TRAINED_ON)
    if not (bundle / "card.json").is_file():
        run_command("models.cli", "train", data, "--out", bundle, "--config", recipe)
    card = json.loads((bundle / "card.json").read_text(encoding="utf-8"))
    sets = {TRAINED_ON: evaluate(bundle, data, "dev")}
    for name in ZERO_SHOT:
        sets[name] = evaluate(bundle, prepared(SHARED / "zero-shot" / name), "test")
    return {
        "commit": commit(),
        "trained_at": card["commit"],
        "bundle_mb": round(sum(file.stat().st_size for file in bundle.iterdir()) / 1e6, 1),
        "passages_per_s": encode_rate(bundle, data),
        "sets": sets,
    }


def evaluate(bundle: Path, data: Path, split: str) -> Row:
    """Return system -> measures and costs, over the whole corpus."""
    name, out = data.name, bundle.parent / f"report-{data.name}"
    where = ("--bundle", bundle, "--path", bundle.parent / "edge")
    run_command("ingest.cli", "load", data, "--collection", name, *where)
    run_command("retriever.cli", "evaluate", name, data, "--split", split, "--out", out, *where)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {
        row["system"]: {
            **{measure: round(row["metrics"][measure], 5) for measure in MEASURES},
            **{cost: row[cost] for cost in ("p50_ms", "p95_ms", "index_mb")},
        }
        for row in report["systems"]
    }


def encode_rate(bundle: Path, data: Path) -> int:
    """Return passages per second from raw text, the median of a few rounds after a warm-up."""
    loaded = ModelBundle.load(bundle)
    texts = [p.content for p, _ in zip(Dataset.open(data).passages(), range(ENCODED), strict=False)]
    loaded.encode_passages(texts[:64])
    rates = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        loaded.encode_passages(texts)
        rates.append(len(texts) / (time.perf_counter() - start))
    return round(median(rates))


def to_markdown(rows: dict[str, Row]) -> str:
    """Return the table of the README: the tower, its sum with BM25, and the cross-scorer's."""
    head = ["engine", "recall@1", "recall@10", "recall@100", "MRR@10", "zero-shot nDCG@10"]
    table = [[*head, "p50 ms", "p95 ms", "index MB", "passages/s"]]
    table.append(["BM25", *_cells(next(iter(rows.values())), "bm25"), ""])
    for recipe, row in rows.items():
        for system, label in SHOWN.items():
            if system in row["sets"][TRAINED_ON]:
                cells = _cells(row, system)
                table.append([f"{recipe}, {label}", *cells, f"{row['passages_per_s']:,}"])
    return "\n".join(aligned(table))


def _cells(row: Row, system: str) -> list[str]:
    dev = row["sets"][TRAINED_ON][system]
    unseen = fmean(row["sets"][name][system]["ndcg@10"] for name in ZERO_SHOT)
    found = [dev[name] for name in ("recall@1", "recall@10", "recall@100", "mrr@10")]
    costs = [f"{dev['p50_ms']:.1f}", f"{dev['p95_ms']:.1f}", f"{dev['index_mb']:.0f}"]
    return [*(f"{value:.3f}" for value in [*found, unseen]), *costs]


def main() -> None:
    """Measure the recipes that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipes", nargs="*", help="names of shipped recipes")
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    chosen = parser.parse_args()
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    for recipe in [] if chosen.table else chosen.recipes:
        rows[recipe] = measure(recipe)
        write_json(RESULTS, rows)
    print(to_markdown(rows) if rows else "nothing is measured yet")


if __name__ == "__main__":
    main()
