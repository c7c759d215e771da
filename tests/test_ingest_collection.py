"""Passages added to a collection, replaced and deleted, one by one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import HashEncoder, make_passages
from typer.testing import CliRunner

from two_tower.ingest.changes import collection as changes
from two_tower.ingest.changes.collection import Collection
from two_tower.ingest.cli import app
from two_tower.ingest.loading import loader, verify
from two_tower.ingest.loading.lease import Lease
from two_tower.ingest.versions import versions as collections
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.data import MOST_FIELDS, Dataset, Passage
from two_tower.models.errors import DataError
from two_tower.retriever import Retriever, SearchSettings
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.errors import CollectionMismatch, EngineLocked, VerificationFailed

MakeData = Callable[..., Dataset]
PASSAGES = make_passages(40)
NEW = Passage("new", "A zeppelin moors at the mast.", "Airships", fields={"wing": "none"})


@pytest.fixture
def mine(engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData) -> Collection:
    report = loader.load(engine, make_data(PASSAGES), encoder, name=name)
    collections.promote(engine, name, report.collection)
    return Collection(engine, name, encoder)


def search(mine: Collection, query: str, **more: Any) -> list[str]:
    by_words = SearchSettings(legs={"bm25": 20}, rerank=False)
    retriever = Retriever(mine.engine, mine.name, mine.bundle, settings=by_words)
    return [hit.passage_id for hit in retriever.search(query, k=3, **more)]


def complete(mine: Collection) -> bool:
    ours = {v.collection: v for v in collections.versions(mine.engine)}
    return ours[mine.name].complete


def test_a_new_passage_is_found_at_once_and_a_deleted_one_no_more(mine: Collection) -> None:
    report = mine.add([NEW])
    assert (report.added, report.replaced, report.unchanged) == (1, 0, 0)
    assert search(mine, "zeppelin mast")[0] == "new"
    assert search(mine, "zeppelin mast", filter={"wing": "none"}) == ["new"]  # a field of its own
    assert len(mine) == 41
    assert complete(mine)
    assert mine.add([NEW]).unchanged == 1
    assert mine.delete(["new", "new", "never there"]) == 1
    assert "new" not in search(mine, "zeppelin mast")
    assert mine.delete(["new"]) == 0
    assert len(mine) == 40
    assert complete(mine)


def test_changes_with_fields_of_their_own_make_no_more_indexes_than_data_does(
    mine: Collection,
) -> None:
    for start in (0, 30, 60):
        mine.add([NEW._replace(passage_id="n", fields={f"f{start + n}": n for n in range(30)})])
    indexes = mine.engine.get_collection(mine.name).payload_schema
    assert len(indexes) == MOST_FIELDS
    assert {"kind", "year", "f0"} <= indexes.keys()
    assert search(mine, "zeppelin mast", filter={"f0": 0}) == []  # replaced twice
    assert search(mine, "zeppelin mast")[0] == "n"


def test_a_changed_passage_takes_the_place_of_the_old_one(
    mine: Collection, encoder: HashEncoder, make_data: MakeData
) -> None:
    changed = PASSAGES[3]._replace(text="A zeppelin moors at the mast.")
    moved = PASSAGES[4]._replace(url="http://example.org/moved")
    report = mine.add([changed, moved, PASSAGES[5]])
    assert (report.replaced, report.payload_only, report.unchanged) == (1, 1, 1)
    assert search(mine, "zeppelin mast")[0] == changed.passage_id
    assert complete(mine)
    # What a load of the same passages would have made, to the last vector.
    passages = [*PASSAGES[:3], changed, moved, *PASSAGES[5:]]
    data = make_data(passages, name="CHANGED")
    assert loader.plan(mine.engine, data, encoder, name=mine.name.split("--")[0]).unchanged == 40
    loader.load(mine.engine, data, encoder, name=mine.name.split("--")[0])
    assert verify.repair(mine.engine, mine.name, data, encoder).sent == 0


def test_a_load_finds_the_collection_as_data_has_it_again(
    mine: Collection, encoder: HashEncoder, make_data: MakeData
) -> None:
    mine.add([NEW])
    mine.delete([PASSAGES[0].passage_id, PASSAGES[1].passage_id])
    assert len(mine) == 39
    assert complete(mine)
    verify.verify_counts(mine.engine, mine.name)
    with pytest.raises(VerificationFailed, match="lacks 2 passages"):
        verify.verify(mine.engine, mine.name, make_data(PASSAGES), encoder)
    report = loader.load(mine.engine, make_data(PASSAGES), encoder, name=mine.name.split("--")[0])
    assert (report.added, report.kept, report.unchanged) == (2, 1, 38)
    assert verify.verify(mine.engine, mine.name, make_data(PASSAGES), encoder).points == 41


@pytest.mark.parametrize(
    ("field", "value", "takes"),
    [
        ("year", "2005", "integer"),
        ("year", [2005, "later"], "integer"),
        ("year", 2005.5, "integer"),
        ("rank", "first", "float"),
        ("kind", 7, "keyword"),
        ("kind", True, "keyword"),
    ],
)
def test_a_value_that_no_filter_would_find_is_refused(
    mine: Collection, field: str, value: Any, takes: str
) -> None:
    before = len(mine)
    passages = [Passage("fine", "a text"), Passage("odd", "a text", fields={field: value})]
    with pytest.raises(DataError, match=f"'odd': {field} is .*takes {takes} alone.*nothing was"):
        mine.add(passages)
    assert len(mine) == before
    mine.add([Passage("none", "a text", fields={field: None})])
    assert len(mine) == before + 1


@pytest.mark.parametrize("at", ["before", "after"])
def test_a_change_that_is_cut_short_is_put_right_by_the_next(
    mine: Collection, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    real = mine.engine.upsert

    def dies(*args: Any, **more: Any) -> Any:
        if at == "after":
            real(*args, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(mine.engine, "upsert", dies)
    with pytest.raises(KeyboardInterrupt):
        mine.add([NEW])
    monkeypatch.undo()
    assert complete(mine) == (at == "before")
    mine.add([NEW])
    assert len(mine) == 41
    assert complete(mine)
    assert changes.LACKING not in collections.stored_metadata(mine.engine, mine.name)["data"]


def test_what_an_unfinished_load_lacks_is_not_hidden(mine: Collection) -> None:
    points = [record.id for record in mine.engine.scroll(mine.name, limit=5)[0]]
    mine.engine.delete(mine.name, points, wait=True)  # as if they had never come
    mine.add([NEW])
    assert not complete(mine)
    with pytest.raises(VerificationFailed, match="has 36 points, expected 41"):
        verify.verify_counts(mine.engine, mine.name)


def test_one_at_a_time(mine: Collection) -> None:
    with Lease(mine.engine, mine.name):
        for change in (lambda: mine.add([NEW]), lambda: mine.delete(["p1"])):
            with pytest.raises(EngineLocked, match="being loaded"):
                change()
    assert len(mine) == 40


@pytest.mark.parametrize(
    "passages",
    [
        "text",
        None,
        [],
        ["text"],
        [{"text": "a"}],
        [NEW, NEW],
        [NEW, Passage("other", "")],
        [NEW, Passage("other", "   ")],
        [NEW, Passage("other", None)],  # type: ignore[arg-type]
        [NEW, Passage(3, "text")],  # type: ignore[arg-type]
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_cannot_be_stored_is_refused_whole_in_one_line(
    mine: Collection, passages: Any
) -> None:
    with pytest.raises(DataError) as failure:
        mine.add(passages)
    assert "\n" not in str(failure.value)
    assert len(mine) == 40
    assert complete(mine)


@pytest.mark.parametrize("ids", ["p1", None, 3, [3], [None], ["\ud800"]], ids=repr)
def test_ids_that_are_none_are_refused(mine: Collection, ids: Any) -> None:
    with pytest.raises(DataError) as failure:
        mine.delete(ids)
    assert "\n" not in str(failure.value)
    assert len(mine) == 40


def test_another_bundle_is_refused(mine: Collection) -> None:
    with pytest.raises(CollectionMismatch, match="name the other bundle"):
        Collection(mine.engine, mine.name, HashEncoder(seed=1))


def test_the_whole_way_in_python(tmp_path: Path, tiny_bundle: Path, make_data: MakeData) -> None:
    data = make_data(PASSAGES)
    edge = tmp_path / "edge"
    with Collection.load("mine", data.path, bundle=tiny_bundle, path=edge) as collection:
        assert len(collection) == 40
        assert collection.add([NEW]).added == 1
    with Retriever.open("mine", path=edge) as retriever:
        assert retriever.count(["new", "p1"]) == 2
    with Collection.load("mine", data, bundle=tiny_bundle, path=edge, promote=False) as again:
        assert len(again) == 41  # what was added stays
        assert again.add_data(data).unchanged == 40
    with pytest.raises(DataError, match="not a DATA folder"):
        Collection.load("mine", tmp_path / "none", bundle=tiny_bundle, path=edge)


def test_a_collection_of_bm25_alone_is_changed_without_a_bundle(
    tmp_path: Path, make_data: MakeData
) -> None:
    with Collection.load("mine", make_data(PASSAGES), path=tmp_path / "edge") as collection:
        assert collection.add([NEW]).added == 1
    with Retriever.open("mine", path=tmp_path / "edge") as retriever:
        assert retriever.search("zeppelin mast")[0].passage_id == "new"
    with Collection.open("mine", path=tmp_path / "edge") as again:
        assert again.delete(["new"]) == 1


def test_the_commands(tmp_path: Path, tiny_bundle: Path, make_data: MakeData) -> None:
    from two_tower.retriever.engine.connect import connect

    engine = connect(path=tmp_path / "edge")
    report = loader.load(engine, make_data(PASSAGES), ModelBundle.load(tiny_bundle), name="mine")
    collections.promote(engine, "mine", report.collection)
    engine.close()
    rows = tmp_path / "new.jsonl"
    lines = [{"passage_id": "n1", "text": "A zeppelin moors."}, {"passage_id": "n2", "text": ""}]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    where = ["--bundle", str(tiny_bundle), "--path", str(tmp_path / "edge")]

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, [*words, *where])
        assert done.exit_code == 0, done.output
        return done.output

    shown = run("add", "mine", str(rows))
    assert "1 added, 0 replaced" in shown
    assert "1 set aside: passage: empty text" in shown
    with Retriever.open("mine", bundle=tiny_bundle, path=tmp_path / "edge") as retriever:
        assert retriever.count(["n1", "n2"]) == 1
    deleted, next_command = run("delete", "mine", "n1", "nobody").splitlines()
    assert deleted.endswith(": 1 of 2 deleted")
    assert next_command.startswith("Next: retriever search mine ")
    assert "0 added" in run("add", "mine", str(tmp_path / "DATA"))
    refused = CliRunner().invoke(app, ["add", "mine", str(tmp_path / "no.csv"), *where])
    assert refused.exit_code == 1
    assert "no file or folder" in refused.output
