"""What a sender does to its process, and undoes."""

import sys

import pytest

from two_tower.ingest.loading.sending import SWITCH_S, Sender


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
