"""Haystack's view of a `Retriever`; needs `pip install two-tower-search[haystack]`.

Example:
    from two_tower.retriever.haystack import TwoTowerRetriever

    documents = TwoTowerRetriever("msmarco", bundle="BUNDLE").run("what is rba")["documents"]

Haystack reads a pipeline back only from modules that it is told to trust:
`Pipeline.loads(text, allowed_modules=["two_tower.retriever.haystack"])`.

Imported before `haystack`, this turns Haystack's telemetry off, unless
HAYSTACK_TELEMETRY_ENABLED is set.
"""

import os
from typing import Any

# Haystack tells its makers of every pipeline unless this says no; whoever wants that sets it.
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")

try:
    from haystack import Document, component
except ImportError as error:
    raise ImportError(
        "retriever.haystack needs Haystack; run: pip install 'two-tower-search[haystack]'"
    ) from error

from two_tower.retriever.records import Hit
from two_tower.retriever.search.retriever import Retriever


@component
class TwoTowerRetriever:
    """A Haystack component: `query` in, `documents` out.

    It opens the collection when it first runs, so that a pipeline can be written to YAML and read
    back; an API key comes from QDRANT_API_KEY and is never written.
    """

    def __init__(
        self,
        collection: str,
        *,
        bundle: str | None = None,
        url: str | None = None,
        path: str | None = None,
        top_k: int | None = None,
    ) -> None:
        """Say where to search; the arguments are those of `Retriever.open`.

        Args:
            collection: alias or versioned name.
            bundle: folder that `models train` wrote; found by its fingerprint otherwise.
            url: a Qdrant server.
            path: folder of the embedded engine.
            top_k: number of documents where a run does not say; 10, or all there are, if None.
        """
        self.collection = collection
        self.bundle = bundle
        self.url = url
        self.path = path
        self.top_k = top_k
        self._retriever: Retriever | None = None

    def warm_up(self) -> None:
        """Open the collection."""
        if self._retriever is None:
            self._retriever = Retriever.open(
                self.collection, bundle=self.bundle, url=self.url, path=self.path
            )

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, top_k: int | None = None, filters: dict[str, Any] | None = None
    ) -> dict[str, list[Document]]:
        """Search.

        Args:
            query: what to look for.
            top_k: number of documents.
            filters: as `Retriever.search` takes it, not in Haystack's own filter language.
        """
        self.warm_up()
        assert self._retriever is not None
        k = self.top_k if top_k is None else top_k
        hits = self._retriever.search(query, k=k, filter=filters)
        return {"documents": [_document(hit) for hit in hits]}

    def close(self) -> None:
        """Release the engine; the next run opens it again."""
        if self._retriever is not None:
            self._retriever.close()
            self._retriever = None


def _document(hit: Hit) -> Document:
    meta = {name: value for name, value in hit.payload.items() if name != "text"}
    return Document(id=hit.passage_id, content=hit.text, meta=meta, score=hit.score)
