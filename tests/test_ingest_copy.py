"""Copies between engines: equal in everything, resumable, verified."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import HashEncoder, Server, make_passages, running_server
from typer.testing import CliRunner, Result

from two_tower.ingest.cli import app
from two_tower.ingest.loading import loader
from two_tower.ingest.loading.verify import verify
from two_tower.ingest.versions.copying import copy
from two_tower.ingest.versions.versions import drop, promote, versions
from two_tower.models.data import Dataset
from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.collection.schema import point_id
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.engine.wire import Point, SparseVector
from two_tower.retriever.errors import CollectionMismatch, CollectionNotFound, VerificationFailed

MakeData = Callable[..., Dataset]
COUNT = 700  # three pages
VERIFIED = f"verified {COUNT} content hashes, 64 points in full"


def content(engine: Engine, collection: str) -> dict[Any, Any]:
    records, rest = engine.scroll(collection, limit=COUNT * 2, with_vectors=True)
    assert rest is None
    return {record.id: (record.payload, record.vector) for record in records}


def about(engine: Engine, collection: str) -> tuple[dict[str, Any], dict[str, str]]:
    overview = engine.overview(collection)
    return (
        {k: v for k, v in overview.metadata.items() if k not in ("previous", "lease")},
        {name: kind.value for name, kind in overview.fields.items()},
    )


def close(left: object, right: object) -> bool:
    """Equal but for the last bits of floats: an engine normalises once more."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(close(left[k], right[k]) for k in left)
    if isinstance(left, SparseVector) and isinstance(right, SparseVector):
        pairs = (dict(zip(v.indices, v.values, strict=True)) for v in (left, right))
        return close(*pairs)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(close, left, right))
    return left == right or left == pytest.approx(right, abs=1e-6)


def test_from_embedded_to_server_and_back(
    edge_engine: Engine, rest_engine: Engine, name: str, encoder: HashEncoder, tmp_path: Path,
    make_data: MakeData,
) -> None:  # fmt: skip
    data = make_data(make_passages(COUNT))
    collection = loader.load(edge_engine, data, encoder, name=name).collection
    promote(edge_engine, name)
    report = copy(edge_engine, rest_engine, name)
    assert str(report) == f"{collection}: {COUNT} points sent, 0 were there; {VERIFIED}"
    back = connect(path=tmp_path / "back")
    copy(rest_engine, back, collection)
    expected = content(edge_engine, collection)
    for place in (rest_engine, back):
        assert close(content(place, collection), expected)
        assert about(place, collection) == about(edge_engine, collection)
        assert verify(place, collection, data, encoder).points == COUNT
        assert not [a for a in place.get_aliases().aliases if a.alias_name == name]
    assert str(copy(back, rest_engine, collection)) == (
        f"{collection}: 0 points sent, {COUNT} were there; {VERIFIED}"
    )
    back.close()


class StopsHalfway:
    """An engine that fails as a killed process would, after so many writes of points."""

    def __init__(self, engine: Engine, writes: int) -> None:
        self._engine = engine
        self._left = writes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def with_retry(self) -> "StopsHalfway":
        return self

    def upsert(self, *arguments: Any, **options: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return self._engine.upsert(*arguments, **options)


def wait_until_written(engine: Engine, collection: str, expected: int) -> None:
    """Wait for a write that was sent without waiting."""
    deadline = time.monotonic() + 20
    while (there := engine.count(collection).count) < expected and time.monotonic() < deadline:
        time.sleep(0.05)
    assert there == expected


def test_a_stopped_copy_goes_on(
    edge_engine: Engine, rest_engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(make_passages(COUNT))
    collection = loader.load(edge_engine, data, encoder, name=name).collection
    stopping: Any = StopsHalfway(rest_engine, 1)
    with pytest.raises(KeyboardInterrupt):
        copy(edge_engine, stopping, collection)
    wait_until_written(rest_engine, collection, 256)
    assert [version.complete for version in versions(rest_engine, name)] == [False]
    with pytest.raises(VerificationFailed, match="256 points, expected 700"):
        promote(rest_engine, name)
    (record,), _ = rest_engine.scroll(collection, limit=1, with_vectors=True)
    vector: Any = record.vector
    payload = {**(record.payload or {}), "text": "older", "content_hash": "0" * 32}
    rest_engine.upsert(collection, [Point(record.id, vector, payload=payload)])
    report = copy(edge_engine, rest_engine, collection)
    assert (report.sent, report.unchanged) == (COUNT - 255, 255)
    assert [version.complete for version in versions(rest_engine, name)] == [True]
    assert close(content(rest_engine, collection), content(edge_engine, collection))


def test_what_is_not_the_same_is_refused(
    edge_engine: Engine, rest_engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    with pytest.raises(CollectionNotFound):
        copy(edge_engine, rest_engine, name)
    few = make_data(make_passages(40))
    collection = loader.load(edge_engine, few, encoder, name=name).collection
    other = make_data(make_passages(50, seed=1), name="OTHER")
    loader.load(rest_engine, other, encoder, name=name)
    with pytest.raises(CollectionMismatch, match=f"'{collection}' of its own, with another bm25"):
        copy(edge_engine, rest_engine, name=collection)
    drop(rest_engine, collection)
    copy(edge_engine, rest_engine, collection)
    (record,) = rest_engine.retrieve(collection, [point_id("p3")], with_vectors=True)
    vectors: Any = record.vector
    extra = {**(record.payload or {}), "passage_id": "extra"}
    rest_engine.upsert(collection, [Point(point_id("extra"), vectors, payload=extra)])
    with pytest.raises(VerificationFailed, match="41 points, the source 40; drop it there"):
        copy(edge_engine, rest_engine, collection)
    rest_engine.delete(collection, [point_id("extra")])
    turned = {**vectors, "pca_4": [1.0, 0.0, 0.0, 0.0]}
    rest_engine.upsert(collection, [Point(record.id, turned, record.payload or {})])
    with pytest.raises(VerificationFailed, match="right content hash but other vectors"):
        copy(edge_engine, rest_engine, collection)
    edge_engine.delete(collection, [point_id("p0")])
    with pytest.raises(VerificationFailed, match="39 points, expected 40"):
        copy(edge_engine, rest_engine, collection)


def test_a_copy_may_be_stored_otherwise(
    edge_engine: Engine, rest_engine: Engine, name: str, make_data: MakeData, tmp_path: Path
) -> None:
    data = make_data(make_passages(40))
    collection = loader.load(edge_engine, data, HashEncoder(), name=name).collection
    spread = CollectionOptions(shards=3, replicas=1, indexes={"year": "none"})
    copy(edge_engine, rest_engine, collection, options=spread)
    assert rest_engine.get_collection(collection).config.params.shard_number == 3
    assert "year" not in about(rest_engine, collection)[1]
    copy(edge_engine, rest_engine, collection)  # what is stored so stays so
    assert about(rest_engine, collection)[0]["options"]["shards"] == 3
    assert "year" not in about(rest_engine, collection)[1]
    with pytest.raises(CollectionMismatch, match="with other options already"):
        copy(edge_engine, rest_engine, collection, options=CollectionOptions(shards=2))
    with pytest.raises(CollectionMismatch, match="a copy keeps that"):
        copy(edge_engine, connect(path=tmp_path / "no"), name=collection,
             options=CollectionOptions(distance="dot"))  # fmt: skip
    back = connect(path=tmp_path / "back")
    copy(rest_engine, back, collection)  # of three shards one
    assert close(content(back, collection), content(edge_engine, collection))
    back.close()


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Server]:
    with running_server(tmp_path / "locked", api_key="its-own-key") as started:
        yield started


def test_the_command(
    server: Server, locked: Server, rest_engine: Engine, name: str, make_data: MakeData,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    data = make_data(make_passages(40))
    collection = loader.load(rest_engine, data, HashEncoder(), name=name).collection
    promote(rest_engine, name)
    both = ["copy", name, "--from-url", server.url, "--to-url", locked.url]
    assert "refused the API key" in bad(*both)
    assert locked.api_key
    monkeypatch.setenv("QDRANT_API_KEY", "of-the-first")
    assert "so that neither server is sent the other's key" in bad(*both)
    monkeypatch.delenv("QDRANT_API_KEY")
    monkeypatch.setenv("QDRANT_TO_API_KEY", locked.api_key)
    done = run(*both, "--promote")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{collection}: 40 points sent, 0 were there; verified 40 content")
    assert lines[1:] == [f"{name} -> {collection}"]
    assert locked.api_key not in done.output
    monkeypatch.delenv("QDRANT_TO_API_KEY")
    monkeypatch.setenv("QDRANT_API_KEY", locked.api_key)
    to_path = ["--from-url", locked.url, "--to-path", str(tmp_path / "edge")]
    assert run("copy", name, *to_path).exit_code == 0
    assert "expected two engines" in bad(
        "copy", name, "--from-url", "http://a", "--to-url", "http://a"
    )
    assert run("copy", name, "--from-url", locked.url).exit_code == 2


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def bad(*arguments: str) -> str:
    done = run(*arguments)
    assert done.exit_code == 1, done.output
    assert re.fullmatch(r"Error: [^\n]+\n", done.stderr), done.stderr
    return done.stderr
