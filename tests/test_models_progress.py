import logging
import re
import subprocess
import sys

import pytest
from terminals import run_in_terminal

from two_tower.models import progress as module
from two_tower.models.progress import duration, line, progress, working

LOOP = """
import logging, sys, time
from two_tower.models import progress
logging.basicConfig(format="%(message)s", level=logging.INFO)
progress.LINE_EVERY_S = .2
progress.TICK_S = .05
progress.begin(is_quiet="quiet" in sys.argv)
for _ in progress.progress(range(3), label="outer"):
    for _ in progress.progress(range(10), label="inner"):
        time.sleep(.02)
with progress.working("a step"):
    time.sleep(.5)
"""


@pytest.mark.parametrize(
    ("done", "total", "elapsed_s", "shown"),
    [
        (50, 200, 10.0, "x: 50 of 200, 5/s, 30 s left"),
        (12_345, 94_590, 10.0, "x: 12,345 of 94,590, 1,234/s, 1 min 7 s left"),
        (1, 100, 60.0, "x: 1 of 100, 0.017/s, 1 h 39 min left"),
        (7, None, 2.0, "x: 7, 3.5/s"),
        (0, 5, 40.0, "x: 0 of 5"),
        (9, 5, 1.0, "x: 9 of 5, 9/s, 0 s left"),
    ],
)
def test_a_line(done: int, total: int | None, elapsed_s: float, shown: str) -> None:
    assert line("x", done, total, elapsed_s=elapsed_s) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (61, "1 min 1 s"), (7200, "2 h 0 min")],
)
def test_a_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_where_nobody_looks_the_loop_is_that_of_the_items(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "two_tower")
    assert type(progress([1, 2], label="x")) is type(iter([1, 2]))


def test_lines_are_as_far_apart_as_they_should_be(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    caplog.set_level(logging.INFO, "two_tower")
    module.begin()
    for _ in progress(range(4), label="outer"):
        for _ in progress(range(10), label="inner"):
            now[0] += 2.0
    assert [record.getMessage() for record in caplog.records] == [
        "inner: 5 of 10, 0.5/s, 10 s left",  # after 30 s
        "outer: 3 of 4, 0.05/s, 20 s left",  # after 60 s
    ]


def test_a_pipe_gets_lines() -> None:
    done = subprocess.run([sys.executable, "-c", LOOP], capture_output=True, text=True, check=True)
    shown = done.stderr.splitlines()
    assert 3 <= len(shown) <= 8, shown  # of .2 s each, in 1.1 s
    assert re.fullmatch(r"(inner|outer): \d+ of \d+, .+ left", shown[0])
    assert re.fullmatch(r"a step: \d s", shown[-1])


def test_quiet_gets_nothing() -> None:
    command = [sys.executable, "-c", LOOP, "quiet"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == ""


def test_a_terminal_gets_bars_that_go() -> None:
    shown = run_in_terminal(LOOP)
    assert re.search(r"inner: +\d+%\|.+\| \d+/10 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+it/s\]", shown)
    assert "\ra step: 0 s" in shown
    assert shown.endswith("\r           \r")


def test_a_step_that_fails_is_over() -> None:
    with pytest.raises(KeyError), working("a step"):
        raise KeyError
