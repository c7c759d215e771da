"""Lexical legs: BM25 as sparse vectors for the engine, and exact in-memory baselines.

The analyzer is Qdrant's own (`qdrant_edge.Bm25`: lower case, stop words, Snowball stemming), used
for Edge and server alike. A document's weights saturate term frequency; the IDF is applied by the
engine (`Modifier.IDF`), so that score = sum over query terms of idf(t) * weight(t, d).
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import qdrant_edge
from qdrant_client import models as qm


@dataclass(frozen=True)
class Bm25Config:
    """BM25 parameters; a collection's metadata records the ones it was loaded with.

    k and b are the values tuned for short passages (Lin et al., Anserini: k1=0.9, b=0.4).
    """

    avg_len: float
    k: float = 0.9
    b: float = 0.4
    language: str = "english"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)


class Bm25Encoder:
    """Turns text into BM25 sparse vectors."""

    def __init__(self, config: Bm25Config) -> None:
        self.config = config
        self._model = qdrant_edge.Bm25(
            qdrant_edge.Bm25Config(
                k=config.k, b=config.b, avg_len=config.avg_len, language=config.language
            )
        )

    def encode_passages(self, texts: Sequence[str]) -> list[qm.SparseVector]:
        """Return one sparse vector of saturated term frequencies per text."""
        return [self._convert(self._model.embed_document(text)) for text in texts]

    def encode_query(self, text: str) -> qm.SparseVector:
        """Return the query's sparse vector: weight 1 for each of its terms."""
        return self._convert(self._model.embed_query(text))

    @staticmethod
    def _convert(vector: qdrant_edge.SparseVector) -> qm.SparseVector:
        return qm.SparseVector(indices=list(vector.indices), values=list(vector.values))


def average_length(texts: Iterable[str], *, language: str = "english") -> float:
    """Return the mean number of terms per text after analysis (at least 1.0).

    With b=0 and k=1 a term's weight is 2tf/(tf+1), which gives tf back exactly.
    """
    model = qdrant_edge.Bm25(qdrant_edge.Bm25Config(k=1.0, b=0.0, avg_len=1.0, language=language))
    terms = count = 0
    for text in texts:
        terms += sum(round(w / (2.0 - w)) for w in model.embed_document(text).values)
        count += 1
    return max(1.0, terms / count) if count else 1.0
