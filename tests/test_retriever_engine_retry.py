"""Patience with a server: what is asked for again, and what is not."""

import httpx
import pytest
from qdrant_client import QdrantClient

from two_tower.retriever.engine import server
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.engine.server import ServerEngine
from two_tower.retriever.errors import (
    CollectionNotFound,
    EngineBusy,
    EngineError,
    EngineUnavailable,
    KeyRefused,
)

DONE = '{"result": {"collections": []}}'


class Answers:
    """A server that gives these statuses one after the other, the last of them for ever."""

    def __init__(self, *statuses: int) -> None:
        self._statuses = list(statuses)
        self.asked = 0

    def __call__(self, _: httpx.Request) -> httpx.Response:
        self.asked += 1
        status = self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]
        return httpx.Response(status, text=DONE if status == 200 else '{"status": "no"}')

    def engine(self) -> ServerEngine:
        transport = httpx.MockTransport(self)
        client = QdrantClient(url="http://away", check_compatibility=False, transport=transport)
        return ServerEngine(lambda: client, "away")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LONGEST_PAUSE_S", 0.01)


def test_a_server_that_comes_back_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    answers = Answers(503, 500, 429, 200)
    assert answers.engine().with_retry(30).get_collections().collections == []
    assert answers.asked == 4
    first, last = caplog.messages
    assert "away" in first
    assert first.endswith("; trying again for 30 s")
    assert last.startswith("Going on after ")


def test_patience_ends() -> None:
    answers = Answers(503)
    with pytest.raises(EngineUnavailable, match="gave up after 0 s: run the same command again"):
        answers.engine().with_retry(0.1).get_collections()
    assert answers.asked > 1


@pytest.mark.parametrize(
    ("status", "kind"), [(401, KeyRefused), (404, CollectionNotFound), (400, EngineError)]
)
def test_what_no_time_heals_is_not_waited_for(status: int, kind: type[EngineError]) -> None:
    answers = Answers(status)
    with pytest.raises(kind) as failure:
        answers.engine().with_retry(30).get_collections()
    assert answers.asked == 1
    assert "gave up" not in str(failure.value)


def test_an_engine_is_impatient_unless_asked() -> None:
    answers = Answers(500)
    engine = answers.engine()
    engine.with_retry(30)
    with pytest.raises(EngineBusy, match="HTTP 500") as failure:
        engine.get_collections()
    assert answers.asked == 1
    assert "gave up" not in str(failure.value)


def test_the_embedded_engine_is_never_away(edge_engine: Engine) -> None:
    assert edge_engine.with_retry() is edge_engine
