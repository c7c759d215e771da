"""LangChain's view of a `Retriever`; needs `pip install two-tower-search[langchain]`.

Example:
    from two_tower.retriever.langchain import TwoTowerRetriever

    documents = TwoTowerRetriever(retriever=Retriever.open("msmarco"), k=5).invoke("what is rba")
"""

from typing import Any

try:
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
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

    retriever: Retriever
    k: int | None = None
    filter: Any = None

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        hits = self.retriever.search(query, k=self.k, filter=self.filter)
        return [_document(hit) for hit in hits]


def _document(hit: Hit) -> Document:
    metadata = {name: value for name, value in hit.payload.items() if name != "text"}
    return Document(
        id=hit.passage_id, page_content=hit.text, metadata={**metadata, "score": hit.score}
    )
