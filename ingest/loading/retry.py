"""Go on when a server comes back: calls that are made again while it is away."""

import random
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import typer

from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.errors import CertificateRefused, EngineBusy, EngineUnavailable, KeyRefused

RETRY_FOR_S = 120.0

LONGEST_PAUSE_S = 5.0

AGAIN = "run the same command again"

T = TypeVar("T")


def patient(engine: Engine, *, retry_for_s: float = RETRY_FOR_S) -> Engine:
    """Return the engine with calls that outlive a restart of the server.

    All that a load asks for can be asked for twice, so a call whose answer was lost is made again.

    Args:
        engine: where.
        retry_for_s: how long one call waits in all before its failure is final.
    """
    return cast(Engine, _Patient(engine, retry_for_s))


class _Patient:
    def __init__(self, engine: Engine, retry_for_s: float) -> None:
        self._engine = engine
        self._retry_for_s = retry_for_s

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._engine, name)

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            return _insist(lambda: method(*args, **kwargs), self._retry_for_s)

        self.__dict__[name] = call
        return call


def _insist(call: Callable[[], T], retry_for_s: float) -> T:
    start = time.monotonic()
    attempt = 0
    while True:
        try:
            answer = call()
        except (KeyRefused, CertificateRefused):
            raise
        except (EngineUnavailable, EngineBusy) as error:
            waited_s = time.monotonic() - start
            if waited_s >= retry_for_s:
                gave_up = f"{error}; gave up after {waited_s:.0f} s: {AGAIN}"
                raise type(error)(gave_up) from None
            if not attempt:
                typer.echo(f"{error}; trying again for {retry_for_s:.0f} s", err=True)
            time.sleep(min(_pause_s(attempt), retry_for_s - waited_s))
            attempt += 1
        else:
            if attempt:
                typer.echo(f"Going on after {time.monotonic() - start:.1f} s", err=True)
            return answer


def _pause_s(attempt: int) -> float:
    """Twice as long each time; never quite the same for two loaders of one server."""
    return min(LONGEST_PAUSE_S, 0.1 * 2.0**attempt) * random.uniform(0.75, 1.25)
