"""The processes of a service: one, or several that share a listener and are watched by a parent.

The parent binds the port, starts the workers and answers nothing itself. A worker that dies is
replaced; connections that wait in the kernel's queue go to the others meanwhile. A signal to the
parent ends all of them in good order, and so does its death.
"""

import fcntl
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from two_tower.models.console import say
from two_tower.models.errors import ConfigError, TwoTowerError
from two_tower.retriever.service.config import BACKLOG, ServiceConfig
from two_tower.retriever.service.logs import start_logging

if TYPE_CHECKING:
    from two_tower.retriever.service.server import Server

ENDING_S = 15.0
"""Beside a search's own time, until a worker that was asked to end must have ended."""

SHORT_LIFE_S, LONGEST_PAUSE_S = 10.0, 30.0
"""Of a worker that died young, and of the pause until the next one takes its place."""

log = logging.getLogger(__name__)


def run(config: ServiceConfig, *, host: str, port: int, workers: int = 1) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP, then answer what is under way and leave.

    A server that does not answer yet is waited for; a folder that cannot be opened is not.

    Raises:
        ConfigError: the extra is not installed, or the port is taken.
        BundleError: no complete bundle there.
        EngineError: no such collection, one of another bundle, or the folder is locked.
    """
    shown = f"[{host}]" if ":" in host else host
    hello = f"Serving {config.name} at http://{shown}:{port}"
    with _listen(host, port) as listener:
        if workers > 1:
            Parent(config, listener, count=workers).run(hello)
            return
        with _extra():
            from two_tower.retriever.service.metrics import Metrics
            from two_tower.retriever.service.server import Server
        start_logging(several=False)
        server = Server(config, Metrics(), ready=lambda: None)
        say(hello)
        server.run_at(listener)


@contextmanager
def _extra() -> Iterator[None]:
    """Name the extra where one of its packages is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"retriever serve needs {error.name}, which is not installed; "
            "run: pip install 'two-tower-search[serve]'"
        ) from None


def _listen(host: str, port: int) -> socket.socket:
    # asyncio turns Nagle's algorithm off only for sockets that name their protocol; with it on,
    # every answer on a kept connection waits 40 ms for the client's delayed acknowledgement.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen at {host}:{port} ({error.strerror or error}); "
            "give another --host or --port"
        ) from None
    return listener


class Worker(NamedTuple):
    """A process that answers.

    Attributes:
        process: is no child of a fork, as threads and clients of an engine survive none.
        pipe: gives None when requests are answered, or the error that forbids it; the worker reads
            the other end, which closes with the parent.
        since: when it was started.
    """

    process: SpawnProcess
    pipe: Connection
    since: float


class Parent:
    """Starts workers, and others for those that die, until a signal comes."""

    def __init__(self, config: ServiceConfig, listener: socket.socket, *, count: int) -> None:
        """Start nothing yet."""
        self._config = config
        self._listener = listener
        self._count = count
        self._workers: dict[int, Worker] = {}
        self._next_start: dict[int, float] = {}
        self._pauses: dict[int, float] = dict.fromkeys(range(count), 0.0)
        self._signal: int | None = None
        self._wakened, self._waker = socket.socketpair()

    def run(self, hello: str) -> None:
        """Serve until a signal; say hello when every worker answers.

        Raises:
            TwoTowerError: what kept a first worker from answering.
        """
        start_logging(several=True)
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.getsignal(number) for number in numbers}
        for number, handler in before.items():
            if number != signal.SIGHUP or handler is not signal.SIG_IGN:  # as nohup has it
                signal.signal(number, self._take)
        with TemporaryDirectory(prefix="two-tower-serve-") as shared:
            try:
                self._start_all(Path(shared))
                if self._signal is None:
                    say(f"{hello} with {self._count} workers")
                    self._watch(Path(shared))
            finally:
                self._end()
        for number, handler in before.items():
            signal.signal(number, handler)
        self._wakened.close()
        self._waker.close()
        if self._signal == signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)

    def _take(self, number: int, _: object) -> None:
        self._signal = number
        self._waker.send(b".")

    def _start_all(self, shared: Path) -> None:
        """Start the first worker, and the others where nothing kept it from answering."""
        for numbers in ([0], range(1, self._count)):
            for number in numbers:
                self._start(number, shared)
            for number in numbers:
                worker = self._workers[number]
                if self._wakened in wait([self._wakened, worker.pipe]):
                    return
                try:
                    error: TwoTowerError | None = worker.pipe.recv()
                except EOFError:
                    worker.process.join()
                    message = f"a worker {_last_words(worker)} before it answered a request"
                    raise ConfigError(f"{message}; the lines above say why") from None
                if error is not None:
                    raise error

    def _start(self, number: int, shared: Path) -> None:
        spawn = get_context("spawn")
        ours, theirs = spawn.Pipe()
        process = spawn.Process(
            target=work,
            args=(self._config, self._listener, theirs, number, shared),
            name=f"worker {number}",
        )
        # Ctrl-C reaches the whole group: a worker that is not ready for it would show a traceback.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        process.start()
        signal.signal(signal.SIGINT, handler)
        theirs.close()
        self._workers[number] = Worker(process, ours, time.monotonic())

    def _watch(self, shared: Path) -> None:
        while self._signal is None:
            now = time.monotonic()
            for number in [n for n, at in self._next_start.items() if at <= now]:
                del self._next_start[number]
                self._start(number, shared)
            pause = max(0.0, min(self._next_start.values()) - now) if self._next_start else None
            sentinels = [worker.process.sentinel for worker in self._workers.values()]
            ready = wait([self._wakened, *sentinels], pause)
            for number, worker in list(self._workers.items()):
                if worker.process.sentinel in ready:
                    self._lose(number, shared)

    def _lose(self, number: int, shared: Path) -> None:
        """Say that a worker has died, and when another takes its place."""
        from two_tower.retriever.service.metrics import forget

        worker = self._workers.pop(number)
        worker.process.join()
        forget(number, shared=shared)
        is_young = time.monotonic() - worker.since < SHORT_LIFE_S
        pause = min(LONGEST_PAUSE_S, max(1.0, 2.0 * self._pauses[number])) if is_young else 0.0
        self._pauses[number] = pause
        self._next_start[number] = time.monotonic() + pause
        log.warning(
            "worker %d %s; another takes its place%s",
            worker.process.pid,
            _last_words(worker),
            f" in {pause:.0f} s" if pause else "",
        )
        worker.pipe.close()

    def _end(self) -> None:
        """Let all workers answer what is under way; kill one that takes too long."""
        self._listener.close()
        for worker in self._workers.values():
            worker.process.terminate()
        deadline = time.monotonic() + self._config.timeout_s + ENDING_S
        for worker in self._workers.values():
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                log.warning("worker %d did not end in time and is killed", worker.process.pid)
                worker.process.kill()
                worker.process.join()


def _last_words(worker: Worker) -> str:
    """Return how a worker that is no more came to its end."""
    with suppress(EOFError, OSError):
        while (error := worker.pipe.recv()) is None:
            pass
        return f"could not serve ({error})"
    code = worker.process.exitcode or 0
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def work(
    config: ServiceConfig, listener: socket.socket, parent: Connection, number: int, shared: Path
) -> None:
    """Be worker `number`: serve at the parent's listener until a signal, or until it is gone."""
    try:
        with _extra():
            from two_tower.retriever.service.metrics import Metrics
            from two_tower.retriever.service.server import Server
        start_logging(several=True)
        server = Server(
            config,
            Metrics(shared, worker=number),
            changing=FileLock(shared / "changing"),
            ready=partial(parent.send, None),
        )
    except TwoTowerError as error:
        parent.send(error)
        sys.exit(1)
    threading.Thread(target=_end_with, args=(parent, server), daemon=True).start()
    server.run_at(listener)
    if (process := parent_process()) is None or not process.is_alive():
        shutil.rmtree(shared, ignore_errors=True)  # nobody else is left to do it


def _end_with(parent: Connection, server: "Server") -> None:
    """Let a worker end when its parent, which never writes, has gone without a word."""
    try:
        parent.recv()
    except (EOFError, OSError):
        server.should_exit = True


class FileLock:
    """Lets one thread of all processes that name the same file into its block at a time.

    The kernel frees it when its holder dies.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._threads = threading.Lock()
        self._file = -1

    def __enter__(self) -> None:
        self._threads.acquire()
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._file)
        self._threads.release()
