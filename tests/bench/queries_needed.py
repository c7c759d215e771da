"""How many labelled queries it takes until a number means something.

    python tests/bench/queries_needed.py REPORT

REPORT is what `retriever evaluate` wrote, with bm25, dense and rerank among its systems. From its
per_query.tsv, for several numbers of queries: half of the 95% interval of BM25's MRR@10; the
smallest difference from BM25 that a paired test at 5% sees four times in five; and how often it
sees the difference that is really there, in samples of so many of the queries. Writes
tests/bench/results/queries-needed.json and prints a table.
"""

import csv
import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from two_tower.models.vectors import Float64Array

TARGET = Path(__file__).parent / "results" / "queries-needed.json"
MEASURE = "mrr@10"
BASELINE, OTHERS = "bm25", ("rerank", "dense")
SIZES = (25, 50, 100, 200, 500, 1000, 2000, 5000)
ALPHA, POWER = 0.05, 0.8
SAMPLES = 1000


def read_values(report: Path) -> dict[str, Float64Array]:
    """Return system -> one value per query."""
    values: dict[str, list[float]] = defaultdict(list)
    with (report / "per_query.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            values[row["system"]].append(float(row[MEASURE]))
    return {system: np.array(column) for system, column in values.items()}


def half_width(values: Float64Array, size: int) -> float:
    """Return half of the 95% interval of the mean of `size` such values."""
    return float(stats.norm.ppf(1 - ALPHA / 2) * values.std(ddof=1) / math.sqrt(size))


def smallest_difference(differences: Float64Array, size: int) -> float:
    """Return the mean difference that a paired test of `size` queries sees with POWER.

    (z(1 - ALPHA/2) + z(POWER)) sd / sqrt(size); Sakai, "Statistical reform in information
    retrieval?", SIGIR Forum 2014, on the sizes that topic sets need.
    """
    z = stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(POWER)
    return float(z * differences.std(ddof=1) / math.sqrt(size))


def share_seen(differences: Float64Array, size: int, *, seed: int = 0) -> float:
    """Return in what share of samples of `size` queries a paired t-test has p below ALPHA."""
    random = np.random.default_rng(seed)
    drawn = random.choice(differences, size=(SAMPLES, size))
    spread = drawn.std(axis=1, ddof=1)
    t = drawn.mean(axis=1) / np.where(spread > 0, spread, np.inf) * math.sqrt(size)
    return float(np.mean(2 * stats.t.sf(np.abs(t), size - 1) < ALPHA))


def to_result(report: Path) -> dict[str, Any]:
    stored = json.loads((report / "report.json").read_text(encoding="utf-8"))
    values = read_values(report)
    gaps = {name: values[name] - values[BASELINE] for name in OTHERS}
    rows = [
        {
            "queries": size,
            "half_width": round(half_width(values[BASELINE], size), 4),
            "smallest": {name: round(smallest_difference(g, size), 4) for name, g in gaps.items()},
            "seen": {name: round(share_seen(g, size), 3) for name, g in gaps.items()},
        }
        for size in SIZES
    ]
    return {
        "commit": stored["commit"],
        "command": "python tests/bench/queries_needed.py REPORT",
        "data": f"{Path(stored['data']).name} {stored['split']}",
        "queries": len(values[BASELINE]),
        "measure": MEASURE,
        "baseline": BASELINE,
        "differences": {name: round(float(gap.mean()), 6) for name, gap in gaps.items()},
        "rows": rows,
    }


def to_markdown(result: dict[str, Any]) -> str:
    heads = [f"queries | ± of {BASELINE}"]
    heads += [f"smallest found, {name}" for name in OTHERS]
    heads += [f"{name}: found" for name in OTHERS]
    lines = [f"| {' | '.join(heads)} |", "| ---: " * (2 + 2 * len(OTHERS)) + "|"]
    for row in result["rows"]:
        smallest = " | ".join(f"{value:.3f}" for value in row["smallest"].values())
        seen = " | ".join(f"{value:.0%}" for value in row["seen"].values())
        lines.append(f"| {row['queries']:,} | {row['half_width']:.3f} | {smallest} | {seen} |")
    return "\n".join(lines)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    result = to_result(Path(sys.argv[1]))
    TARGET.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(to_markdown(result))


if __name__ == "__main__":
    main()
