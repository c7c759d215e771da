"""Grow one collection on a real server from 10,000 to 1,000,000 passages, and measure each step.

    python tests/bench/million.py --bundle BUNDLE [--largest 1000000] [--work DIR]

The passages are made up: words of the bundle's vocabulary, drawn by Zipf's law from a seed, 60 on
average. Each step is `ingest load --limit N` in a process of its own, which sends what the step
before did not, and verifies all. So a step's time is that of its difference, and the loader's
memory that of all N. The server is then waited for until its indexes are built, and asked 200
queries of three words of a passage, as `Retriever.search` asks by default. The estimate is that
of `ingest load --dry-run`.

Prints a table, writes tests/bench/results/growth.json and docs/img/growth.png. One million takes
about 25 minutes on two cores.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from qdrant_client import models as qm

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "bench")]

from cluster import Node  # noqa: E402
from spine import percentiles, run_command  # noqa: E402

from two_tower.ingest.dataset.writer import DatasetWriter  # noqa: E402
from two_tower.ingest.loading.estimate import estimate  # noqa: E402
from two_tower.ingest.loading.selection import Selection, select  # noqa: E402
from two_tower.models.bundle.bundle import ModelBundle  # noqa: E402
from two_tower.models.data import Dataset, Passage  # noqa: E402
from two_tower.models.drawing import drawing, save  # noqa: E402
from two_tower.models.provenance import commit  # noqa: E402
from two_tower.retriever import Retriever  # noqa: E402
from two_tower.retriever.collection.options import CollectionOptions  # noqa: E402

SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
MEAN_WORDS = 60
QUERIES = 200
NAME = "growth"
PLOTTED = {
    "load_s": "loading, s (all steps so far)",
    "disk_mb": "disk, MB",
    "server_mb": "server memory, MB",
    "loader_mb": "loader memory, MB",
    "p50_ms": "search p50, ms",
    "p95_ms": "search p95, ms",
}
Row = dict[str, Any]


def vocabulary(bundle: ModelBundle) -> np.ndarray:
    """Return whole words that the bundle knows, the frequent ones first."""
    tokenizer = bundle.tokenizer
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    words = [piece[1:] for piece in pieces if piece.startswith("▁")]
    return np.array([word for word in words if word.isalpha() and len(word) > 1])


def passages(words: np.ndarray, count: int) -> Iterator[Passage]:
    random = np.random.default_rng(0)
    share = 1 / np.arange(1, len(words) + 1)
    bounds = np.cumsum(share / share.sum())
    for number in range(count):
        length = max(8, int(random.normal(MEAN_WORDS, 20)))
        drawn = words[np.searchsorted(bounds, random.random(length)).clip(max=len(words) - 1)]
        yield Passage(f"p{number}", " ".join(drawn), fields={"part": number % 10})


def prepare(path: Path, bundle: ModelBundle, count: int) -> Dataset:
    """Return DATA of so many passages, made unless it is there."""
    if path.is_dir() and Dataset.open(path).passage_count == count:
        return Dataset.open(path)
    with DatasetWriter(path, source="growth", overwrite=True) as writer:
        for passage in passages(vocabulary(bundle), count):
            writer.add_passage(passage)
    return Dataset.open(path)


def queries(dataset: Dataset, size: int) -> list[str]:
    random = np.random.default_rng(1)
    wanted = set(random.choice(size, QUERIES, replace=False).tolist())
    texts = (
        p.text
        for n, p in enumerate(select(dataset, Selection(limit=size)).passages())
        if n in wanted
    )
    return [" ".join(random.choice(text.split(), 3)) for text in texts]


def disk_mb(folder: Path) -> float:
    files = (file.stat() for file in folder.rglob("*") if file.is_file())
    return sum(stat.st_blocks * 512 for stat in files) / 1e6


def memory_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1e3


def settle(node: Node, collection: str, longest_s: float) -> Row:
    """Wait until the indexes are built; a server answers before that, but slower."""
    start = time.monotonic()
    with node.connected() as engine:
        while (status := engine.get_collection(collection).status) != qm.CollectionStatus.GREEN:
            if time.monotonic() - start > longest_s:
                break
            time.sleep(1)
    return {"settle_s": round(time.monotonic() - start, 1), "status": status.value}


def step(node: Node, dataset: Dataset, bundle: Path, size: int, longest_s: float) -> Row:
    loaded = run_command(
        "two_tower.ingest.cli",
        *("load", dataset.path, "--bundle", bundle, "--collection", NAME),
        *("--limit", str(size), "--url", node.url),
    )
    with Retriever.open(NAME, bundle=bundle, url=node.url) as retriever:
        settled = settle(node, retriever.collection, longest_s)
        times = percentiles(retriever.search, queries(dataset, size))
    assert node.process
    model = ModelBundle.load(bundle)
    expected = estimate(dataset, model, options=CollectionOptions(), points=size)
    return {
        "passages": size,
        "step_s": loaded["seconds"],
        "loader_mb": loaded["peak_mb"],
        **settled,
        "disk_mb": round(disk_mb(node.folder / "storage")),
        "estimated_disk_mb": round(expected.disk / 1e6),
        "server_mb": round(memory_mb(node.process.pid)),
        "estimated_memory_mb": round(expected.memory / 1e6),
        **times,
    }


def measure(sizes: list[int], bundle: Path, work: Path, longest_s: float) -> list[Row]:
    dataset = prepare(work / "data", ModelBundle.load(bundle), sizes[-1])
    shutil.rmtree(work / "server", ignore_errors=True)
    node = Node("growth", work / "server", [])
    node.start({})
    rows: list[Row] = []
    try:
        node.wait_until_ready()
        for size in sizes:
            row = step(node, dataset, bundle, size, longest_s)
            row["load_s"] = round(row["step_s"] + (rows[-1]["load_s"] if rows else 0), 1)
            rows.append(row)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    finally:
        node.kill()
    return rows


def table(rows: list[Row]) -> str:
    names = [name for name in rows[0] if name != "step_s"]
    lines = [
        names,
        ["---:"] * len(names),
        *([f"{row[name]:,}" if name != "status" else row[name] for name in names] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


@drawing()
def plot(rows: list[Row], target: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True)
    for axis, (name, label) in zip(axes.flat, PLOTTED.items(), strict=True):
        sizes = [row["passages"] for row in rows]
        axis.plot(sizes, [row[name] for row in rows], "o-")
        if name in ("disk_mb", "server_mb"):
            estimated = "estimated_disk_mb" if name == "disk_mb" else "estimated_memory_mb"
            axis.plot(sizes, [row[estimated] for row in rows], "x--", label="estimate")
            axis.legend()
        axis.set(title=label, xscale="log", ylim=(0, None))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("passages")
    target.parent.mkdir(parents=True, exist_ok=True)
    save(figure, target, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", required=True, type=Path)
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "growth")
    parser.add_argument("--settle-s", type=float, default=900.0, help="per step, at most")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "bench" / "results")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "img" / "growth.png")
    chosen = parser.parse_args()
    sizes = [size for size in SIZES if size < chosen.largest] + [chosen.largest]
    rows = measure(sizes, chosen.bundle.resolve(), chosen.work.resolve(), chosen.settle_s)
    print(table(rows))
    report = {"commit": commit(), "cores": os.cpu_count(), "mean_words": MEAN_WORDS, "rows": rows}
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "growth.json").write_text(json.dumps(report, indent=2) + "\n")
    plot(rows, chosen.plot)


if __name__ == "__main__":
    main()
