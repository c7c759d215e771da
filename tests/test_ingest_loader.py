"""Loading: what ends in the collection, idempotence, updates, resuming, refusals."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import HashEncoder, make_passages
from qdrant_client import models as qm
from threadpoolctl import threadpool_info, threadpool_limits

from two_tower.ingest.loading import loader, selection
from two_tower.ingest.loading import setup as opening
from two_tower.ingest.loading.loader import LoadSettings
from two_tower.ingest.loading.verify import verify, verify_counts
from two_tower.ingest.versions.versions import drop, promote, versions
from two_tower.models.data import Dataset, Passage
from two_tower.models.errors import BundleError, ConfigError, DataError
from two_tower.models.text.bm25 import Bm25Config, average_length
from two_tower.models.threads import one_blas_thread
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder, EngineAnalyzer
from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.collection.schema import collection_name, point_id, read_metadata
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.engine.wire import Record, SparseVector
from two_tower.retriever.errors import CollectionMismatch, EngineError, VerificationFailed

MakeData = Callable[..., Dataset]
PASSAGES = make_passages(300)


def everything(engine: Engine, collection: str) -> dict[str, Record]:
    records, offset = engine.scroll(collection, limit=10_000, with_payload=True, with_vectors=True)
    assert offset is None
    return {str(record.id): record for record in records}


def test_every_passage_becomes_the_right_point(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    report = loader.load(engine, make_data(PASSAGES), encoder, name=name)

    assert report.collection == collection_name(name, encoder.fingerprint)
    assert (report.sent, report.unchanged, report.pruned, report.kept) == (300, 0, 0, 0)
    found = everything(engine, report.collection)
    assert found.keys() == {point_id(passage.passage_id) for passage in PASSAGES}
    texts = [f"{passage.title}\n{passage.text}" for passage in PASSAGES]
    bm25 = Bm25Encoder(Bm25Config(avg_len=average_length(texts, EngineAnalyzer())))
    dense = encoder.encode_passages(texts)
    for row, passage in enumerate(PASSAGES):
        record = found[point_id(passage.passage_id)]
        payload = dict(record.payload or {})
        assert len(payload.pop("content_hash")) == 32
        assert payload == {
            "title": passage.title,
            "text": passage.text,
            "url": passage.url,
            "passage_id": passage.passage_id,
            **passage.fields,
        }
        assert isinstance(record.vector, dict)
        assert record.vector.keys() == {"dense", "pca_8", "pca_4", "bm25"}
        np.testing.assert_allclose(record.vector["dense"], dense[row], atol=1e-6)
        half = dense[row][:8] / np.linalg.norm(dense[row][:8])
        np.testing.assert_allclose(record.vector["pca_8"], half, atol=1e-6)
        expected = bm25.encode_passages([passage])[0]
        stored = record.vector["bm25"]
        assert isinstance(stored, SparseVector)
        weights = dict(zip(stored.indices, stored.values, strict=True))
        assert weights == pytest.approx(dict(zip(expected.indices, expected.values, strict=True)))


def test_metadata_says_what_is_in_it(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES)
    collection = loader.load(engine, data, encoder, name=name).collection
    metadata = read_metadata(engine, collection)
    assert metadata.bundle_fingerprint == encoder.fingerprint
    assert (metadata.dim, metadata.pca_dims) == (16, (8, 4))
    assert metadata.data["content_hash"] == data.content_hash
    assert metadata.data["counts"]["passages"] == metadata.expected_points == 300
    assert metadata.bm25["avg_len"] == pytest.approx(
        average_length((p.content for p in PASSAGES), EngineAnalyzer())
    )


def test_the_mean_length_of_many_passages_is_that_of_evenly_spaced_ones(
    edge_engine: Engine, encoder: HashEncoder, make_data: MakeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "LENGTHS", 100)
    collection = loader.load(edge_engine, make_data(PASSAGES), encoder, name="c").collection
    spaced = average_length((p.content for p in PASSAGES[::3]), EngineAnalyzer())
    assert read_metadata(edge_engine, collection).bm25["avg_len"] == pytest.approx(spaced)


def test_payload_indexes_cover_what_users_filter_by(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    collection = loader.load(engine, make_data(PASSAGES), encoder, name=name).collection
    indexes = engine.get_collection(collection).payload_schema
    assert {field: index.data_type.value for field, index in indexes.items()} == {
        "title": "text",
        "passage_id": "keyword",
        "kind": "keyword",
        "year": "integer",
        "rank": "float",
    }
    assert indexes["kind"].points == 300


def test_second_load_sends_nothing(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES)
    collection = loader.load(engine, data, encoder, name=name).collection
    before = everything(engine, collection)
    again = loader.load(engine, data, encoder, name=name)
    assert (again.sent, again.unchanged, again.kept) == (0, 300, 0)
    assert everything(engine, collection) == before


def test_only_what_changed_is_sent_and_the_rest_is_kept_or_pruned(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    collection = loader.load(engine, make_data(PASSAGES), encoder, name=name).collection
    bm25 = read_metadata(engine, collection).bm25
    changed = PASSAGES[0]._replace(text="quite another text")
    added = Passage("new", "a passage that was not there")
    newer = make_data([changed, *PASSAGES[1:290], added], name="NEWER")

    report = loader.load(engine, newer, encoder, name=name)
    assert (report.sent, report.unchanged, report.kept) == (2, 289, 10)
    assert read_metadata(engine, collection).bm25 == bm25
    assert verify(engine, collection, newer, encoder).kept == 10
    assert verify_counts(engine, collection).points == 301

    report = loader.load(engine, newer, encoder, name=name, settings=LoadSettings(prune=True))
    assert (report.sent, report.unchanged, report.pruned, report.kept) == (0, 291, 10, 0)
    assert everything(engine, collection).keys() == {
        point_id(p.passage_id) for p in newer.passages()
    }
    assert verify(engine, collection, newer, encoder).points == 291


def test_a_load_that_stops_anywhere_goes_on(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES)
    collection = loader.load(engine, data, encoder, name=name).collection
    whole = everything(engine, collection)
    lost = [point_id(passage.passage_id) for passage in PASSAGES[100:250]]
    engine.delete(collection, [*lost])
    with pytest.raises(VerificationFailed, match="150 points, expected 300"):
        verify_counts(engine, collection)
    assert loader.load(engine, data, encoder, name=name).sent == 150
    assert everything(engine, collection) == whole


def test_indexes_missing_after_a_stop_are_made_good(
    edge_engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES)
    metadata = opening._new_metadata(data, encoder, CollectionOptions())
    edge_engine.create_collection(
        collection_name(name, encoder.fingerprint),
        **metadata.schema.creation,
        metadata=metadata.to_dict(),
    )
    collection = loader.load(edge_engine, data, encoder, name=name).collection
    assert set(edge_engine.get_collection(collection).payload_schema) >= {"title", "kind"}


def test_another_bundle_makes_another_collection(
    engine: Engine, name: str, make_data: MakeData
) -> None:
    data = make_data(PASSAGES)
    old, new = HashEncoder(seed=1), HashEncoder(seed=2)
    first = loader.load(engine, data, old, name=name).collection
    promote(engine, name, first)
    second = loader.load(engine, data, new, name=name).collection
    assert engine.resolve(name) == first
    promote(engine, name, second)
    assert engine.resolve(name) == second
    assert {version.collection for version in versions(engine, name)} == {first, second}
    assert [v.aliases for v in versions(engine, name) if v.collection == first] == [()]
    with pytest.raises(CollectionMismatch, match=old.fingerprint) as failure:
        verify(engine, first, data, new)
    assert new.fingerprint in str(failure.value)


def test_collections_of_others_are_left_alone(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES[:5])
    foreign = collection_name(name, encoder.fingerprint)
    vectors = {"dense": qm.VectorParams(size=16, distance=qm.Distance.COSINE)}
    engine.create_collection(foreign, vectors_config=vectors)
    with pytest.raises(CollectionMismatch, match="was not made by ingest load"):
        loader.load(engine, data, encoder, name=name)
    assert not versions(engine, name)
    with pytest.raises(EngineError, match="--yes"):
        drop(engine, foreign)
    engine.create_collection(name, vectors_config=vectors)
    with pytest.raises(CollectionMismatch, match="is a collection itself") as caught:
        loader.load(engine, data, encoder, name=name)
    assert "drop" not in str(caught.value)


def test_an_alias_of_others_is_refused_before_anything_is_loaded(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    vectors = {"dense": qm.VectorParams(size=16, distance=qm.Distance.COSINE)}
    engine.create_collection(f"{name}-theirs", vectors_config=vectors)
    create = qm.CreateAlias(collection_name=f"{name}-theirs", alias_name=name)
    engine.update_collection_aliases([qm.CreateAliasOperation(create_alias=create)])
    with pytest.raises(CollectionMismatch, match="something else made") as caught:
        loader.load(engine, make_data(PASSAGES[:5]), encoder, name=name)
    assert "drop" not in str(caught.value)
    assert not versions(engine, name)


def test_a_collection_of_other_widths_is_refused(
    engine: Engine, name: str, make_data: MakeData
) -> None:
    data = make_data(PASSAGES[:5])
    loader.load(engine, data, HashEncoder(dim=16), name=name)
    liar = HashEncoder(dim=12)
    liar.fingerprint = HashEncoder(dim=16).fingerprint
    with pytest.raises(CollectionMismatch, match=r"'dense': 16.*expected.*'dense': 12"):
        loader.load(engine, data, liar, name=name)


def test_two_bundles_with_the_same_short_fingerprint_are_told_apart(
    edge_engine: Engine, name: str, make_data: MakeData
) -> None:
    data = make_data(PASSAGES[:5])
    first, second = HashEncoder(seed=1), HashEncoder(seed=2)
    second.fingerprint = first.fingerprint[:8] + second.fingerprint[8:]
    loader.load(edge_engine, data, first, name=name)
    with pytest.raises(CollectionMismatch, match=second.fingerprint):
        loader.load(edge_engine, data, second, name=name)


def test_vectors_of_the_wrong_width_are_refused(
    edge_engine: Engine, name: str, make_data: MakeData
) -> None:
    encoder = HashEncoder(dim=16)
    encoder.dim = 20
    with pytest.raises(BundleError, match=r"\(5, 16\).*'dense': 20"):
        loader.load(edge_engine, make_data(PASSAGES[:5]), encoder, name=name)


def test_names_that_no_engine_takes_are_refused(
    edge_engine: Engine, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES[:5])
    for bad in ("", "a/b", "../up", "a b", "x" * 101, "-x", "a--b", "né"):
        with pytest.raises(ConfigError, match="cannot name a collection"):
            loader.load(edge_engine, data, encoder, name=bad)
    assert not edge_engine.get_collections().collections


def test_data_without_passages_is_refused(
    edge_engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES[:1])
    data.manifest["counts"]["passages"] = 0
    with pytest.raises(DataError, match="no passages"):
        loader.load(edge_engine, data, encoder, name=name)


def test_odd_text_survives(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    odd = [
        Passage("nul\u2028id", 'tab\tline\nquote" back\\slash \u200b zero width', "ünicode 💡"),
        Passage("..", "only stop words: the of and", ""),
        Passage("long", "word " * 200_000, "a megabyte"),
        Passage("punctuation", "?!...", fields={"a.b": 1, "list": ["x", "y"], "nested": {"c": 1}}),
        Passage("floats", "whose last bit is lost", fields={"x": [682 / 7], "y": 1e300, "z": 2.0}),
    ]
    data = make_data(odd)
    collection = loader.load(engine, data, encoder, name=name).collection
    assert verify(engine, collection, data, encoder).compared == 5
    texts = {
        (r.payload or {})["passage_id"]: (r.payload or {})["text"]
        for r in everything(engine, collection).values()
    }
    assert texts == {passage.passage_id: passage.text for passage in data.passages()}


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Each time that passages are read from disk."""
    seen: list[Path] = []
    read = Dataset.passages

    def counted(data: Dataset) -> Iterator[Passage]:
        seen.append(data.path)
        return read(data)

    monkeypatch.setattr(Dataset, "passages", counted)
    return seen


def test_small_data_is_read_from_disk_once(
    edge_engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData, readings: list[Path]
) -> None:
    data = selection.cache(make_data(PASSAGES))
    options = CollectionOptions(clusters=4)
    loaded = loader.load(edge_engine, data, encoder, name=name, options=options).collection
    assert verify(edge_engine, loaded, data, encoder).points == 300
    assert len(readings) == 1
    some = selection.select(data, selection.Selection(where=("kind=note",)))
    assert loader.load(edge_engine, some, encoder, name=name).unchanged == 100
    assert len(readings) == 1


def test_large_data_is_read_as_often_as_it_must(
    edge_engine: Engine,
    encoder: HashEncoder,
    make_data: MakeData,
    readings: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(selection, "MOST_CACHED_BYTES", 299 * selection.PASSAGE_BYTES)
    data = make_data(PASSAGES)
    for name, clusters, times in (("plain", 0, 2), ("clustered", 4, 3)):
        readings.clear()
        options = CollectionOptions(clusters=clusters)
        loader.load(edge_engine, data, encoder, name=name, options=options)
        assert len(readings) == times
        readings.clear()
        assert loader.load(edge_engine, data, encoder, name=name).unchanged == 300
        assert len(readings) == 1


class WatchingEncoder(HashEncoder):
    """Notes how many threads BLAS may use while it encodes."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()

    def encode_passages(self, texts: Sequence[str]) -> np.ndarray:
        self.threads |= set(blas_threads())
        return super().encode_passages(texts)


def blas_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_blas_has_one_thread_for_as_long_as_a_load_takes(
    edge_engine: Engine, name: str, make_data: MakeData
) -> None:
    encoder = WatchingEncoder()
    with threadpool_limits(2, user_api="blas"):
        loader.load(edge_engine, make_data(PASSAGES[:10]), encoder, name=name)
        assert encoder.threads == {1}
        assert set(blas_threads()) == {2}


LATER = """
import numpy
from threadpoolctl import threadpool_info, threadpool_limits
from two_tower.models.threads import one_blas_thread

def threads():
    return [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]

with one_blas_thread():
    before = threads()
import scipy.linalg
with threadpool_limits(2, user_api="blas"), one_blas_thread():
    assert len(threads()) > len(before), threads()
    assert set(threads()) == {1}, threads()
"""


def test_a_library_that_is_loaded_later_has_one_thread_too() -> None:
    """numpy and scipy each bring a BLAS of their own."""
    done = subprocess.run([sys.executable, "-c", LATER], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_loads_that_overlap_leave_blas_as_it_was() -> None:
    inside = threading.Barrier(3)

    def hold(leave: threading.Event) -> None:
        with one_blas_thread():
            inside.wait(timeout=10)
            assert leave.wait(timeout=10)

    before = blas_threads()
    leaves = [threading.Event(), threading.Event()]
    threads = [threading.Thread(target=hold, args=(leave,)) for leave in leaves]
    for thread in threads:
        thread.start()
    inside.wait(timeout=10)
    for thread, leave in zip(threads, leaves, strict=True):
        leave.set()
        thread.join()
    assert blas_threads() == before
