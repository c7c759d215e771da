"""What a sender does to its process, and undoes."""

import sys
import threading
from functools import partial

import pytest

from two_tower.ingest.loading.sending import FLUSH_EVERY, SWITCH_S, Sender
from two_tower.retriever.errors import EngineError


def test_threads_take_turns_more_often_while_something_is_sent() -> None:
    before = sys.getswitchinterval()
    seen = []
    with Sender() as sender:
        sender.put(lambda *, wait: seen.append(sys.getswitchinterval()), 1)
    assert seen == [pytest.approx(SWITCH_S)]
    assert sys.getswitchinterval() == before > SWITCH_S
    with pytest.raises(KeyboardInterrupt), Sender():
        raise KeyboardInterrupt
    assert sys.getswitchinterval() == before


def test_a_sender_beside_another_leaves_it_alone() -> None:
    before = sys.getswitchinterval()
    first, second = Sender(), Sender()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert sys.getswitchinterval() == before


def test_writes_to_the_embedded_engine_are_made_where_they_are_put_and_seldom_waited_for() -> None:
    before, waited = sys.getswitchinterval(), []

    def write(*, wait: bool) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert sys.getswitchinterval() == before
        waited.append(wait)

    with Sender(is_embedded=True) as sender:
        for _ in range(2 * FLUSH_EVERY + 1):
            sender.put(write, 3)
        assert waited == ([False] * (FLUSH_EVERY - 1) + [True]) * 2
    assert waited[2 * FLUSH_EVERY :] == [True]
    assert sender.sent == 3 * len(waited)


@pytest.mark.parametrize("is_embedded", [True, False])
def test_nothing_is_sent_after_a_failure(is_embedded: bool) -> None:
    sent = []

    def write(number: int, *, wait: bool) -> None:
        if number == 4:
            raise EngineError("the disk is full")
        sent.append(number)

    sender = Sender(is_embedded=is_embedded)

    def send() -> None:
        with sender:
            for number in range(100):
                sender.put(partial(write, number), 2)

    with pytest.raises(EngineError, match="full; 8 passages were written: run the same command"):
        send()
    assert sent == [0, 1, 2, 3]
