"""Several workers behind one port, before a real Qdrant server."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import free_ports, make_passages
from prometheus_client.parser import text_string_to_metric_families
from services import NAME, Qdrant, Service, load, run_serve, running_qdrant, running_service, until

from two_tower.retriever.behaviour.log import BehaviourLog

BODY = {"query": "storm on the river bank", "k": 3}
KEY = "correct-horse-battery"
RIGHT = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def qdrant(folder: Path, tiny_bundle: Path) -> Iterator[Qdrant]:
    with running_qdrant(folder / "qdrant") as running:
        load(folder, tiny_bundle, make_passages(60), url=running.url)
        (folder / "key").write_text(KEY)
        (folder / "bm25.yaml").write_text("search: {legs: {bm25: 100}, rerank: false}\n")
        yield running


def flags(qdrant: Qdrant, folder: Path) -> tuple[Any, ...]:
    log = ("--log", folder / "log", "--against", folder / "bm25.yaml")
    return ("--url", qdrant.url, "--workers", 2, "--key-file", folder / "key", *log)


@pytest.fixture(scope="module")
def service(qdrant: Qdrant, folder: Path, tiny_bundle: Path) -> Iterator[Service]:
    (folder / "tmp").mkdir()
    place = {"TMPDIR": str(folder / "tmp")}
    with running_service(folder, tiny_bundle, *flags(qdrant, folder), **place) as running:
        until(lambda: "Serving" in running.log.read_text())
        yield running


def workers(service: Service) -> set[int]:
    """Return the processes that answer, by the kernel's list of the parent's children."""
    children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children")
    return {pid for pid in map(int, children.read_text().split()) if "spawn_main" in command(pid)}


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def is_running(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def sample(service: Service, name: str, **labels: str) -> float:
    text = service.get("/metrics", **RIGHT).text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    found = [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]
    return sum(found)


def cpu(pid: int) -> int:
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


def test_both_workers_answer_and_the_metrics_are_their_sum(service: Service) -> None:
    before = {pid: cpu(pid) for pid in workers(service)}
    assert len(before) == 2
    kept = sample(service, "retriever_log_records_total")
    with ThreadPoolExecutor(8) as clients:
        answers = [clients.submit(service.post, "/search", BODY, **RIGHT) for _ in range(60)]
        assert {answer.result().status for answer in answers} == {200}
    assert all(cpu(pid) > spent for pid, spent in before.items())  # each did a part of it
    about = {"path": "/search", "status": "200"}
    until(lambda: sample(service, "retriever_requests_total", **about) == 60)
    for name in ("retriever_request_seconds_count", "retriever_request_seconds_bucket"):
        infinite = {"le": "+Inf"} if name.endswith("bucket") else {}
        assert sample(service, name, path="/search", **infinite) == 60
    assert sample(service, "retriever_workers") == 2
    assert sample(service, "retriever_requests_in_flight") == 1  # this very request
    until(lambda: sample(service, "retriever_log_records_total", outcome="written") == kept + 60)
    health = service.get("/health")
    assert (health.status, health.json["status"]) == (200, "ready")


def test_a_worker_that_dies_is_replaced_and_its_counts_stay(service: Service) -> None:
    for _ in range(6):
        assert service.post("/similar", {"passage_id": "p1"}, **RIGHT).status == 200
    before = workers(service)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(workers(service) - before) == 1)
    until(lambda: sample(service, "retriever_workers") == 2)
    assert sample(service, "retriever_requests_total", path="/similar") == 6
    assert service.post("/search", BODY, **RIGHT).status == 200
    lines = [line for line in service.log.read_text().splitlines() if "another takes" in line]
    assert len(lines) == 1
    assert f"worker {victim} was ended by SIGKILL" in lines[0]


def test_a_person_gets_the_same_side_from_every_worker(service: Service, folder: Path) -> None:
    person = {**BODY, "client_id": "jane"}
    answers = [service.post("/search", person, **RIGHT).json for _ in range(8)]
    assert len({tuple(hit["passage_id"] for hit in answer["hits"]) for answer in answers}) == 1
    log = BehaviourLog(folder / "log", days=90)
    try:
        assert all(log.is_own(answer["query_id"]) for answer in answers)
    finally:
        log.close()


@contextmanager
def of_background() -> Iterator[None]:
    """What is started meanwhile begins as a shell's background jobs do: SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("number", "start"),
    [
        (signal.SIGTERM, nullcontext),
        (signal.SIGINT, nullcontext),
        (signal.SIGINT, of_background),
    ],
)
def test_a_signal_to_the_parent_lets_all_end_what_is_under_way(
    qdrant: Qdrant,
    folder: Path,
    tiny_bundle: Path,
    number: signal.Signals,
    start: Callable[[], AbstractContextManager[None]],
) -> None:
    with (
        start(),
        running_service(folder, tiny_bundle, *flags(qdrant, folder)) as service,
        ThreadPoolExecutor(4) as clients,
    ):
        until(lambda: "Serving" in service.log.read_text())
        pids = workers(service)
        qdrant.send_signal(signal.SIGSTOP)
        try:
            answers = [clients.submit(service.post, "/search", BODY, **RIGHT) for _ in range(4)]
            assert not wait(answers, timeout=0.5).done
            service.process.send_signal(number)
            assert not wait(answers, timeout=0.5).done
        finally:
            qdrant.send_signal(signal.SIGCONT)
        assert [answer.result().status for answer in answers] == [200] * 4
        assert service.process.wait(timeout=20) == (-number if number == signal.SIGTERM else 0)
        assert not any(map(is_running, pids))
        assert "Traceback" not in service.log.read_text()
        with pytest.raises(urllib.error.URLError):
            service.get("/health")


def test_changes_by_way_of_all_workers_wait_for_each_other(service: Service) -> None:
    def add(number: int) -> int:
        passage = {"passage_id": f"new{number}", "text": f"A lighthouse, number {number}."}
        return service.post("/passages", {"passages": [passage]}, **RIGHT).status

    with ThreadPoolExecutor(4) as clients:
        assert list(clients.map(add, range(4))) == [200] * 4


def test_workers_do_not_outlive_their_parent(service: Service, folder: Path) -> None:
    """The last test that uses the service: nothing is left of it."""
    pids = workers(service)
    service.process.kill()
    service.process.wait()
    until(lambda: not any(map(is_running, pids)))
    assert list((folder / "tmp").iterdir()) == []


READ_WHILE_MADE = """
import sys, threading, time
from pathlib import Path
from two_tower.retriever.service.metrics import Metrics
folder = Path(sys.argv[1])
metrics = Metrics(folder, worker=0)
other = (folder / "gauge_livesum_1.db").open("xb")
threading.Timer(0.05, lambda: other.truncate(65536)).start()
print(metrics.text().decode())
"""


def test_a_file_that_is_just_made_is_waited_for(tmp_path: Path) -> None:
    words = [sys.executable, "-c", READ_WHILE_MADE, tmp_path]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "retriever_workers 1.0" in done.stdout


@pytest.mark.parametrize("name", ["missing", NAME])
def test_what_no_worker_can_serve_is_said_once(
    qdrant: Qdrant, folder: Path, tiny_bundle: Path, name: str
) -> None:
    more: tuple[Any, ...] = ("--bundle", tiny_bundle) if name == "missing" else ()
    bundle = more or ("--bundle", folder / "nothing")
    done = run_serve(name, "--url", qdrant.url, "--workers", 2, "--port", free_ports(1)[0], *bundle)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert ("missing" if more else "nothing") in line


def test_the_embedded_engine_has_one_process(tmp_path: Path) -> None:
    started = time.monotonic()
    done = run_serve("any", "--path", tmp_path / "edge", "--workers", 2)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "--workers is 2" in line
    assert "--url" in line
    assert not (tmp_path / "edge").exists()
    assert time.monotonic() - started < 30
