"""Points made by processes beside this one, so that making and writing take a core each.

The embedded engine holds the GIL while it writes: a thread beside it makes nothing meanwhile. A
worker is a Python of its own that imports this module alone, never the caller's main program, and
ends with its socket. It reads the bundle, then passages, and answers with batches of points:

    this process     read, compare ── passages ──▶       ── batches ──▶ write
    worker                                     encode, weigh terms, cut

A chunk of passages gives the same points to the last bit, whoever makes them, and all are written
in DATA's order; so the number of workers decides nothing but the time.
"""

import logging
import os
import pickle
import queue
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from select import select
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from two_tower.ingest.loading.diff import Changes
from two_tower.ingest.loading.points import PassageEncoder, PointMaker
from two_tower.models.bundle.no_tower import NoTower
from two_tower.models.data import Passage
from two_tower.models.errors import TwoTowerError
from two_tower.models.text.transformer_tokenizer import GRAPH
from two_tower.models.threads import one_blas_thread
from two_tower.retriever.collection.schema import CollectionMetadata
from two_tower.retriever.engine.failures import AGAIN
from two_tower.retriever.engine.wire import PackedPoints, Point, batches
from two_tower.retriever.errors import EngineError

if TYPE_CHECKING:
    from two_tower.models.bundle.bundle import ModelBundle

WORTH_IT = 10_000
"""Passages of DATA from which on a worker saves more than its start takes, two seconds of CPU."""
FIRST_HERE = 2  # chunks of changes; a load that finds no more starts no worker
MOST_WORKERS = 3  # where a tower is a table, one keeps up with the embedded engine
AHEAD = 2  # chunks that a worker has: one in work, one that waits
WAIT_S, END_S = 0.0, 5.0  # for a worker that is starting, and for one that ends

START = "import sys; sys.path[:] = {path!r}; from {module} import serve; serve({socket})"
LENGTH = struct.Struct("=Q")
READY = "ready"

log = logging.getLogger(__name__)


def worker_count(encoder: PassageEncoder, passages: int) -> int:
    """Return how many workers a load of DATA into the embedded engine gets.

    None where DATA is small, this process has one core, or a transformer uses all of them.
    """
    is_plain = isinstance(encoder, NoTower)
    if not is_plain:
        from two_tower.models.bundle.bundle import ModelBundle

        is_plain = isinstance(encoder, ModelBundle) and not (
            GRAPH in encoder.files or encoder.documents or encoder.late
        )
    is_python = bool(sys.executable) and not getattr(sys, "frozen", False)  # not an application
    if not is_plain or passages < WORTH_IT or not is_python:
        return 0
    return min(len(os.sched_getaffinity(0)) - 1, MOST_WORKERS)


class BatchMaker:
    """Makes the points of changes, in batches; a context manager that ends its workers."""

    def __init__(
        self,
        encoder: PassageEncoder,
        metadata: CollectionMetadata,
        *,
        batch_points: int,
        workers: int = 0,
    ) -> None:
        """Start nothing yet."""
        self._encoder, self._metadata = encoder, metadata
        self._maker = PointMaker(encoder, metadata)
        self._batch_points = batch_points
        self._count = workers
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.end()

    def run(
        self, changes: Iterable[Changes]
    ) -> Iterator[tuple[Changes, Iterable[Sequence[Point]]]]:
        """Yield changes as they come, with the points of what was added and replaced.

        This process makes the points until its workers have started.

        Raises:
            EngineError: a worker ended.
        """
        given: deque[tuple[Changes, _Worker]] = deque()
        for number, each in enumerate(changes):
            passages = [*each.added, *each.replaced]
            if number == FIRST_HERE and self._count:
                self._start()
            if not self._are_ready():
                yield each, batches(self._maker.make(passages), max_points=self._batch_points)
                continue
            if len(given) == AHEAD * len(self._workers):
                yield _next(given)
            worker = self._workers[number % len(self._workers)]
            worker.give(passages)
            given.append((each, worker))
        while given:
            yield _next(given)

    def _are_ready(self) -> bool:
        """Whether there are workers that take work; one that cannot start is no reason to stop."""
        try:
            return bool(self._workers) and all(worker.is_ready() for worker in self._workers)
        except EngineError as error:
            log.warning("%s; the load goes on without", error)
            self.__exit__(None, None, None)
            self._workers = []
            return False

    def _start(self) -> None:
        encoder = self._encoder
        files = None if isinstance(encoder, NoTower) else dict(cast("ModelBundle", encoder).files)
        needs = pickle.dumps((files, self._metadata, self._batch_points))
        for _ in range(self._count):
            self._workers.append(_Worker(needs))


def _next(given: "deque[tuple[Changes, _Worker]]") -> tuple[Changes, list[PackedPoints]]:
    changes, worker = given.popleft()
    return changes, worker.take()


class _Worker:
    """A process that makes points: `serve` is its side."""

    def __init__(self, needs: bytes) -> None:
        self._socket, theirs = socket.socketpair()
        start = START.format(
            path=list(map(os.path.abspath, sys.path)), module=__name__, socket=theirs.fileno()
        )
        with theirs, tempfile.TemporaryFile() as file:
            file.write(needs)
            file.seek(0)
            self._process = subprocess.Popen(
                [sys.executable, "-c", start],
                pass_fds=[theirs.fileno()],
                stdin=file,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for this process, which ends the worker
            )
        self._is_ready = False

    def is_ready(self) -> bool:
        """Whether it takes work; this does not wait for it.

        Raises:
            EngineError: it ended before.
        """
        if not self._is_ready and select([self._socket], [], [], WAIT_S)[0]:
            self._is_ready = self._answer() == READY
        return self._is_ready

    def give(self, passages: Sequence[Passage]) -> None:
        """Have the points of passages made.

        Raises:
            EngineError: it ended.
        """
        try:
            _send(
                self._socket, [(*each[:4], dict(each.fields), each.expansion) for each in passages]
            )
        except OSError:
            raise self._ended() from None

    def take(self) -> list[PackedPoints]:
        """Return the points of the passages that were given first, in batches.

        Raises:
            EngineError: it ended.
        """
        answer: list[PackedPoints] = self._answer()
        return answer

    def _answer(self) -> Any:
        try:
            answer = _receive(self._socket)
        except OSError:
            answer = None
        if answer is None:
            raise self._ended()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _ended(self) -> EngineError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=END_S)  # its socket closes a moment earlier
        self.end()
        code = self._process.returncode
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if not self._is_ready:
            return EngineError(f"a process that makes points could not start ({how})")
        return EngineError(
            f"a process that makes points ended ({how}), perhaps for want of memory; {AGAIN}"
        )

    def end(self) -> None:
        """End it, whatever it does."""
        self._socket.close()
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def serve(descriptor: int) -> None:
    """Be a worker: make points of what comes through a socket until it closes."""
    with socket.socket(fileno=descriptor) as ours, one_blas_thread():
        try:
            files, metadata, batch_points = pickle.load(sys.stdin.buffer)
            encoder = NoTower() if files is None else _bundle(files)
            maker = PointMaker(encoder, metadata)
            _send(ours, READY)
            for passages in _requests(ours):
                made = batches(maker.make(passages), max_points=batch_points)
                _send(ours, [PackedPoints.of(batch) for batch in made])
        except (BrokenPipeError, ConnectionResetError):
            return
        except TwoTowerError as error:
            _send(ours, error)
        except Exception:  # a bug; the other process shows where it is
            _send(ours, RuntimeError(traceback.format_exc()))


def _bundle(files: dict[str, bytes]) -> "ModelBundle":
    from two_tower.models.bundle.bundle import ModelBundle  # not where there is BM25 alone

    return ModelBundle(files, {})


def _requests(ours: socket.socket) -> Iterator[list[Passage]]:
    """Yield passages; a thread takes them from the socket, so that the sender never waits."""
    waiting: queue.Queue[Any] = queue.Queue()

    def read() -> None:
        try:
            while (request := _receive(ours)) is not None:
                waiting.put(request)
        finally:  # the other process may have been killed
            waiting.put(None)

    threading.Thread(target=read, daemon=True).start()
    while (request := waiting.get()) is not None:
        yield [Passage(*each) for each in request]


def _send(end: socket.socket, value: object) -> None:
    content = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    end.sendall(LENGTH.pack(len(content)))
    end.sendall(content)


def _receive(end: socket.socket) -> Any:
    """Return what was sent; None where the other end closed."""
    length = _exactly(end, LENGTH.size)
    content = length and _exactly(end, LENGTH.unpack(length)[0])
    return pickle.loads(content) if content else None


def _exactly(end: socket.socket, size: int) -> bytearray | None:
    """Return so many bytes; one call takes them all, and the GIL is free while it waits."""
    content = bytearray(size)
    view, count = memoryview(content), 0
    while count < size:
        more = end.recv_into(view[count:], flags=socket.MSG_WAITALL)
        if not more:
            return None
        count += more
    return content
