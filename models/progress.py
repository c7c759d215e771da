"""How far long work is: a bar on a terminal, elsewhere a line every half minute.

Every loop that may take seconds goes through `progress`. Lines are logged: a command prints them,
and a program that uses the library decides for itself.
"""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from two_tower.models.control_characters import visible

T = TypeVar("T")

LINE_EVERY_S = 30.0

TICK_S = 1.0

log = logging.getLogger(__name__)


class _Command:
    """What the loops of one command share: whether they are silent, when the next line is due."""

    is_quiet = False
    line_at = 0.0


def begin(*, is_quiet: bool = False) -> None:
    """Begin a command: the next line is due from now on, or never."""
    _Command.is_quiet = is_quiet
    _Command.line_at = time.monotonic() + LINE_EVERY_S


def is_quiet() -> bool:
    """Return whether the command that runs was told to be silent but for warnings and errors."""
    return _Command.is_quiet


def progress(items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` and show on stderr how many of them are done, how fast, and the time left.

    `total` says how many there are, where `len(items)` cannot.
    """
    if _Command.is_quiet:
        return iter(items)
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        from tqdm import tqdm

        is_short = total is not None and total < 1000  # tqdm would scale 8 to 8.00
        bar = tqdm(items, visible(label), total, leave=False, unit_scale=not is_short)
        return iter(bar)
    return _logged(items, label, total) if log.isEnabledFor(logging.INFO) else iter(items)


def _logged(items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
    begun_at = time.monotonic()
    for done, item in enumerate(items):
        if (now := time.monotonic()) >= _Command.line_at:
            _Command.line_at = now + LINE_EVERY_S
            log.info(line(label, done, total, elapsed_s=now - begun_at))
        yield item


@contextlib.contextmanager
def working(label: str) -> Iterator[None]:
    """Show on stderr that a step without parts runs, and for how long."""
    if _Command.is_quiet or not (sys.stderr.isatty() or log.isEnabledFor(logging.INFO)):
        yield
        return
    if sys.stderr.isatty():  # from here, for what follows may hold the interpreter's lock
        print(f"\r{visible(label)}", end="", file=sys.stderr, flush=True)
    is_done = threading.Event()
    thread = threading.Thread(target=_tick, args=(visible(label), is_done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()


def _tick(label: str, is_done: threading.Event) -> None:
    begun_at, shown = time.monotonic(), label
    while not is_done.wait(TICK_S):
        now = time.monotonic()
        if sys.stderr.isatty():
            shown = f"{label}: {duration(now - begun_at)}"
            print(f"\r{shown}", end="", file=sys.stderr, flush=True)
        elif now >= _Command.line_at:
            _Command.line_at = now + LINE_EVERY_S
            log.info("%s: %s", label, duration(now - begun_at))
    if sys.stderr.isatty():
        print(f"\r{' ' * len(shown)}\r", end="", file=sys.stderr, flush=True)


def line(label: str, done: int, total: int | None, *, elapsed_s: float) -> str:
    """Return what is done of how many, how many a second, and how long the rest takes."""
    rate = done / elapsed_s if elapsed_s > 0 else 0.0
    of = "" if total is None else f" of {total:,}"
    parts = [f"{label}: {done:,}{of}"]
    if rate:
        parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
    if rate and total is not None:
        parts.append(f"{duration(max(0, total - done) / rate)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Return a time in the two units that matter."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_rest = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_rest} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
