"""Grow one collection on a real server from 100,000 to 14,000,000 passages, and measure each step.

    python tests/bench/huge.py DATA BUNDLE [--largest 14000000] [--work DIR] [--kill]
    python tests/bench/huge.py DATA BUNDLE --again
    python tests/bench/huge.py DATA BUNDLE --curves 1000000

DATA is real (msmarco-95k): its passages come first, and what `huge_corpus` makes of their sentences
after them. Each step is `ingest load --options deploy/huge.yaml --limit N`, which sends what the
step before did not, and verifies all. At rest, dev queries of DATA are asked by each stage, hybrid
with rerank in turn with one request of qdrant-client, and the dense leg is compared with an exact
search. With --kill the server and the loader are killed once each in the last step, and the load
goes on.

--again starts a server on what was loaded, and asks it: at first vectors come from the disk, and in
the end eight clients ask at once.

--curves loads so many passages with other quantizations and clusters, and measures what each finds
(recall@1 by the judgements, recall@10 of exact search) against how much is rescored or probed.

A step that is in tests/bench/results/huge.json stays there when a later one fails. Times are of
this machine and of what else it did.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huge_corpus import likeness, prepare
from million import disk_mb, settle
from raw import beside_raw, server_call
from spine import REPORT_PEAK, ROOT, fresh, time_ms

sys.path.insert(0, str(ROOT / "tests"))

from cluster import Node

from two_tower.ingest.loading.estimate import estimate
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.data import Dataset, Query
from two_tower.models.files import write_json
from two_tower.models.provenance import commit
from two_tower.retriever import Retriever, SearchSettings
from two_tower.retriever.engine.machine import machine_memory
from two_tower.retriever.search.settings import AnnSettings, read_file

OPTIONS = ROOT / "deploy" / "huge.yaml"
RESULTS = ROOT / "tests" / "bench" / "results" / "huge.json"
SIZES = (100_000, 1_000_000, 4_000_000, 14_000_000)
NAME = "huge"
TIMED = 200  # queries
COMPARED = 50  # with exact search, which reads every vector
WARM = 20
CLIENTS = 8
LONGEST_S = 3600.0
KILL_SERVER_AT, KILL_LOADER_AT = 0.3, 0.6  # of the time that the step is expected to take
DOWN_S = 5.0
BITS = {"1": ("binary", 1.0), "1.5": ("binary", 1.5), "2": ("binary", 2.0), "8": ("scalar", 1.0)}
OVERSAMPLING = (1.0, 4.0, 16.0, 64.0)
CLUSTERS, PROBES = (64, 256, 1024), (1, 4, 16, 64)
MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ ")  # the first line of one in smaps
LEFT_ON_DISK = re.compile(r"/(vector_storage-dense|payload_storage)/")
Row = dict[str, Any]


def memory_mb(pid: int) -> Row:
    """Return what a process holds: all, and what it cannot give back (no file behind it)."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return {
        "server_mb": round(int(fields["VmRSS"].split()[0]) / 1e3),
        "server_anonymous_mb": round(int(fields["RssAnon"].split()[0]) / 1e3),
    }


def held_mb(pid: int) -> int:
    """Return what a server holds without the files that deploy/huge.yaml leaves on disk."""
    held, counts = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if MAPPING.match(line):
            counts = not LEFT_ON_DISK.search(line)
        elif counts and line.startswith("Rss:"):
            held += int(line.split()[1])
    return round(held / 1e3)


@contextmanager
def peak_of(node: Node) -> Iterator[Row]:
    """Sample the server's memory while the block lasts."""
    peak: Row = {"peak_server_mb": 0, "peak_server_anonymous_mb": 0}
    done = threading.Event()

    def sample() -> None:
        while not done.wait(1.0):
            if node.process is None or not node.alive:
                continue
            try:
                now = memory_mb(node.process.pid)
            except (OSError, KeyError):  # it was just killed
                continue
            for name, value in now.items():
                peak[f"peak_{name}"] = max(peak[f"peak_{name}"], value)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def load_words(
    node: Node, data: Dataset, bundle: Path, size: int, *, options: Path, name: str
) -> list[str]:
    words = ["load", data.path, "--bundle", bundle, "--collection", name, "--url", node.url]
    return [*map(str, words), "--limit", str(size), "--options", str(options)]


def start_loader(words: Sequence[str]) -> "subprocess.Popen[bytes]":
    program = REPORT_PEAK.format(module="two_tower.ingest.cli")
    return subprocess.Popen(
        [sys.executable, "-c", program, *words], cwd=ROOT, stderr=subprocess.PIPE
    )


def finish_loader(loader: "subprocess.Popen[bytes]") -> int:
    """Wait for a loader; return its peak in MB."""
    error = (loader.communicate()[1] or b"").decode()
    if loader.returncode:
        sys.exit(f"the load failed:\n{error}")
    return round(int(error.rsplit("PEAK", 1)[1]) / 1024)


def load(node: Node, words: Sequence[str], *, kill_within_s: float | None) -> Row:
    """Load; with `kill_within_s` the server and the loader are killed once each on the way."""
    start = time.perf_counter()
    loader = start_loader(words)
    if kill_within_s is not None:
        drain = threading.Thread(target=loader.communicate)
        drain.start()
        time.sleep(KILL_SERVER_AT * kill_within_s)
        node.kill()
        time.sleep(DOWN_S)
        node.start({})
        node.wait_until_ready()
        time.sleep((KILL_LOADER_AT - KILL_SERVER_AT) * kill_within_s)
        loader.kill()
        drain.join()
        loader = start_loader([*words, "--take-over"])
    peak = finish_loader(loader)
    return {"step_s": round(time.perf_counter() - start, 1), "loader_mb": peak}


def stages(retriever: Retriever) -> dict[str, SearchSettings]:
    """Return what is timed, by its name."""
    settings = replace(retriever.settings, rerank=False, cross=False)
    named = {
        "dense": replace(settings, legs={"dense": 100}),
        "bm25": replace(settings, legs={"bm25": 100}),
        "hybrid": replace(settings, rerank=True),
    }
    if retriever.bundle.has_cross_scorer:
        named["cross"] = retriever.settings
    return named


def ask(node: Node, retriever: Retriever, queries: Sequence[str]) -> Row:
    """Return what queries cost by stage; `first` is hybrid with vectors that are on disk alone."""
    named = stages(retriever)
    costs = {
        stage: times(fresh(retriever, settings).search, queries)
        for stage, settings in {"first": named["hybrid"], **named}.items()
    }
    by_stage = {
        f"{stage}_{name}": cost for stage, row in costs.items() for name, cost in row.items()
    }
    return by_stage | beside_raw(retriever, queries, server_call(node.url, retriever, queries))


def ask_at_once(retriever: Retriever, queries: Sequence[str]) -> Row:
    """Return what hybrid costs clients that ask at the same time."""
    search = fresh(retriever, stages(retriever)["hybrid"]).search
    start = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        taken = list(pool.map(lambda query: time_ms(search, query), queries))
    wall_s = time.perf_counter() - start
    p50, p95 = np.percentile(taken, [50, 95]).round(1).tolist()
    rate = round(len(queries) / wall_s, 1)
    return {"clients": CLIENTS, "clients_p50_ms": p50, "clients_p95_ms": p95, "per_second": rate}


def times(call: Callable[[str], object], queries: Sequence[str]) -> Row:
    """Return p50, p95 and p99 in ms of one call per query, after a warm-up with others."""
    for query in queries[-WARM:]:
        call(query)
    taken = []
    for query in queries[:-WARM]:
        start = time.perf_counter()
        call(query)
        taken.append((time.perf_counter() - start) * 1000)
    percentiles = np.percentile(taken, [50, 95, 99]).round(1).tolist()
    return dict(zip(("p50_ms", "p95_ms", "p99_ms"), percentiles, strict=True))


def nearest(retriever: Retriever, ann: AnnSettings, queries: Sequence[Query]) -> list[list[str]]:
    """Return the ids of the ten nearest passages of each query."""
    settings = SearchSettings(legs={"dense": 100}, rerank=False, cross=False, ann=ann)
    search = fresh(retriever, settings)
    return [[hit.passage_id for hit in search.search(query.text, k=10)] for query in queries]


def overlap(lists: Sequence[Sequence[str]], exact: Sequence[Sequence[str]]) -> float:
    """Return the mean share of the exact lists that is found."""
    shares = [len({*a} & {*b}) / len(b) for a, b in zip(lists, exact, strict=True)]
    return round(float(np.mean(shares)), 4)


def step(node: Node, data: Dataset, bundle: Path, size: int, *, kill_within_s: float | None) -> Row:
    """Load up to `size` passages and measure what there is then."""
    with peak_of(node) as peak:
        loaded = load(
            node,
            load_words(node, data, bundle, size, options=OPTIONS, name=NAME),
            kill_within_s=kill_within_s,
        )
    file = read_file(OPTIONS)
    queries = data.queries("dev")
    texts = [query.text for query in queries[: TIMED + WARM]]
    with Retriever.open(NAME, bundle=bundle, url=node.url, settings=file.search) as retriever:
        settled = settle(node, retriever.collection, LONGEST_S)
        costs = ask(node, retriever, texts)
        exact = nearest(retriever, AnnSettings(exact=True), queries[:COMPARED])
        recall = overlap(nearest(retriever, file.search.ann, queries[:COMPARED]), exact)
    assert node.process
    model = ModelBundle.load(bundle)
    expected = estimate(data, model, options=file.collection, points=size)
    return {
        "passages": size,
        "killed": kill_within_s is not None,
        **loaded,
        **peak,
        **settled,
        **memory_mb(node.process.pid),
        "server_held_mb": held_mb(node.process.pid),
        "estimated_memory_mb": round(expected.memory / 1e6),
        "disk_mb": round(disk_mb(node.folder / "storage")),
        "estimated_disk_mb": round(expected.disk / 1e6),
        "dense_recall@10": recall,
        **costs,
    }


def restart(node: Node, data: Dataset, bundle: Path) -> None:
    """Start a server on what was loaded before, and ask it."""
    start = time.perf_counter()
    node.start({})
    node.wait_until_ready()
    ready_s = round(time.perf_counter() - start, 1)
    assert node.process
    memory = {"ready_mb": memory_mb(node.process.pid)["server_mb"]}
    texts = [query.text for query in data.queries("dev")[: TIMED + WARM]]
    settings = read_file(OPTIONS).search
    with Retriever.open(NAME, bundle=bundle, url=node.url, settings=settings) as retriever:
        costs = ask(node, retriever, texts) | ask_at_once(retriever, texts)
    row = {"ready_s": ready_s, **memory, **memory_mb(node.process.pid)}
    keep({"restarted": {**row, "server_held_mb": held_mb(node.process.pid), **costs}})


def grow(node: Node, data: Dataset, bundle: Path, sizes: Sequence[int], *, kills: bool) -> None:
    rows: list[Row] = []
    for size in sizes:
        expected_s = None
        if kills and size == sizes[-1] and rows:
            rate = (rows[-1]["passages"] - rows[-2]["passages"]) / rows[-1]["step_s"]
            expected_s = (size - rows[-1]["passages"]) / rate
        row = step(node, data, bundle, size, kill_within_s=expected_s)
        row["load_s"] = round(row["step_s"] + (rows[-1]["load_s"] if rows else 0), 1)
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        keep({"steps": rows})


def keep(news: Row) -> None:
    """Add to what is known."""
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    machine = {"cores": os.cpu_count(), "memory_gb": round(machine_memory() / 1e9, 1)}
    write_json(RESULTS, known | {"commit": commit()} | machine | news)


def load_changed(
    node: Node, data: Dataset, bundle: Path, size: int, *, changes: Row, name: str
) -> None:
    """Load `size` passages as deploy/huge.yaml says but for `changes`."""
    declared = yaml.safe_load(OPTIONS.read_text())["collection"] | changes
    options = node.folder / f"{name}.yaml"
    options.write_text(yaml.safe_dump({"collection": declared}))
    words = load_words(node, data, bundle, size, options=options, name=name)
    load(node, words, kill_within_s=None)
    with Retriever.open(name, bundle=bundle, url=node.url) as retriever:
        settle(node, retriever.collection, LONGEST_S)


def curves(node: Node, data: Dataset, bundle: Path, size: int) -> None:
    """Measure quantizations against rescoring, and clusters against probes."""
    answers: dict[str, set[str]] = {}
    for qrel in data.qrels("dev"):
        answers.setdefault(qrel.query_id, set()).add(qrel.passage_id)
    queries = [query for query in data.queries("dev") if query.query_id in answers][:TIMED]
    rows: list[Row] = []
    exact: list[list[str]] = []

    def measure(name: str, ann: AnnSettings, about: Row) -> None:
        with Retriever.open(name, bundle=bundle, url=node.url) as retriever:
            lists = nearest(retriever, ann, queries)
            legs = SearchSettings(legs={"dense": 100}, rerank=False, cross=False, ann=ann)
            cost = times(fresh(retriever, legs).search, [query.text for query in queries])
        first = [hits[0] in answers[q.query_id] for q, hits in zip(queries, lists, strict=True)]
        exact[:] = exact or lists  # the first row is exact search
        row = {
            **about,
            "recall@1": round(float(np.mean(first)), 4),
            "of exact": overlap(lists, exact),
        }
        rows.append(row | cost)
        print(rows[-1], flush=True)
        keep({"curves": {"passages": size, "rows": rows}})

    for bits, (kind, width) in BITS.items():
        copies = {"kind": kind, "bits": width}
        load_changed(node, data, bundle, size, changes={"quantization": copies}, name=NAME)
        if not rows:
            measure(NAME, AnnSettings(exact=True), {"curve": "exact"})
        for times_more in OVERSAMPLING:
            ann = AnnSettings(oversampling=times_more)
            measure(NAME, ann, {"curve": "bits", "bits": bits, "rescored": int(100 * times_more)})
    for clusters in CLUSTERS:
        name = f"clusters-{clusters}"
        changes = {"clusters": clusters, "quantization": {"kind": "none"}}
        load_changed(node, data, bundle, size, changes=changes, name=name)
        for probes in PROBES:
            about = {"curve": "clusters", "clusters": clusters, "probes": probes}
            measure(name, AnnSettings(n_probe=probes), about)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "huge")
    parser.add_argument("--curves", type=int, default=0, metavar="PASSAGES")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--again", action="store_true")
    chosen = parser.parse_args()
    bundle, source = chosen.bundle.resolve(), Dataset.open(chosen.data)
    model = ModelBundle.load(bundle)
    size = chosen.curves or chosen.largest
    data = prepare(chosen.work.resolve() / "data", source, model, max(size, source.passage_count))
    if not (chosen.again or chosen.curves):
        keep({"likeness": likeness(data, model, source.passage_count)})
    folder = chosen.work.resolve() / ("curves" if chosen.curves else "server")
    node = Node(NAME, folder, [])
    try:
        if chosen.again:
            restart(node, data, bundle)
            return
        shutil.rmtree(folder, ignore_errors=True)
        node.start({})
        node.wait_until_ready()
        if chosen.curves:
            curves(node, data, bundle, size)
        else:
            sizes = [each for each in SIZES if each < size] + [size]
            grow(node, data, bundle, sizes, kills=chosen.kill)
    finally:
        if node.alive:
            node.kill()


if __name__ == "__main__":
    main()
