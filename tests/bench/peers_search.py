"""Search: ours in both engines beside raw qdrant-client, its local mode, and txtai.

All go from a query's text to the ten best passages with their texts, by the same tower: ours fuse
with the learnt weights and rerank, qdrant-client fuses by reciprocal ranks in the same request,
txtai adds up its own BM25 and its faiss index as it does by default.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any, NamedTuple

from peers_corpus import Corpus, Row, System, compare
from peers_engines import Engines, Loaded, loaded
from qdrant_client import QdrantClient
from qdrant_client import models as qm
from txtai import Embeddings

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.data import Passage
from two_tower.models.text.bm25 import Bm25Config, average_length
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder, EngineAnalyzer
from two_tower.retriever.search.settings import SearchSettings

K = 10
LEG = 100
MEASURES = ("recall@10", "mrr@10")
LOCAL = "qdrant-client, local mode"
LARGEST_LOCAL = 20_000  # beyond which it warns against itself
UPLOAD = 256


class RawHybrid:
    """The hybrid request as one writes it with qdrant-client alone."""

    def __init__(self, client: QdrantClient, collection: str, encoders: "Encoders") -> None:
        self._client, self._collection, self._encoders = client, collection, encoders

    def ask(self, text: str) -> list[str]:
        """Return the ids of the best passages."""
        legs = [
            qm.Prefetch(query=vector, using=name, limit=LEG)
            for name, vector in self._encoders.of_query(text).items()
        ]
        found = self._client.query_points(
            self._collection,
            query=qm.FusionQuery(fusion=qm.Fusion.RRF),
            prefetch=legs,
            limit=K,
            with_payload=True,
        )
        return [str((point.payload or {})["passage_id"]) for point in found.points]


class Encoders:
    """What makes a query's vectors, outside of a `Retriever`."""

    def __init__(self, bundle: ModelBundle, corpus: Corpus) -> None:
        self._bundle = bundle
        self._bm25 = Bm25Encoder(
            Bm25Config(avg_len=average_length(corpus.contents, EngineAnalyzer()))
        )

    def of_query(self, text: str) -> dict[str, Any]:
        """Return vector name -> vector."""
        dense = self._bundle.encode_queries([text])[0].tolist()
        return {"dense": dense, "bm25": self._bm25.encode_query(text).to_client()}


class Txtai:
    """txtai's embeddings database with its hybrid switched on, over our tower's vectors."""

    def __init__(self, passages: Sequence[Passage], bundle: ModelBundle) -> None:
        def transform(texts: Sequence[str]) -> Any:
            return bundle.encode_passages(list(texts))

        self._texts = {passage.passage_id: passage.content for passage in passages}
        self._index = Embeddings(method="external", transform=transform, hybrid=True)
        self._index.index(self._texts.items())

    def ask(self, text: str) -> list[str]:
        """Return the ids of the best passages."""
        found = self._index.search(text, K)
        return [passage_id for passage_id, _ in found if self._texts[passage_id]]

    def close(self) -> None:
        """Give its memory back."""
        self._index.close()


class Ready(NamedTuple):
    """A system, and how long its passages took to get in; None where they were another's.

    Attributes:
        system: what to ask.
        load_s: until all passages were in.
        indexed_s: until nothing was built any more.
    """

    system: System
    load_s: float | None = None
    indexed_s: float | None = None


def search_rows(engines: Engines, corpus: Corpus, bundle: ModelBundle) -> list[Row]:
    """Load all and ask them in turns; return a row for each system, of search and of ingest."""
    with search_systems(engines, corpus, bundle) as ready:
        rows = compare("search", corpus, [each.system for each in ready], MEASURES)
    return [*rows, *(ingest_row(corpus, each) for each in ready if each.load_s is not None)]


@contextmanager
def search_systems(engines: Engines, corpus: Corpus, bundle: ModelBundle) -> Iterator[list[Ready]]:
    """Load every system; ours are dropped at the end."""
    uncrossed, encoders, ready = SearchSettings(cross=False), Encoders(bundle, corpus), []
    with ExitStack() as stack:
        for name, engine in engines.each().items():
            found = stack.enter_context(loaded(engine, corpus, bundle))
            system = found.system(f"ours, {name}", bundle, uncrossed, k=K)
            ready.append(Ready(system, found.load_s, found.indexed_s))
        client = QdrantClient(url=engines.url, check_compatibility=False)
        stack.enter_context(closing(client))
        raw = RawHybrid(client, found.collection, encoders)
        ready.append(Ready(System("qdrant-client, server", raw.ask)))
        if len(corpus.passages) <= LARGEST_LOCAL:
            local = stack.enter_context(closing(QdrantClient(":memory:")))
            finished = list(stored_points(client, found.collection))
            start = time.perf_counter()
            copy_points(client, local, found, finished)
            seconds = time.perf_counter() - start
            ask = RawHybrid(local, found.collection, encoders).ask
            ready.append(Ready(System(LOCAL, ask), seconds, seconds))
        start = time.perf_counter()
        peer = stack.enter_context(closing(Txtai(corpus.passages, bundle)))
        seconds = time.perf_counter() - start
        ready.append(Ready(System("txtai", peer.ask), seconds, seconds))
        yield ready


def ingest_row(corpus: Corpus, ready: Ready) -> Row:
    """Return what getting the passages in took."""
    assert ready.load_s is not None
    assert ready.indexed_s is not None
    count = len(corpus.passages)
    return {
        **{"section": "ingest", "system": ready.system.name, "passages": count},
        "seconds": round(ready.load_s, 2),
        "indexed_s": round(ready.indexed_s, 2),
        "per_second": round(count / ready.load_s),
    }


def copy_points(
    client: QdrantClient,
    local: QdrantClient,
    found: Loaded,
    batches: Iterable[list[qm.PointStruct]],
) -> None:
    """Put the server's very points into a collection of local mode like the server's."""
    params = client.get_collection(found.collection).config.params
    local.create_collection(
        found.collection,
        vectors_config=params.vectors,
        sparse_vectors_config=params.sparse_vectors,
    )
    for batch in batches:
        local.upsert(found.collection, batch)


def stored_points(client: QdrantClient, collection: str) -> Iterator[list[qm.PointStruct]]:
    """Yield all points of a collection with their vectors."""
    offset: Any = None
    while True:
        records, offset = client.scroll(
            collection, limit=UPLOAD, offset=offset, with_payload=True, with_vectors=True
        )
        yield [qm.PointStruct(id=r.id, vector=r.vector or {}, payload=r.payload) for r in records]
        if offset is None:
            return
