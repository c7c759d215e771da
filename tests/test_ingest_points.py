"""Passages to points, and points to requests that an engine takes."""

from itertools import pairwise

import pytest
from conftest import HashEncoder, make_passages, to_structs

from two_tower.ingest.loading.points import PointMaker, chunks
from two_tower.models.data import Passage
from two_tower.models.errors import DataError
from two_tower.retriever.collection.schema import CollectionMetadata
from two_tower.retriever.engine.wire import batches, most_bytes, to_json

PASSAGES = make_passages(300)


def maker_of(encoder: HashEncoder) -> PointMaker:
    metadata = CollectionMetadata(
        bundle_fingerprint=encoder.fingerprint,
        dim=encoder.dim,
        pca_dims=encoder.pca_dims,
        data={},
        bm25={"avg_len": 10.0},
        created_at="2026-11-29T00:00:00+00:00",
    )
    return PointMaker(encoder, metadata)


def test_batches_are_bounded_by_count_and_by_bytes(encoder: HashEncoder) -> None:
    maker = maker_of(encoder)
    points = [point for chunk in chunks(PASSAGES, 64) for point in maker.make(chunk)]
    by_count = list(batches(points, max_points=7))
    assert [len(batch) for batch in by_count] == [7] * 42 + [6]
    assert [p.id for batch in by_count for p in batch] == [point.id for point in points]
    sizes = {point.id: most_bytes(point) for point in points}
    limit = 3 * max(sizes.values())
    by_bytes = list(batches(points, max_bytes=limit))
    assert all(sum(sizes[p.id] for p in batch) <= limit for batch in by_bytes)
    assert all(
        sum(sizes[p.id] for p in batch) + sizes[following[0].id] > limit
        for batch, following in pairwise(by_bytes)
    )
    assert [len(b) for b in batches(points[:3], max_bytes=1)] == [1, 1, 1]
    assert list(batches(points[:0])) == []


def test_the_size_of_a_point_is_never_underrated(encoder: HashEncoder) -> None:
    maker = maker_of(encoder)
    odd = Passage("p", "\x01\x02 é 💡 " * 100, fields={"x": [1, 2, 3]})
    for point in maker.make([odd, *PASSAGES[:20]]):
        size = most_bytes(point)
        assert size >= len(to_json([point])) - len('{"points":[]}')
        (struct,) = to_structs([point])
        assert size >= len(struct.model_dump_json().encode())
        assert most_bytes(struct) == size


def test_a_passage_too_large_for_a_request_is_named(encoder: HashEncoder) -> None:
    maker = maker_of(encoder)
    with pytest.raises(DataError, match="'giant' takes 3"):
        list(batches(maker.make([Passage("giant", "x" * 31 * 2**20)])))


def test_a_field_with_a_reserved_name_is_refused(encoder: HashEncoder) -> None:
    maker = maker_of(encoder)
    with pytest.raises(DataError, match="field 'url'"):
        list(maker.make([Passage("p", "text", fields={"url": "x"})]))
