"""BM25 as sparse vectors: term weights here, inverse document frequency in the engine."""

from collections.abc import Sequence

import qdrant_edge
from qdrant_client import models as qm

from two_tower.models.text.bm25 import Bm25Config


class Bm25Encoder:
    """Turns text into BM25 sparse vectors."""

    def __init__(self, config: Bm25Config) -> None:
        self.config = config
        self._model = config.model()

    def encode_passages(self, texts: Sequence[str]) -> list[qm.SparseVector]:
        """Return one sparse vector of saturated term frequencies per text."""
        return [self._convert(vector) for vector in self.weigh_passages(texts)]

    def weigh_passages(self, texts: Sequence[str]) -> list[qdrant_edge.SparseVector]:
        """Return what `encode_passages` does, as the engine makes it: for many in little time."""
        return [self._model.embed_document(text) for text in texts]

    def encode_query(self, text: str) -> qm.SparseVector:
        """Return the query's sparse vector: weight 1 for each of its terms."""
        return self._convert(self._model.embed_query(text))

    @staticmethod
    def _convert(vector: qdrant_edge.SparseVector) -> qm.SparseVector:
        # Valid as it comes from the engine; checking it again would double the time.
        return qm.SparseVector.model_construct(
            indices=list(vector.indices), values=list(vector.values)
        )
