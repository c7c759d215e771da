"""Searches that wait together are answered together, and each gets its own answer or failure."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest

from two_tower.retriever.errors import EngineUnavailable, QueryError
from two_tower.retriever.records import SearchResult
from two_tower.retriever.service.backend import MOST_TOGETHER, Batches, Question

Ask = Callable[[Sequence[str]], list[SearchResult]]


class Asked:
    """Answers with the query itself, and remembers what it was asked together."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, queries: Sequence[str]) -> list[SearchResult]:
        self.batches.append(list(queries))
        if "down" in queries:
            raise EngineUnavailable("down")
        if "bad" in queries:
            raise QueryError("bad")
        return [SearchResult(query, [], {}) for query in queries]


@contextmanager
def busy() -> Iterator[Batches[str]]:
    """Batches over one thread, which is busy until the block ends."""
    with ThreadPoolExecutor(1) as pool:
        gate = threading.Event()
        pool.submit(gate.wait, 30)
        try:
            yield Batches(pool)
        finally:
            gate.set()


def question(query: str, ask: Ask, wishes: str = "k=10") -> Question[str]:
    return Question(query, wishes, ask, lambda result: f"answer to {result.query}")


def test_only_equal_wishes_are_answered_together_the_oldest_first() -> None:
    ask = Asked()
    with busy() as batches:
        answers = [
            batches.submit(question(query, ask, wishes))
            for query, wishes in [("a", "k=1"), ("b", "k=2"), ("c", "k=1"), ("d", "k=2")]
        ]
    assert [answer.result() for answer in answers] == [f"answer to {q}" for q in "abcd"]
    assert ask.batches == [["a", "c"], ["b", "d"]]


def test_a_batch_has_a_bound() -> None:
    ask = Asked()
    queries = [f"q{number}" for number in range(2 * MOST_TOGETHER + 1)]
    with busy() as batches:
        answers = [batches.submit(question(query, ask)) for query in queries]
    assert [answer.result() for answer in answers] == [f"answer to {q}" for q in queries]
    assert [len(batch) for batch in ask.batches] == [MOST_TOGETHER, MOST_TOGETHER, 1]


def test_what_gains_nothing_together_is_answered_in_turn() -> None:
    ask = Asked()
    with busy() as batches:
        answers = [
            batches.submit(replace(question(query, ask), most_together=1)) for query in "abc"
        ]
    assert [answer.result() for answer in answers] == [f"answer to {q}" for q in "abc"]
    assert ask.batches == [["a"], ["b"], ["c"]]


def test_a_bad_query_fails_alone() -> None:
    ask = Asked()
    with busy() as batches:
        good, bad, last = (batches.submit(question(q, ask)) for q in ("a", "bad", "b"))
    assert (good.result(), last.result()) == ("answer to a", "answer to b")
    with pytest.raises(QueryError):
        bad.result()


def test_an_engine_that_is_down_is_asked_once() -> None:
    ask = Asked()
    with busy() as batches:
        answers = [batches.submit(question(q, ask)) for q in ("a", "down", "b")]
    for answer in answers:
        with pytest.raises(EngineUnavailable):
            answer.result()
    assert ask.batches == [["a", "down", "b"]]


def test_what_was_given_up_is_not_asked() -> None:
    ask = Asked()
    with busy() as batches:
        first, second = (batches.submit(question(q, ask)) for q in "ab")
        assert first.cancel()
    assert second.result() == "answer to b"
    assert ask.batches == [["b"]]


def test_closing_cancels_what_waits() -> None:
    with busy() as batches:
        waiting = batches.submit(question("a", Asked()))
        batches.close()
    with pytest.raises(CancelledError):
        waiting.result()


def test_an_answer_that_cannot_be_shown_fails_alone() -> None:
    def show(result: SearchResult) -> str:
        if result.query == "b":
            raise ValueError("b")
        return result.query

    ask = Asked()
    with busy() as batches:
        answers = [batches.submit(Question(q, "", ask, show)) for q in "abc"]
    assert (answers[0].result(), answers[2].result()) == ("a", "c")
    with pytest.raises(ValueError, match="b"):
        answers[1].result()
    assert len(ask.batches) == 1
