"""What an engine could not read back is never written, and what is damaged harms nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import qdrant_edge as edge
from conftest import HashEncoder, make_passages, write_data
from qdrant_client import models as qm
from typer.testing import CliRunner

from two_tower.ingest.cli import app as ingest_app
from two_tower.ingest.loading import loader
from two_tower.ingest.versions import versions
from two_tower.models.data import Dataset, Passage
from two_tower.models.errors import DataError
from two_tower.models.storable import MOST_DEPTH, storage_fault
from two_tower.retriever.collection.schema import CollectionMetadata
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine, scroll_all
from two_tower.retriever.engine.wire import Point
from two_tower.retriever.errors import CollectionDamaged, EngineError


def nested(depth: int, *, lists: bool = False) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value] if lists else {"a": value}
    return value


UNSTORABLE: dict[str, Any] = {
    "deep mapping": nested(MOST_DEPTH),
    "deep list": nested(MOST_DEPTH, lists=True),
    "deep in a log": nested(123),
    "deeper than Python goes": nested(5000, lists=True),
    "integer of 65 bits": 2**64,
    "negative integer of 65 bits": -(2**63) - 1,
    "integer in a list": [1, {"a": [2**70]}],
}

REPAIRED: dict[str, Any] = {  # what `prepare` makes storable by itself
    "not a number": float("nan"),
    "infinite": [float("inf"), 1.0],
    "half a character": "\ud83d",
    "half a character in a key": {"\ud83d": 1},
}

STORABLE: dict[str, Any] = {
    "deep": nested(MOST_DEPTH - 1),
    "largest integer": 2**64 - 1,
    "least integer": -(2**63),
    "floats": [5e-324, 1.7976931348623157e308, -0.0],
    "odd keys": {"": 1, "a.b": 2, "[]": 3, "\0": 4},
    "nulls": [None, True, {"a": None}],
}


@pytest.mark.parametrize("what", [*UNSTORABLE, *REPAIRED])
def test_such_a_value_is_refused(what: str) -> None:
    assert storage_fault({"f": (UNSTORABLE | REPAIRED)[what]})


def test_prepare_sets_such_rows_aside_and_keeps_the_others(tmp_path: Path) -> None:
    values = {**UNSTORABLE, **REPAIRED, **STORABLE}
    rows = [Passage(name, f"text {name}", fields={"f": value}) for name, value in values.items()]
    data = write_data(tmp_path / "DATA", rows)
    assert {p.passage_id for p in data.passages()} == REPAIRED.keys() | STORABLE.keys()
    reasons = data.manifest["counts"]["rejected"]
    assert sum(reasons.values()) == len(UNSTORABLE)
    assert reasons["passage: a field holds an integer of more than 64 bits"] == 3
    assert len((data.path / "rejected.jsonl").read_text().splitlines()) == len(UNSTORABLE)


def test_a_passage_that_no_engine_takes_is_set_aside(tmp_path: Path) -> None:
    large = "x" * (28 * 2**20)
    data = write_data(tmp_path / "DATA", [Passage("large", large), Passage("small", "text")])
    assert [p.passage_id for p in data.passages()] == ["small"]


def test_both_engines_keep_every_storable_value(engine: Engine, name: str) -> None:
    engine.create_collection(
        name, vectors_config={"v": qm.VectorParams(size=2, distance=qm.Distance.DOT)}
    )
    payloads = [{"f": value} for value in STORABLE.values()]
    points = [Point(number, {"v": [1.0, 0.0]}, p) for number, p in enumerate(payloads)]
    engine.upsert(name, points)
    reader = engine
    if engine.is_embedded:  # read from the log
        engine.close()
        reader = connect(path=engine.where)
    found = {record.id: record.payload for record in scroll_all(reader, name)}
    if engine.is_embedded:
        reader.close()
    # As text, for 2**64 and 2.0**64 are equal otherwise.
    assert {n: json.dumps(p) for n, p in found.items()} == {
        number: json.dumps(payload) for number, payload in enumerate(payloads)
    }


@pytest.mark.parametrize("what", [*UNSTORABLE, *REPAIRED])
def test_the_embedded_engine_is_never_given_another(
    edge_engine: Engine, name: str, what: str
) -> None:
    edge_engine.create_collection(
        name, vectors_config={"v": qm.VectorParams(size=2, distance=qm.Distance.DOT)}
    )
    payload = {"f": (UNSTORABLE | REPAIRED)[what]}
    point = Point(1, {"v": [1.0, 0.0]}, payload)
    with pytest.raises(EngineError, match="payload of point 1"):
        edge_engine.upsert(name, [Point(2, {"v": [1.0, 0.0]}, {}), point])
    change = qm.SetPayload.model_construct(payload=payload, points=[2], filter=None)
    operation = qm.SetPayloadOperation.model_construct(set_payload=change)
    with pytest.raises(EngineError, match="payload of points 2"):
        edge_engine.batch_update_points(name, [operation])
    assert edge_engine.count(name).count == 0


Tamper = Callable[[Path], None]


def with_column(column: str, values: list[Any]) -> Tamper:
    def tamper(data: Path) -> None:
        table = pq.read_table(data / "passages.parquet")
        place = table.schema.get_field_index(column)
        table = table.set_column(place, column, pa.array(values, pa.string()))
        pq.write_table(table, data / "passages.parquet")

    return tamper


def with_bytes(name: str, change: Callable[[bytearray], object]) -> Tamper:
    def tamper(data: Path) -> None:
        content = bytearray((data / name).read_bytes())
        change(content)
        (data / name).write_bytes(content)

    return tamper


def with_manifest(**values: Any) -> Tamper:
    def tamper(data: Path) -> None:
        manifest = json.loads((data / "manifest.json").read_text())
        (data / "manifest.json").write_text(json.dumps(manifest | values))

    return tamper


def damage(content: bytearray) -> None:
    content[4:200] = b"\xff" * 196


TAMPERED: dict[str, Tamper] = {
    **{f"null {c}": with_column(c, ["a", None, "c"]) for c in ("title", "text", "url", "fields")},
    "null id": with_column("passage_id", ["a", None, "c"]),
    "equal ids": with_column("passage_id", ["a", "b", "a"]),
    "no JSON": with_column("fields", ["", "{", ""]),
    "no object": with_column("fields", ["", "[1]", ""]),
    "deep fields": with_column("fields", ["", json.dumps({"f": nested(123)}), ""]),
    "very deep fields": with_column("fields", ["", "[" * 100_000, ""]),
    "not finite": with_column("fields", ["", '{"f": NaN}', ""]),
    "half a character": with_column("fields", ["", r'{"f": "\ud800"}', ""]),
    "65 bits": with_column("fields", ["", '{"f": 18446744073709551616}', ""]),
    "damaged pages": with_bytes("passages.parquet", damage),
    "cut short": with_bytes("passages.parquet", lambda content: content.__delitem__(slice(99))),
    "no counts": with_manifest(counts={}),
    "counts in words": with_manifest(counts={"passages": "three", "qrels": {}}),
    "less than none": with_manifest(counts={"passages": -3, "qrels": {}}),
    "no hash": with_manifest(content_hash=None),
    "fields of no type": with_manifest(fields={"f": {}}),
    "too many fields": with_manifest(
        fields={f"f{n}": {"type": "keyword", "values": 1} for n in range(5000)}
    ),
    "a list": with_bytes("manifest.json", lambda content: content.__setitem__(slice(None), b"[]")),
    "very deep": with_bytes(
        "manifest.json", lambda content: content.__setitem__(slice(None), b"[" * 100_000)
    ),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_tampered_data_is_one_line_and_makes_no_point(
    tmp_path: Path, edge_engine: Engine, what: str
) -> None:
    path = write_data(tmp_path / "DATA", make_passages(3)).path
    TAMPERED[what](path)
    with pytest.raises(DataError) as failure:
        loader.load(edge_engine, Dataset.open(path), HashEncoder(), name="c")
    assert "\n" not in str(failure.value)
    assert len(str(failure.value)) < 600
    for version in versions.versions(edge_engine):
        assert version.points == 0


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """An embedded folder with two collections; the log of one is damaged."""
    engine = connect(path=tmp_path / "edge")
    for name in ("whole", "broken"):
        data = write_data(tmp_path / name, make_passages(5))
        report = loader.load(engine, data, HashEncoder(), name=name)
        versions.promote(engine, name, report.collection)
    engine.close()
    (home,) = (tmp_path / "edge" / "collections").glob("broken--*")
    shard = edge.EdgeShard.load(str(home / "shard"))
    vectors = {"dense": [1.0] + [0.0] * 15}
    deep = edge.Point(id=1, vector=vectors, payload={"f": nested(200)})
    shard.update(edge.UpdateOperation.upsert_points([deep]))
    shard.flush()
    shard.close()
    return tmp_path / "edge"


def run(*words: object) -> Any:
    return CliRunner().invoke(ingest_app, [str(word) for word in words])


def test_a_damaged_collection_leaves_the_others_and_can_be_dropped(damaged: Path) -> None:
    listed = run("list", "--path", damaged)
    assert listed.exit_code == 0
    assert "damaged" in listed.stdout
    assert " 5 " in listed.stdout
    assert run("verify", "whole", "--path", damaged).exit_code == 0
    refused = run("verify", "broken", "--path", damaged)
    assert refused.exit_code == 1
    assert "is damaged" in refused.stderr
    assert "ingest drop" in refused.stderr
    assert run("drop", "broken", "--yes", "--path", damaged).exit_code == 0
    assert "broken" not in run("list", "--path", damaged).stdout


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"[" * 100_000, b'{"vectors": 1}'])
def test_a_damaged_description_leaves_the_others(damaged: Path, content: bytes | None) -> None:
    (home,) = (damaged / "collections").glob("broken--*")
    (home / "collection.json").unlink()
    if content is not None:
        (home / "collection.json").write_bytes(content)
    listed = run("list", "--path", damaged)
    assert listed.exit_code == 0
    assert "whole" in listed.stdout
    engine = connect(path=damaged)
    with pytest.raises(CollectionDamaged):
        engine.get_collection("broken")
    engine.close()
    assert run("drop", home.name, "--yes", "--path", damaged).exit_code == 0
    assert not home.exists()


def test_a_panic_of_the_engine_is_an_error_and_the_engine_goes_on(
    edge_engine: Engine, name: str
) -> None:
    edge_engine.create_collection(
        name, vectors_config={"v": qm.VectorParams(size=2, distance=qm.Distance.DOT)}
    )
    edge_engine.create_payload_index(name, "f", qm.PayloadSchemaType.FLOAT)
    points = [Point(n, {"v": [1.0, 0.0]}, {"f": n / 3}) for n in range(50)]
    edge_engine.upsert(name, points)
    bounds = qm.Range.model_construct(gt=0.0, lt=float("nan"), gte=None, lte=None)
    condition = qm.FieldCondition.model_construct(key="f", range=bounds, match=None)
    for _ in range(3):
        with pytest.raises(EngineError, match="failed inside"):
            edge_engine.count(name, count_filter=qm.Filter(must=[condition]))
    assert edge_engine.count(name).count == 50


def test_a_folder_is_left_as_it_was_by_a_refused_load(tmp_path: Path) -> None:
    path = write_data(tmp_path / "DATA", make_passages(3)).path
    TAMPERED["deep fields"](path)
    shutil.rmtree(tmp_path / "edge", ignore_errors=True)
    engine = connect(path=tmp_path / "edge")
    with pytest.raises(DataError):
        loader.load(engine, Dataset.open(path), HashEncoder(), name="c")
    assert engine.get_collections().collections == []
    engine.close()


METADATA: dict[str, Any] = {
    "fingerprint": {"bundle_fingerprint": ["a"]}, "short": {"bundle_fingerprint": ""},
    "dims": {"pca_dims": 8}, "dims of words": {"pca_dims": ["8"]}, "dim": {"dim": -1},
    "data": {"data": []}, "counts": {"data": {"counts": []}},
    "kept": {"data": {"counts": {"passages": 1}, "kept": "many"}}, "bm25": {"bm25": None},
    "time": {"created_at": "yesterday"}, "no zone": {"created_at": "2026-11-29T00:00:00"},
    "options": {"options": 7}, "centroids": {"centroids": []}, "late": {"late_dim": 1.5},
    "format": {"format": "x" * 5000}, "fusion": {"fusion": "x"},
}  # fmt: skip


@pytest.mark.parametrize("what", METADATA)
def test_metadata_of_another_form_is_a_value_error(what: str) -> None:
    good = CollectionMetadata(
        bundle_fingerprint="a" * 64,
        dim=8,
        pca_dims=(4,),
        data={"counts": {"passages": 3}},
        bm25={"avg_len": 10.0},
        created_at="2026-11-29T00:00:00+00:00",
    ).to_dict()
    assert CollectionMetadata.from_dict(good).expected_points == 3
    with pytest.raises(ValueError, match=r".") as failure:
        CollectionMetadata.from_dict({**good, **METADATA[what]})
    assert len(str(failure.value)) < 500
    assert "\n" not in str(failure.value)
