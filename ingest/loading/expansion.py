"""doc2query: generated queries that BM25 reads beside a passage's text, and nothing else does.

They decide the `bm25` vector of a point and, with it, its content hash. What is encoded, shown and
stored is the passage as it was. The collection's options say how many queries count, and how much.

Nogueira et al., "Document Expansion by Query Prediction", 2019, https://arxiv.org/abs/1904.08375.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from two_tower.ingest.loading.selection import CachedData
from two_tower.models.data import GENERATED, Dataset, Passage
from two_tower.models.errors import DataError
from two_tower.models.text.bm25 import Analyzer
from two_tower.retriever.collection.bm25_vectors import expanded_counts
from two_tower.retriever.collection.options import ExpansionOptions
from two_tower.retriever.errors import CollectionMismatch

HELD_OUT = "generated-dev"  # what it measures must not be in the index


class ExpandedData(CachedData):
    """DATA whose passages bring the queries that `ingest generate` kept for them."""

    def __init__(self, dataset: Dataset, generated: Dataset) -> None:
        """Read the queries; those of the held-out split are left out.

        Args:
            dataset: the passages.
            generated: what `ingest generate` made of them.

        Raises:
            DataError: `generated` has no generated query of a passage of DATA.
        """
        super().__init__(dataset)
        self._expansions = _expansions(generated)
        ids = {passage.passage_id for passage in super().passages()}
        if not ids & self._expansions.keys():
            raise DataError(
                f"{generated.path} has no generated query of a passage of {dataset.path}; make "
                f"some with: ingest generate {dataset.path} --out DATA2 --llm URL --model NAME"
            )
        source = generated.manifest["source"]
        about = {
            "content_hash": generated.content_hash,
            "model": source.get("model"),
            "prompt": source.get("prompt", {}).get("name"),
            "passages": len(ids & self._expansions.keys()),
        }
        self.manifest = {**dataset.manifest, "expansion": about}

    def passages(self) -> Iterator[Passage]:
        """Stream the passages in stored order, each with its queries."""
        for passage in super().passages():
            yield passage._replace(expansion=self._expansions.get(passage.passage_id, ()))


def _expansions(generated: Dataset) -> dict[str, tuple[str, ...]]:
    texts = {query.query_id: query.text for query in generated.queries()}
    queries: dict[str, list[str]] = defaultdict(list)
    for split in generated.splits:
        if split != HELD_OUT and generated.judge(split).startswith(GENERATED):
            for qrel in generated.qrels(split):
                queries[qrel.passage_id].append(texts[qrel.query_id])
    return {passage_id: tuple(texts) for passage_id, texts in queries.items()}


def average_expanded_length(
    passages: Iterable[Passage], analyzer: Analyzer, options: ExpansionOptions
) -> float:
    """Return the mean number of terms that BM25 reads of a passage (at least 1.0)."""
    lengths = [
        sum(
            expanded_counts(
                analyzer,
                passage.content,
                passage.expansion[: options.queries],
                weight=options.weight,
            ).values()
        )
        for passage in passages
    ]
    return max(1.0, sum(lengths) / len(lengths))


def require_expansion(collection: str, stored: Mapping[str, Any], dataset: Dataset) -> None:
    """Refuse DATA without the queries that a collection was loaded with, or with others than none.

    Args:
        collection: versioned name.
        stored: `data` of its metadata.
        dataset: what is to be loaded, or compared.

    Raises:
        CollectionMismatch: one has them, and the other has not.
    """
    if stored.get("expansion") and not dataset.manifest.get("expansion"):
        raise CollectionMismatch(
            f"collection {collection!r} was loaded with --expand, queries of "
            f"{stored['expansion'].get('model')}: give --expand again, or load into another name "
            "with --collection"
        )
    if dataset.manifest.get("expansion") and not stored.get("expansion"):
        raise CollectionMismatch(
            f"collection {collection!r} was loaded without --expand, and a load changes no BM25 "
            "vector of an unchanged passage; load into another name with --collection"
        )
