"""What a sender does to its process, and undoes."""

import sys

import pytest

from ingest.sending import SWITCH_S, Sender


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
