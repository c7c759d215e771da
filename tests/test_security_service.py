"""A service in hostile hands: silent sockets, other hosts, guessed keys, long texts."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import free_ports, make_passages
from services import NAME, START, Answer, Service, load, run_serve, running_service, until

from two_tower.models.data import Passage
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.search.snippets import LOOKED_AT, highlight, snippet
from two_tower.retriever.service.connections import HEADERS_S
from two_tower.retriever.service.middleware import Guesses, host_name

KEY = "correct-horse-battery"
LONG = "river bank " * 200_000
PASSAGES = [*make_passages(20), Passage("long", LONG, title="river " * 20_000)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    load(folder, tiny_bundle, PASSAGES, path=folder / "edge")
    return folder


@pytest.fixture(scope="module")
def service(folder: Path, tiny_bundle: Path) -> Iterator[Service]:
    """Without a key, with few files to open."""
    limit = f"ulimit -n 256; exec {sys.executable} -W error -c '{START}' \"$@\""
    (port,) = free_ports(1)
    words = ["serve", NAME, "--bundle", tiny_bundle, "--port", port, "--path", folder / "edge"]
    words += ["--allowed-host", "search.example"]
    log = folder / "service.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["bash", "-c", limit, "bash", *map(str, words)], stdout=file, stderr=file
        )
    running = Service(f"http://127.0.0.1:{port}", process, log)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        with suppress(OSError):
            return running.get("/health").status == 200
        return False

    try:
        until(answers, seconds=120)
        yield running
    finally:
        process.terminate()
        process.wait(timeout=60)


def opened(service: Service) -> socket.socket:
    address = urlsplit(service.url)
    return socket.create_connection((address.hostname, address.port), timeout=30)


def ask(service: Service, method: str, path: str, **headers: str) -> Answer:
    address = urlsplit(service.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    answer = Answer(response.status, response.headers, response.read().decode())
    connection.close()
    return answer


@pytest.mark.parametrize("path", ["/", "/search?q=river", "/health", "/page/app.js", "/nope"])
def test_head_is_get_without_a_body(service: Service, path: str) -> None:
    head, get = ask(service, "HEAD", path), ask(service, "GET", path)
    assert head.status == get.status
    assert head.text == ""
    assert head.headers["Content-Type"] == get.headers["Content-Type"]


HOSTS = {
    "localhost": 200, "localhost:8080": 200, "LOCALHOST": 200, "127.0.0.1:9": 200, "[::1]:80": 200,
    "search.example": 200, "search.example:443": 200,
    "evil.example": 421, "evil.example:8080": 421, "localhost.evil.example": 421,
    "127.0.0.1.evil.example": 421, "": 421, "[::2]": 421, "169.254.169.254": 421, "::1:80:1": 421,
}  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_only_named_hosts_are_answered(service: Service, host: str) -> None:
    for path in ("/search?q=river", "/", "/health"):
        answer = ask(service, "GET", path, Host=host)
        assert answer.status == HOSTS[host]
        if answer.status != 200:
            assert answer.code == "unknown_host"


@pytest.mark.parametrize("path", ["/search/?q=a", "/page", "//evil.example/x", "/health/"])
def test_no_answer_sends_the_client_elsewhere(service: Service, path: str) -> None:
    answer = ask(service, "GET", path, Host="localhost")
    assert answer.status == 404
    assert "Location" not in answer.headers


def test_the_host_header_is_read_as_browsers_write_it() -> None:
    assert host_name("Localhost:80") == "localhost"
    assert host_name("[::1]:80") == host_name("[::1]") == host_name("::1") == "::1"
    assert host_name(" a.b ") == "a.b"
    assert host_name("") == ""


def test_silent_and_half_sockets_do_not_stop_the_service(service: Service) -> None:
    parts = [b"", b"G", b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"POST /search HTTP/1.1\r\n"]
    silent = []
    for number in range(400):  # of 256 files
        with suppress(OSError):
            one = opened(service)
            one.send(parts[number % len(parts)])
            silent.append(one)
    size = service.log.stat().st_size
    for _ in range(3):
        assert service.get("/search?q=river").status == 200
    time.sleep(1.0)
    assert service.log.stat().st_size - size < 5000
    last = silent[-1]
    last.settimeout(HEADERS_S * 3)
    with suppress(ConnectionResetError):
        assert last.recv(10) == b""  # closed by the service, after a while
    for one in silent:
        one.close()


def test_a_slow_header_does_not_keep_a_socket(service: Service) -> None:
    with opened(service) as drip:
        start = time.monotonic()
        with suppress(OSError):
            for byte in b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 1000:
                drip.send(bytes([byte]))
                time.sleep(0.25)
        assert time.monotonic() - start < HEADERS_S * 3


def test_a_long_passage_is_found_and_shown_in_bounded_time(service: Service) -> None:
    answer = service.get("/search?q=river+bank&k=3")
    assert answer.status == 200
    hit = next(hit for hit in answer.json["hits"] if hit["passage_id"] == "long")
    assert sum(len(part["text"]) for part in hit["snippet"]) <= 240
    assert any(part["is_match"] for part in hit["snippet"])
    query = " ".join(f"river{number}" for number in range(1200))[:9000] + " river bank"
    assert service.post("/search", {"query": query, "k": 20}).status == 200


def test_work_on_a_text_is_bounded_by_what_is_looked_at() -> None:
    """The work is counted by what comes out: nothing behind the limit is marked or cut."""
    text = "x " * (LOOKED_AT // 2) + "river"
    assert not any(part.is_match for part in highlight(text, "river"))
    assert "".join(part.text for part in highlight(text, "river")) == text
    assert not any(part.is_match for part in snippet(text, "river"))
    assert "".join(part.text for part in snippet(text, "river")).endswith(" …")
    one_word = "".join(part.text for part in snippet("x" * (LOOKED_AT * 2), "river"))
    assert len(one_word) <= 180
    assert any(part.is_match for part in snippet("river " + text, "river"))


def test_sighup_lets_the_service_end_in_good_order(folder: Path, tiny_bundle: Path) -> None:
    data = folder / "another"
    load(data, tiny_bundle, PASSAGES[:5], path=data / "edge")
    with running_service(data, tiny_bundle, "--path", data / "edge") as service:
        service.process.send_signal(signal.SIGHUP)
        assert service.process.wait(timeout=60) == 0
    connect(path=data / "edge").close()  # is free


def test_wrong_keys_are_logged_and_slowed(folder: Path, tiny_bundle: Path) -> None:
    data = folder / "guarded"
    load(data, tiny_bundle, PASSAGES[:5], path=data / "edge")
    (data / "key").write_text(KEY)
    flags = ("--path", data / "edge", "--key-file", data / "key")
    with running_service(data, tiny_bundle, *flags) as service:
        for number in range(5):
            answer = service.get("/search?q=a", Authorization=f"Bearer guess-{number}")
            assert answer.status == 401
        start = time.monotonic()
        assert service.get("/search?q=a", Authorization=f"Bearer {KEY}").status == 200
        assert service.get("/search?q=a").status == 401  # no guess
        assert time.monotonic() - start < 5
        log = service.log.read_text()
    assert log.count("a wrong key from 127.0.0.1") == 3  # the first, the second, the fourth
    assert "guess-" not in log
    assert KEY not in log


def test_each_wrong_key_makes_the_next_answer_later() -> None:
    guesses = Guesses()
    waits = [guesses.record("a") for _ in range(12)]
    assert waits == sorted(waits)
    assert waits[0] == 0.05
    assert waits[-1] == Guesses.LONGEST_WAIT_S
    assert guesses.record("b") == 0.05
    for number in range(5000):
        guesses.record(f"10.0.{number}")
    assert guesses.record("a") == 0.05  # forgotten: the memory is bounded


@pytest.mark.parametrize("kind", ["mistyped", "a file", "read-only"])
def test_a_folder_that_cannot_be_opened_is_not_waited_for(
    tmp_path: Path, tiny_bundle: Path, kind: str
) -> None:
    path = tmp_path / "edgee"
    if kind == "a file":
        path.write_text("")
    if kind == "read-only":
        path = Path("/proc/1/edge")
    done = run_serve(NAME, "--bundle", tiny_bundle, "--path", path, "--port", str(free_ports(1)[0]))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    if kind == "mistyped":
        assert not path.exists()


def test_health_says_that_points_are_missing(folder: Path, tiny_bundle: Path) -> None:
    data = folder / "fewer"
    collection = load(data, tiny_bundle, PASSAGES[:9], path=data / "edge")
    engine = connect(path=data / "edge")
    records, _ = engine.scroll(collection, limit=2)
    engine.delete(collection, [record.id for record in records])
    engine.close()
    with running_service(data, tiny_bundle, "--path", data / "edge") as service:
        health = service.get("/health").json
    assert health["status"] == "ready"
    (warning,) = health["warnings"]
    assert "holds 7 passages, its last load meant 9" in warning


def test_json_is_json(service: Service) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for body in ('{"query": "river", "settings": {"legs": {"bm25": 5}}}', '{"query": "storm"}'):
        answer = service.post("/search", body.encode())
        assert answer.status == 200
        json.loads(answer.text, parse_constant=refuse)
