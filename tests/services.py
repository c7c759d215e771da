"""Real processes for tests of the HTTP service: the service itself, and a Qdrant to stop."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import ROOT, free_ports, qdrant_binary, wait_until_ready, write_data

from two_tower.ingest.loading import loader
from two_tower.ingest.versions import versions as collections
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.data import Passage
from two_tower.retriever.engine.connect import connect

START = "from two_tower.retriever.cli import app; app()"
NAME = "service_test"


class Answer(NamedTuple):
    """What the service answered."""

    status: int
    headers: Any
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def code(self) -> str:
        return self.json["error"]["code"]


class Service(NamedTuple):
    """A running `retriever serve`."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def get(self, path: str, **headers: str) -> Answer:
        return send(urllib.request.Request(self.url + path, headers=headers))

    def post(self, path: str, body: object, **headers: str) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | headers
        return send(urllib.request.Request(self.url + path, data, headers))


def send(request: urllib.request.Request) -> Answer:
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return Answer(response.status, response.headers, response.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read().decode())


@contextmanager
def running_service(
    folder: Path, bundle: Path | None, *flags: str | Path, name: str = NAME, **environment: str
) -> Iterator[Service]:
    """Run `retriever serve` on a free port until the block ends."""
    (port,) = free_ports(1)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"service-{port}.log"
    words = ["serve", name, "--port", port, *flags, *(["--bundle", bundle] if bundle else [])]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", START, *map(str, words)],
            env=os.environ | environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    service = Service(f"http://127.0.0.1:{port}", process, log)
    try:
        wait_for_service(service)
        yield service
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_for_service(service: Service) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and service.process.poll() is None:
        with suppress(urllib.error.URLError, ConnectionError):
            service.get("/openapi.json")
            return
        time.sleep(0.05)
    pytest.fail(f"the service did not start:\n{service.log.read_text()[-2000:]}")


def run_serve(*flags: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run a `retriever serve` that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-c", START, "serve", *map(str, flags)],
        capture_output=True,
        text=True,
        timeout=60,
    )


class Qdrant:
    """A Qdrant server that can be killed, paused and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = free_ports(3)
        self.url = f"http://127.0.0.1:{self._ports[0]}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        names = ("SERVICE__HTTP_PORT", "SERVICE__GRPC_PORT", "CLUSTER__P2P__PORT")
        settings = dict(zip(names, self._ports, strict=True)) | {
            "STORAGE__STORAGE_PATH": self._folder / "storage",
            "STORAGE__SNAPSHOTS_PATH": self._folder / "snapshots",
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        log = self._folder / "log"
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [qdrant_binary(), "--config-path", ROOT / "qdrant.yaml", "--disable-telemetry"],
                env=os.environ | {f"QDRANT__{key}": str(value) for key, value in settings.items()},
                cwd=self._folder,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        wait_until_ready(self.url, self.process, log)

    def send_signal(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()


@contextmanager
def running_qdrant(folder: Path) -> Iterator[Qdrant]:
    qdrant = Qdrant(folder)
    qdrant.start()
    try:
        yield qdrant
    finally:
        qdrant.kill()


def load(folder: Path, bundle: Path, passages: Sequence[Passage], **where: Any) -> str:
    """Load passages as collection `NAME` and promote it; return the versioned name."""
    data = write_data(folder / "DATA", passages)
    engine = connect(**where)
    try:
        report = loader.load(engine, data, ModelBundle.load(bundle), name=NAME)
        collections.promote(engine, NAME, report.collection)
    finally:
        engine.close()
    return report.collection


def until(condition: Any, *, seconds: float = 20) -> None:
    """Wait until `condition()` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
