"""Time the main jobs on one corpus, on the embedded engine and on a real server, in one run.

    python tests/bench/spine.py [SOURCE]

SOURCE is what `ingest prepare` takes; msmarco-95k beside the project by default, the Python docs
where that is absent. DATA and BUNDLE are kept in runs/bench, so that only the first run trains.
Prints a table and writes tests/bench/results/<date>-<commit>.json. Times are of this machine; the
ratios are what to compare.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from qdrant_client import QdrantClient
from qdrant_client import models as qm

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from conftest import Server, running_server  # noqa: E402

from two_tower.models.bundle.bundle import ModelBundle  # noqa: E402
from two_tower.models.data import Dataset  # noqa: E402
from two_tower.models.provenance import commit  # noqa: E402
from two_tower.retriever import Retriever, SearchSettings  # noqa: E402

WORK = ROOT / "runs" / "bench"
CORPUS = ROOT.parent / "shared" / "data" / "msmarco-95k"
QUERIES = 200
# A child of a large process reports its parent's peak, so each command reports its own.
REPORT_PEAK = (
    "import atexit, sys; from {module} import app; "
    "atexit.register(lambda: print('PEAK', open('/proc/self/status').read()"
    ".split('VmHWM:')[1].split()[0], file=sys.stderr)); app(sys.argv[1:])"
)

Row = dict[str, Any]


def run_command(module: str, *words: str | Path) -> Row:
    """Run one of the project's commands; return its seconds and peak memory in MB."""
    start = time.perf_counter()
    program = REPORT_PEAK.format(module=module)
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)], cwd=ROOT, stderr=subprocess.PIPE
    )
    seconds = time.perf_counter() - start
    error = done.stderr.decode()
    if done.returncode:
        sys.exit(f"{module} {' '.join(map(str, words))} failed:\n{error}")
    peak_kb = int(error.rsplit("PEAK", 1)[1])
    return {"seconds": round(seconds, 1), "peak_mb": round(peak_kb / 1024)}


def prepare_and_train(source: str) -> list[Row]:
    rows = [
        {"job": "ingest prepare"}
        | run_command("two_tower.ingest.cli", "prepare", source, "--out", WORK / "data", "--force")
    ]
    if not (WORK / "bundle" / "card.json").is_file():
        train = run_command(
            "two_tower.models.cli", "train", WORK / "data", "--out", WORK / "bundle"
        )
        rows.append({"job": "models train"} | train)
    return rows


def percentiles(call: Callable[[str], object], queries: Sequence[str]) -> Row:
    """Return p50 and p95 in ms of one call per query, after a warm-up."""
    for query in queries[:10]:
        call(query)
    times_ms = []
    for query in queries:
        start = time.perf_counter()
        call(query)
        times_ms.append((time.perf_counter() - start) * 1000)
    p50, p95 = np.percentile(times_ms, [50, 95])
    return {"p50_ms": round(float(p50), 2), "p95_ms": round(float(p95), 2)}


def encode_rows(bundle: ModelBundle, queries: Sequence[str]) -> list[Row]:
    dataset = Dataset.open(WORK / "data")
    texts = [p.content for p, _ in zip(dataset.passages(), range(20_000), strict=False)]
    start = time.perf_counter()
    bundle.encode_passages(texts)
    rate = len(texts) / (time.perf_counter() - start)
    return [
        {"job": "encode passages", "per_second": round(rate)},
        {"job": "encode one query"} | percentiles(lambda q: bundle.encode_queries([q]), queries),
    ]


def search_rows(retriever: Retriever, queries: Sequence[str], where: str) -> list[Row]:
    """Every row asks what was not asked before, for a retriever remembers encoded queries."""
    hybrid = fresh(retriever, replace(retriever.settings, rerank=False, cross=False))
    reranked = fresh(retriever, uncrossed(retriever))
    rows = [
        {"job": f"search hybrid, {where}"} | percentiles(hybrid.search, queries),
        {"job": f"search hybrid + rerank, {where}"} | percentiles(reranked.search, queries),
    ]
    if retriever.bundle.has_cross_scorer:
        job = f"search, cross-scorer of 50, {where}"
        rows.append({"job": job} | percentiles(fresh(retriever).search, queries))
    hundred = queries[:100]
    rates = [rates_of_100(reranked, hundred) for _ in range(5)]
    one, many = (float(np.median(column)) for column in zip(*rates, strict=True))
    rows.append({"job": f"100 searches, {where}", "per_second": round(one)})
    times = round(float(np.median([m / o for o, m in rates])), 2)
    rows.append({"job": f"search_many of 100, {where}", "per_second": round(many), "times": times})
    return rows


def uncrossed(retriever: Retriever) -> SearchSettings:
    """Hybrid + query-tower rerank, whatever else the bundle brings."""
    return replace(retriever.settings, cross=False)


def cross_rows(bundle: ModelBundle, queries: Sequence[str]) -> list[Row]:
    """The cross-scorer by itself, on passages as they come."""
    if not bundle.has_cross_scorer:
        return []
    passages = [
        p.content for p, _ in zip(Dataset.open(WORK / "data").passages(), range(100), strict=False)
    ]
    scores = np.linspace(0.0, 1.0, len(passages), dtype=np.float32)

    def score(query: str) -> object:
        return bundle.cross_scores([query], [passages], bm25=[scores], cosine=[scores])

    job = f"cross-scorer, {len(passages)} candidates"
    return [{"job": job} | percentiles(score, queries)]


def fresh(retriever: Retriever, settings: SearchSettings | None = None) -> Retriever:
    """Return a retriever that remembers no query."""
    return retriever.with_rewriter(None).with_settings(settings or retriever.settings)


def rates_of_100(retriever: Retriever, queries: Sequence[str]) -> tuple[float, float]:
    """Return queries per second one by one, and by `search_many`."""
    alone, together = fresh(retriever), fresh(retriever)
    start = time.perf_counter()
    for query in queries:
        alone.search(query)
    between = time.perf_counter()
    together.search_many(queries)
    end = time.perf_counter()
    return len(queries) / (between - start), len(queries) / (end - between)


def time_ms(call: Callable[[str], object], query: str) -> float:
    start = time.perf_counter()
    call(query)
    return (time.perf_counter() - start) * 1000


def wait_until_indexed(server: Server, collection: str) -> None:
    """A server answers while it still builds its indexes, but slower."""
    client = QdrantClient(url=server.url, check_compatibility=False)
    while client.get_collection(collection).status != qm.CollectionStatus.GREEN:
        time.sleep(0.5)
    client.close()


@contextmanager
def opened(address: dict[str, str]) -> Iterator[Retriever]:
    with Retriever.open("bench", bundle=WORK / "bundle", **address) as retriever:
        yield retriever


def import_row() -> Row:
    program = "import time; t = time.perf_counter(); import two_tower; print(time.perf_counter()-t)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, cwd=ROOT
    )
    return {"job": "import retriever", "seconds": round(float(done.stdout), 3)}


def measure(source: str) -> list[Row]:
    rows = prepare_and_train(source)
    bundle, dataset = ModelBundle.load(WORK / "bundle"), Dataset.open(WORK / "data")
    queries = [query.text for query in dataset.queries("dev")][:QUERIES]
    rows += [import_row(), *encode_rows(bundle, queries), *cross_rows(bundle, queries)]
    load = ["load", WORK / "data", "--bundle", WORK / "bundle", "--collection", "bench"]
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder, "server")) as server:
        for where, address in {
            "embedded": {"path": str(Path(folder, "edge"))},
            "server": {"url": server.url},
        }.items():
            option = [f"--{key}={value}" for key, value in address.items()]
            loaded = run_command("two_tower.ingest.cli", *load, *option)
            rows.append({"job": f"ingest load, {where}"} | loaded)
            with opened(address) as retriever:
                if where == "server":
                    wait_until_indexed(server, retriever.collection)
                rows += search_rows(retriever, queries, where)
    return rows


def main() -> None:
    default = str(CORPUS) if CORPUS.is_dir() else "python-docs"
    source = sys.argv[1] if len(sys.argv) > 1 else default
    rows = measure(source)
    for row in rows:
        figures = "  ".join(f"{key} {value}" for key, value in row.items() if key != "job")
        print(f"{row['job']:36} {figures}")
    results = ROOT / "tests" / "bench" / "results"
    results.mkdir(exist_ok=True)
    counts = Dataset.open(WORK / "data").manifest["counts"]
    report = {
        "commit": commit(),
        "source": Path(source).name,
        "passages": counts["passages"],
        "cores": os.cpu_count(),
        "rows": rows,
    }
    target = results / f"{date.today()}-{commit().rstrip('+')}.json"
    target.write_text(json.dumps(report, indent=2) + "\n")
    print(f"Wrote {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
