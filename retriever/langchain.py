"""LangChain's view of a `Retriever`; needs `pip install two-tower-search[langchain]`.

Example:
    from two_tower.retriever.langchain import TwoTowerRetriever

    search = TwoTowerRetriever(retriever=Retriever.open("msmarco"), k=5)
    documents = search.invoke("what is rba")
    notes = search.invoke("what is rba", k=2, filter={"kind": "note"})
"""

from typing import Any

try:
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
    from pydantic import ConfigDict
except ImportError as error:
    raise ImportError(
        "retriever.langchain needs LangChain; run: pip install 'two-tower-search[langchain]'"
    ) from error

from two_tower.retriever.records import Hit
from two_tower.retriever.search.retriever import Retriever


class TwoTowerRetriever(BaseRetriever):
    """A LangChain retriever over an open `Retriever`, which stays the caller's to close.

    Attributes:
        retriever: what searches.
        k: number of documents; 10, or all there are, if None.
        filter: as `Retriever.search` takes it.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    retriever: Retriever
    k: int | None = None
    filter: Any = None

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Any = None,
    ) -> list[Document]:
        """Search; `k` and `filter` of `invoke` come before those of the retriever."""
        hits = self.retriever.search(
            query,
            k=self.k if k is None else k,
            filter=self.filter if filter is None else filter,
        )
        return [_document(hit) for hit in hits]


def _document(hit: Hit) -> Document:
    """Return a hit; its score is `search_score`, and `score` where no field of the payload is."""
    metadata = {name: value for name, value in hit.payload.items() if name != "text"}
    scores = {"search_score": hit.score, "score": hit.score}
    return Document(id=hit.passage_id, page_content=hit.text, metadata=scores | metadata)
