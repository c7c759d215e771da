"""Ours in both engines: collections that live as long as a comparison."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from conftest import running_server
from peers_corpus import Corpus, System
from qdrant_client import models as qm

from two_tower.ingest.loading import loader
from two_tower.ingest.loading.points import PassageEncoder
from two_tower.ingest.versions import versions as collections
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.search.retriever import Retriever
from two_tower.retriever.search.settings import SearchSettings


class Engines(NamedTuple):
    """The embedded engine, and a real server."""

    embedded: Engine
    server: Engine
    url: str

    @classmethod
    @contextmanager
    def running(cls, folder: Path) -> Iterator["Engines"]:
        """Run a server, and close both at the end."""
        with running_server(folder / "server") as server:
            engines = cls(connect(path=folder / "edge"), server.connect(), server.url)
            try:
                yield engines
            finally:
                engines.embedded.close()
                engines.server.close()

    def each(self) -> dict[str, Engine]:
        """Return them by name."""
        return {"embedded": self.embedded, "server": self.server}


class Loaded(NamedTuple):
    """A collection, and how long it took until it was there and until its indexes were built."""

    engine: Engine
    name: str
    collection: str
    load_s: float
    indexed_s: float

    def system(self, label: str, bundle: Any, settings: SearchSettings, *, k: int) -> System:
        """Return `Retriever.search` for the `k` best, with their texts."""
        retriever = Retriever(self.engine, self.name, bundle, settings=settings)
        return System(label, lambda text: [hit.passage_id for hit in retriever.search(text, k=k)])


@contextmanager
def loaded(engine: Engine, corpus: Corpus, encoder: PassageEncoder) -> Iterator[Loaded]:
    """Load a collection as `ingest load` does, wait for its indexes, and drop it at the end."""
    name = f"peers_{corpus.data.passage_count}"
    start = time.perf_counter()
    collection = loader.load(engine, corpus.data, encoder, name=name).collection
    load_s = time.perf_counter() - start
    while engine.get_collection(collection).status != qm.CollectionStatus.GREEN:
        time.sleep(0.2)
    indexed_s = time.perf_counter() - start
    collections.promote(engine, name, collection)
    try:
        yield Loaded(engine, name, collection, load_s, indexed_s)
    finally:
        collections.drop(engine, collection, yes=True)


def at_most(k: int, passages: Sequence[object]) -> int:
    """A small corpus has no 100 to give."""
    return min(k, len(passages))
