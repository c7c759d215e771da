"""Put the HTTP service under load: real clients, a real service process, a real Qdrant.

    python tests/bench/service.py DATA BUNDLE [--seconds 60] [--only load,limit,kill,layouts,memory]
        [--queries 100000] [--out RESULT.json]

DATA and BUNDLE are what `make demo` leaves in demo/. Prints the latencies of one client and of
eight, with the cross-scorer and without where the bundle has one; what happens past the limit, and
when Qdrant is killed under load; one worker and two, with more threads and fewer, in turns; and the
memory of a service that answers many queries, none twice, every tenth with the cross-scorer. CPU is
what service and Qdrant spent on a search; it says more than a latency where other jobs run.
"""

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from qdrant_client import models as qm

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from services import NAME, Qdrant, Service, running_qdrant, running_service  # noqa: E402

from two_tower.ingest.loading import loader  # noqa: E402
from two_tower.ingest.versions import versions as collections  # noqa: E402
from two_tower.models.bundle.bundle import ModelBundle  # noqa: E402
from two_tower.models.data import Dataset  # noqa: E402
from two_tower.retriever.engine.connect import connect  # noqa: E402

CLIENTS = 8

PARTS = ("load", "limit", "kill", "layouts", "memory")
ROUNDS = 2
LAYOUTS = ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2))
"""Workers, and threads of each."""
PLAIN = {"cross": False}
SAMPLES = 20  # of the memory
CROSSED = 10


class Load(NamedTuple):
    """What clients saw: `(status, milliseconds)` of each request; status 0 is a lost connection."""

    answers: list[tuple[int, float]]


class Asked(NamedTuple):
    """What clients ask, over and over: each query with these settings."""

    queries: Sequence[str]
    settings: dict[str, Any] | None = None

    def body(self, at: int) -> str:
        return json.dumps(
            {"query": self.queries[at % len(self.queries)], "settings": self.settings}
        )


def client(url: str, asked: Asked, seconds: float, number: int) -> Load:
    """Search one query after the other over one connection; open another where it breaks."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    answers = []
    end, at = time.monotonic() + seconds, number * 37
    while time.monotonic() < end:
        at += 1
        start = time.perf_counter()
        try:
            header = {"Content-Type": "application/json"}
            connection.request("POST", "/search", asked.body(at), header)
            response = connection.getresponse()
            response.read()
            status = response.status
        except (OSError, http.client.HTTPException):
            connection.close()
            status = 0
        answers.append((status, (time.perf_counter() - start) * 1000.0))
    connection.close()
    return Load(answers)


def wait(everyone: Barrier) -> None:
    """Return when the others are here, too: a process takes seconds to begin, and both cores."""
    everyone.wait(timeout=120)


def run_clients(count: int, service: Service, asked: Asked, seconds: float) -> Load:
    """Let so many clients search, each in a process of its own; all begin when all are there."""
    spawn = get_context("spawn")
    everyone = spawn.Barrier(count)
    with ProcessPoolExecutor(count, spawn, initializer=wait, initargs=(everyone,)) as pool:
        futures = [
            pool.submit(client, service.url, asked, seconds, number) for number in range(count)
        ]
        return Load([answer for future in futures for answer in future.result().answers])


def show(label: str, load: Load, seconds: float) -> float:
    """Print one line; return the 95th percentile of what was answered 200, in ms."""
    statuses = dict(sorted(Counter(status for status, _ in load.answers).items()))
    times = [ms for status, ms in load.answers if status == 200]
    p50, p95, p99 = np.percentile(times, [50, 95, 99])
    print(
        f"{label:28} {len(load.answers) / seconds:7.0f}/s  p50 {p50:6.1f}  p95 {p95:6.1f}  "
        f"p99 {p99:6.1f} ms  statuses {statuses}",
        flush=True,
    )
    return float(p95)


def family(process: "subprocess.Popen[bytes] | None") -> list[int]:
    """Return a process and its children: a service with several workers has them."""
    assert process
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [process.pid, *map(int, children)]


def cpu_ms(process: "subprocess.Popen[bytes] | None") -> float:
    stats = [Path(f"/proc/{pid}/stat").read_text() for pid in family(process)]
    fields = [stat.rpartition(")")[2].split() for stat in stats]
    ticks = sum(int(each[11]) + int(each[12]) for each in fields)
    return ticks * 1000.0 / os.sysconf("SC_CLK_TCK")


def memory_mb(process: "subprocess.Popen[bytes] | None") -> float:
    """Return what a service and its workers hold in memory that is theirs alone."""
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in family(process)]
    lines = [line.split() for text in texts for line in text.splitlines()[1:]]
    return sum(int(line[1]) for line in lines if line[0].startswith("Private_")) / 1024.0


def measure_load(service: Service, qdrant: Qdrant, asked: Asked, seconds: float) -> dict[str, Any]:
    run_clients(1, service, asked, 3)
    single = show("1 client", run_clients(1, service, asked, seconds / 3), seconds / 3)
    processes = (service.process, qdrant.process)
    before = [cpu_ms(process) for process in processes]
    eight = run_clients(CLIENTS, service, asked, seconds)
    own, engine = (
        (cpu_ms(process) - spent) / len(eight.answers)
        for process, spent in zip(processes, before, strict=True)
    )
    p95 = show(f"{CLIENTS} clients", eight, seconds)
    print(
        f"p95 of {CLIENTS} clients / p95 of one: {p95 / single:.2f} (goal: at most 5); "
        f"CPU per search: service {own:.1f} ms, Qdrant {engine:.1f} ms"
    )
    if {status for status, _ in eight.answers} != {200}:
        sys.exit("not every answer was 200")
    return {
        "settings": asked.settings or {},
        "per_s": round(len(eight.answers) / seconds, 1),
        "p95_ms": [round(single, 2), round(p95, 2)],
        "service_cpu_ms": round(own, 2),
        "qdrant_cpu_ms": round(engine, 2),
        "load": round(os.getloadavg()[0], 2),
    }


def measure_limit(folder: Path, bundle: Path, qdrant: Qdrant, asked: Asked, seconds: float) -> None:
    flags = ("--url", qdrant.url, "--threads", "2", "--waiting", "2")
    with running_service(folder, bundle, *flags) as service:
        load = run_clients(16, service, asked, seconds)
        show("16 clients, 4 places", load, seconds)
        show("then 1 client", run_clients(1, service, asked, 3), 3)
    if {status for status, _ in load.answers} != {200, 429}:
        sys.exit("expected answers 200 and 429")


def measure_kill(service: Service, qdrant: Qdrant, asked: Asked, seconds: float) -> None:
    def kill_and_restart() -> None:
        time.sleep(seconds / 3)
        qdrant.kill()
        time.sleep(seconds / 3)
        qdrant.start()

    accident = threading.Thread(target=kill_and_restart)
    accident.start()
    load = run_clients(CLIENTS, service, asked, seconds)
    accident.join()
    show("Qdrant killed, restarted", load, seconds)
    if {200, 503} != {status for status, _ in load.answers}:
        sys.exit("expected answers 200 and 503")
    show("then 1 client", run_clients(1, service, asked, 3), 3)


def measure_layouts(
    folder: Path, bundle: Path, qdrant: Qdrant, ways: Sequence[Asked], *, seconds: float
) -> list[dict[str, Any]]:
    """Divide the cores in several ways, in turns; return a row for each way, round and settings."""
    rows = []
    for number in range(1, ROUNDS + 1):
        for asked in ways:
            for workers, threads in LAYOUTS:
                flags = ("--url", qdrant.url, f"--workers={workers}", f"--threads={threads}")
                with running_service(folder, bundle, *flags) as service:
                    while "Serving" not in service.log.read_text():
                        time.sleep(0.1)
                    run_clients(CLIENTS, service, asked, 3)
                    one = run_clients(1, service, asked, seconds / 3)
                    before = cpu_ms(service.process)
                    load = run_clients(CLIENTS, service, asked, seconds)
                    spent = (cpu_ms(service.process) - before) / len(load.answers)
                label = f"{number}: {workers} worker(s), {threads} thread(s) each"
                p95 = [show(f"{label}, 1 client", one, seconds / 3)]
                p95.append(show(f"{label}, {CLIENTS} clients", load, seconds))
                row = {"round": number, "workers": workers, "threads": threads}
                row |= {"settings": asked.settings or {}, "per_s": len(load.answers) / seconds}
                row |= {"p95_ms": p95, "service_cpu_ms": spent, "load": os.getloadavg()[0]}
                rows.append(row)
    print(layout_table(rows))
    return rows


def layout_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the medians over the rounds as docs/service.md shows them."""
    lines = [
        "| workers, threads of each | searches/s | p95, ms | times that of one client "
        "| searches/s without | p95, ms | times |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    for layout in LAYOUTS:
        cells = ["{}, {}".format(*layout)]
        for settings in ({}, PLAIN):
            of = [r for r in rows if (r["workers"], r["threads"]) == layout]
            of = [row for row in of if row["settings"] == settings]
            rate, p95, ratio = (
                float(np.median(numbers))
                for numbers in zip(
                    *((r["per_s"], r["p95_ms"][1], r["p95_ms"][1] / r["p95_ms"][0]) for r in of),
                    strict=True,
                )
            )
            cells += [f"{rate:.0f}", f"{p95:.0f}", f"{ratio:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def varied_queries(data: Dataset, count: int) -> list[str]:
    """Return queries of three to eight words of the corpus, none twice."""
    rng = np.random.default_rng(0)
    words = sorted({w for p in islice(data.passages(), 20_000) for w in p.text.split()})
    queries: dict[str, None] = {}
    while len(queries) < count:
        picked = rng.choice(len(words), size=rng.integers(3, 9))
        queries[" ".join(words[at] for at in picked)] = None
    return list(queries)


def measure_memory(service: Service, queries: Sequence[str]) -> list[dict[str, float]]:
    """Ask all queries once, over a few connections; return the memory on the way."""
    rows: list[dict[str, float]] = []
    step = -(-len(queries) // SAMPLES)
    for first in range(0, len(queries), step):
        part = queries[first : first + step]
        threads = [
            threading.Thread(target=ask_once, args=(service.url, part[number::4]))
            for number in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rows.append({"queries": first + len(part), "mb": memory_mb(service.process)})
        print(f"{rows[-1]['queries']:8,} queries {rows[-1]['mb']:8.1f} MB", flush=True)
    settled = rows[len(rows) // 4]["mb"]
    print(f"since the first quarter: {rows[-1]['mb'] - settled:+.1f} MB of {settled:.1f}")
    return rows


def ask_once(url: str, queries: Sequence[str]) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    for number, query in enumerate(queries):
        body = Asked([query], {"cross": number % CROSSED == 0}).body(0)
        connection.request("POST", "/search", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        assert response.status == 200, response.status
    connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    parts, seconds, bundle = flags.only.split(","), flags.seconds, flags.bundle
    data = Dataset.open(flags.data)
    asked = Asked([query.text for query in data.queries("dev")][:1000])
    result: dict[str, Any] = {"passages": data.passage_count, "cores": os.cpu_count()}
    model = ModelBundle.load(bundle)
    print(f"{data.manifest['counts']['passages']:,} passages, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as name, running_qdrant(Path(name, "qdrant")) as qdrant:
        engine = connect(url=qdrant.url)
        report = loader.load(engine, data, model, name=NAME)
        collections.promote(engine, NAME, report.collection)
        while engine.get_collection(NAME).status != qm.CollectionStatus.GREEN:
            time.sleep(0.5)  # Qdrant would take the cores for its graphs
        engine.close()
        folder, at = Path(name), ("--url", qdrant.url)
        if "memory" in parts:
            with running_service(folder, bundle, *at) as service:
                result["memory"] = measure_memory(service, varied_queries(data, flags.queries))
        plain = asked._replace(settings=PLAIN)
        if "layouts" in parts:
            ways = [asked, plain] if model.has_cross_scorer else [plain]
            result["layouts"] = measure_layouts(folder, bundle, qdrant, ways, seconds=seconds / 3)
        with running_service(folder, bundle, *at) as service:
            if "load" in parts:
                result["load"] = [measure_load(service, qdrant, asked, seconds)]
                if model.has_cross_scorer:
                    print("Without the cross-scorer:")
                    result["load"].append(measure_load(service, qdrant, plain, seconds))
            if flags.out:
                flags.out.write_text(json.dumps(result, indent=1) + "\n")
            if "limit" in parts:
                measure_limit(folder, bundle, qdrant, asked, seconds / 4)
            if "kill" in parts:
                measure_kill(service, qdrant, asked, seconds / 3)
            if "Traceback" in service.log.read_text():
                sys.exit(f"the service logged a traceback:\n{service.log.read_text()[-3000:]}")


if __name__ == "__main__":
    main()
