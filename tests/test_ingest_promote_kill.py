"""kill -9 of the real server while a name is moved, before, in and after each of the two writes.

Whatever the instant, the name then stands for exactly one complete version, the one before or the
one after, and the same call again finishes.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cluster import Node
from conftest import HashEncoder, make_passages, write_data

from two_tower.ingest.loading import loader
from two_tower.ingest.loading.verify import verify_counts
from two_tower.ingest.versions.versions import promote, rollback
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.errors import EngineError

NAME = "c"
POINTS = 20
IN_A_WRITE_S = (0.0, 0.001, 0.003)
INSTANTS = [(write, delay) for write in (1, 2) for delay in (*IN_A_WRITE_S, None)]
"""Which of the two writes, and how long after it was sent; None for when it was answered."""


class Switching:
    """A server with two versions of a name, the second of them in use."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.node = node
        self._start()
        data = write_data(folder / "DATA", make_passages(POINTS))
        self.versions = []
        with self._connected() as engine:
            for seed in (1, 2):
                encoder = HashEncoder(seed=seed)
                self.versions.append(loader.load(engine, data, encoder, name=NAME).collection)
                promote(engine, NAME, self.versions[-1])

    def _start(self) -> None:
        self.node.start({})
        self.node.wait_until_ready()

    @contextmanager
    def _connected(self) -> Iterator[Engine]:
        engine = connect(url=self.node.url)
        try:
            yield engine
        finally:
            engine.close()

    def broken(self, move: Callable[[Engine], str], write: int, delay_s: float | None) -> str:
        """Kill the server at that instant of `move`; return what the name stands for afterwards."""
        with self._connected() as engine, suppress(EngineError):
            move(Killing(engine, self.node, write, delay_s))  # type: ignore[arg-type]
        assert not self.node.alive
        self._start()
        return self.stands_for()

    def whole(self, move: Callable[[Engine], str]) -> str:
        """Let `move` go on undisturbed; return what the name stands for afterwards."""
        with self._connected() as engine:
            moved_to = move(engine)
        assert moved_to == self.stands_for()
        return moved_to

    def stands_for(self) -> str:
        """Return the one complete version that the name stands for."""
        with self._connected() as engine:
            aliases = {a.alias_name: a.collection_name for a in engine.get_aliases().aliases}
            assert aliases.keys() == {NAME}
            assert verify_counts(engine, aliases[NAME]).points == POINTS
            return aliases[NAME]


class Killing:
    """An engine whose server is killed at an instant of one of its writes."""

    def __init__(self, engine: Engine, node: Node, write: int, delay_s: float | None) -> None:
        self._engine = engine
        self._node = node
        self._left = write
        self._delay_s = delay_s

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._engine, name)

        def call(*arguments: Any, **options: Any) -> Any:
            self._left -= name.startswith("update")
            if self._left or not name.startswith("update"):
                return method(*arguments, **options)
            if self._delay_s is None:
                method(*arguments, **options)
                self._node.kill()
                raise EngineError("the server was killed")
            killer = threading.Timer(self._delay_s, self._node.kill)
            killer.start()
            try:
                return method(*arguments, **options)
            finally:
                killer.join()

        return call


@pytest.fixture
def switching(tmp_path: Path) -> Iterator[Switching]:
    node = Node("one", tmp_path / "server", [])
    try:
        yield Switching(node, tmp_path)
    finally:
        if node.alive:
            node.kill()


def test_the_server_is_killed_during_a_promotion(switching: Switching) -> None:
    old, new = reversed(switching.versions)
    moved = []
    for write, delay_s in INSTANTS:
        assert switching.stands_for() == old

        def move(engine: Engine, target: str = new) -> str:
            return promote(engine, NAME, target)

        found = switching.broken(move, write, delay_s)
        assert found in (old, new)
        moved.append(found == new)
        assert switching.whole(move) == new
        old, new = new, old
    assert not any(moved[:4])  # the first write only notes what was before
    assert moved[-1]


def test_the_server_is_killed_during_a_rollback(switching: Switching) -> None:
    for write, delay_s in ((1, None), (2, 0.001), (2, None)):
        before = switching.stands_for()
        other = next(version for version in switching.versions if version != before)

        def move(engine: Engine) -> str:
            return rollback(engine, NAME)

        found = switching.broken(move, write, delay_s)
        assert found == before or write == 2
        assert found == other or delay_s is not None or write == 1
        assert switching.whole(move) == (other if found == before else before)
