"""What an operator decides about the service."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from two_tower.models.errors import ConfigError
from two_tower.retriever.engine import address
from two_tower.retriever.search.settings import SearchSettings

KEY_VARIABLE = "TWO_TOWER_SERVICE_KEY"

SHORTEST_KEY = 8


@dataclass(frozen=True)
class Limits:
    """What keeps the service standing under load and under bad requests.

    Attributes:
        threads: batches of searches that run at the same time; more than cores make it slower.
        waiting: searches that may wait for a thread; one more is answered 429.
        timeout_s: a search that takes longer is answered 504.
        body_bytes: a longer request body is answered 413.
        k: most hits per request.
        candidates: most candidates per leg that a request may ask for.
    """

    threads: int = min(4, os.cpu_count() or 1)
    waiting: int = 32
    timeout_s: float = 10.0
    body_bytes: int = 64 * 1024
    k: int = 100
    candidates: int = 1000

    def __post_init__(self) -> None:
        for name in ("threads", "timeout_s", "body_bytes", "k", "candidates"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected more than 0")
        if self.waiting < 0:
            raise ConfigError(f"waiting is {self.waiting}; expected 0 or more")


@dataclass(frozen=True)
class ServiceConfig:
    """Which collection to serve, and how.

    Attributes:
        name: alias or versioned name of the collection.
        bundle: folder that `models train` wrote.
        url: Qdrant server, or None for the embedded engine.
        path: folder of the embedded engine, where `url` is not given.
        limits: see `Limits`.
        key: what clients must send as `Authorization: Bearer <key>`; None lets everybody in.
        origins: web origins that may call the service from their own pages; none by default.
        examples: queries that the page offers before the first search.
        dashboard: address of Qdrant's dashboard as browsers reach it; by default that of `url`.
        settings: how to search where a request does not say.
    """

    name: str
    bundle: Path
    url: str | None = None
    path: Path | None = None
    limits: Limits = field(default_factory=Limits)
    key: str | None = field(default=None, repr=False)
    origins: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    dashboard: str | None = None
    settings: SearchSettings = field(default_factory=SearchSettings)


def read_key(file: Path | None) -> str | None:
    """Return the key of the service: from `file`, else from `TWO_TOWER_SERVICE_KEY`, else None.

    Raises:
        ConfigError: the file cannot be read, or the key is too short to be one.
    """
    return address.read_key(KEY_VARIABLE, file=file, shortest=SHORTEST_KEY)
