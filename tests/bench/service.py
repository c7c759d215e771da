"""Put the HTTP service under load: real clients, a real service process, a real Qdrant.

    python tests/bench/service.py DATA BUNDLE [SECONDS]

DATA and BUNDLE are what `make demo` leaves in runs/demo. Prints the latencies of one client and of
eight, with the cross-scorer and without where the bundle has one, what happens past the limit, and
what happens when Qdrant is killed under load. CPU is what service and Qdrant spent on a search;
it says more than a latency where other jobs run.
"""

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


def cpu_ms(process: "subprocess.Popen[bytes] | None") -> float:
    assert process
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000.0 / os.sysconf("SC_CLK_TCK")


def measure_load(service: Service, qdrant: Qdrant, asked: Asked, seconds: float) -> None:
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


def main() -> None:
    data, bundle = Dataset.open(Path(sys.argv[1])), Path(sys.argv[2])
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 60.0
    asked = Asked([query.text for query in data.queries("dev")][:1000])
    model = ModelBundle.load(bundle)
    print(f"{data.manifest['counts']['passages']:,} passages, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as name, running_qdrant(Path(name, "qdrant")) as qdrant:
        engine = connect(url=qdrant.url)
        report = loader.load(engine, data, model, name=NAME)
        collections.promote(engine, NAME, report.collection)
        while engine.get_collection(NAME).status != qm.CollectionStatus.GREEN:
            time.sleep(0.5)  # Qdrant would take the cores for its graphs
        engine.close()
        with running_service(Path(name), bundle, "--url", qdrant.url) as service:
            measure_load(service, qdrant, asked, seconds)
            if model.has_cross_scorer:
                print("Without the cross-scorer:")
                plain = asked._replace(settings={"cross": False})
                measure_load(service, qdrant, plain, seconds)
            measure_limit(Path(name), bundle, qdrant, asked, seconds / 4)
            measure_kill(service, qdrant, asked, seconds / 3)
            if "Traceback" in service.log.read_text():
                sys.exit(f"the service logged a traceback:\n{service.log.read_text()[-3000:]}")


if __name__ == "__main__":
    main()
