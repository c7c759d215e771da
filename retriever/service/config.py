"""The configuration of the service."""

from dataclasses import field
from pathlib import Path

from pydantic import Field

from two_tower.models.config import configuration
from two_tower.retriever.search.settings import SearchSettings

KEY_VARIABLE, SHORTEST_KEY = "TWO_TOWER_SERVICE_KEY", 8

MOST_HITS = 100

MOST_CANDIDATES = 1000
"""Per leg, of what a request may ask for."""

MOST_BODY_BYTES = 64 * 1024

BACKLOG = 2048
"""Connections that the kernel keeps until they are accepted."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names of this machine for itself."""


@configuration()
class ServiceConfig:
    """Which collection to serve, and how.

    Attributes:
        name: alias or versioned name of the collection.
        bundle: folder that `models train` wrote; None where it is found by its fingerprint.
        url: Qdrant server, or None for the embedded engine.
        path: folder of the embedded engine, where `url` is not given.
        threads: batches of searches that run at the same time; they share one interpreter, so that
            more than two pay only where they wait for something else.
        waiting: searches that may wait for a thread; one more is answered 429.
        timeout_s: a search that takes longer is answered 504.
        key: what clients must send as `Authorization: Bearer <key>`; None lets everybody in.
        hosts: names that clients may ask for in the Host header; any where there is none.
        origins: web origins that may call the service from their own pages; none by default.
        examples: queries that the page offers before the first search.
        dashboard: address of Qdrant's dashboard as browsers reach it; by default that of `url`.
        settings: how to search where a request does not say.
        log: folder for searches and what is done with them; None keeps nothing.
        log_days: how many days of it are kept.
        against: another way to search: a settings file, a bundle or a collection.
        share: of the searches with the service's own settings that are interleaved with it.
    """

    name: str
    bundle: Path | None = None
    url: str | None = None
    path: Path | None = None
    threads: int = Field(default=2, gt=0)
    waiting: int = Field(default=32, ge=0)
    timeout_s: float = Field(default=10.0, gt=0)
    key: str | None = Field(default=None, repr=False)
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    dashboard: str | None = None
    settings: SearchSettings = field(default_factory=SearchSettings)
    log: Path | None = None
    log_days: int = Field(default=90, ge=1)
    against: str | None = None
    share: float = Field(default=0.5, gt=0, le=1)
