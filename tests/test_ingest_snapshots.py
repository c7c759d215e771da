"""Snapshots: saved, restored, verified; and archives that must not be."""

import hashlib
import json
import os
import re
import resource
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import HashEncoder, Server, make_passages, write_data
from qdrant_client import QdrantClient
from qdrant_client import models as qm
from typer.testing import CliRunner

from two_tower.ingest.cli import app
from two_tower.ingest.loading import loader
from two_tower.ingest.loading.verify import verify
from two_tower.ingest.versions.snapshots import open_archive, restore, snapshot
from two_tower.ingest.versions.versions import promote, rollback, versions
from two_tower.models.data import Dataset
from two_tower.models.errors import DataError
from two_tower.retriever.collection.schema import point_id
from two_tower.retriever.engine import edge_check
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.errors import (
    CollectionMismatch,
    CollectionNotFound,
    EngineError,
    VerificationFailed,
)

MakeData = Callable[..., Dataset]
COUNT = 120
ONE_VECTOR = {"v": qm.VectorParams(size=2, distance=qm.Distance.DOT)}


def content(engine: Engine, collection: str) -> dict[Any, Any]:
    records, rest = engine.scroll(collection, limit=COUNT * 2, with_vectors=True)
    assert rest is None
    return {record.id: (record.payload, record.vector) for record in records}


def names(engine: Engine, name: str) -> list[str]:
    found = (c.name for c in engine.get_collections().collections)
    return sorted(c for c in found if c.startswith(name))


def snapshots_on(server: Server, collection: str) -> list[Any]:
    with closing(
        QdrantClient(url=server.url, api_key=server.api_key, check_compatibility=False)
    ) as client:
        return client.list_snapshots(collection)


@pytest.mark.parametrize("engine", ["edge", "rest"], indirect=True)
def test_a_snapshot_brings_everything_back(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData, tmp_path: Path
) -> None:
    data = make_data(make_passages(COUNT))
    first = loader.load(engine, data, HashEncoder(seed=3), name=name).collection
    promote(engine, name, first)
    collection = loader.load(engine, data, encoder, name=name).collection
    promote(engine, name, collection)
    expected = content(engine, collection)
    before = engine.get_collection(collection)

    saved = snapshot(engine, name, tmp_path / "out")
    assert (saved.collection, saved.points) == (collection, COUNT)
    assert [p.name for p in (tmp_path / "out").iterdir()] == [saved.file.name]
    assert re.fullmatch(rf"{collection}\.\d{{8}}T\d{{6}}Z\.zip", saved.file.name)
    assert content(engine, collection) == expected  # it goes on

    with pytest.raises(EngineError, match=f"there is a collection '{collection}' already"):
        restore(engine, saved.file)
    copy = restore(engine, saved.file, name=f"{name}_copy").collection
    assert copy == collection.replace(name, f"{name}_copy")
    assert content(engine, copy) == expected
    after = engine.get_collection(copy)
    assert after.payload_schema.keys() == before.payload_schema.keys()
    assert after.config.metadata == {
        k: v for k, v in (before.config.metadata or {}).items() if k != "previous"
    }
    assert verify(engine, copy, data, encoder).points == COUNT
    assert f"{name}_copy" not in {alias.alias_name for alias in engine.get_aliases().aliases}
    assert promote(engine, f"{name}_copy") == copy
    with pytest.raises(EngineError, match="pointed to nothing before"):
        rollback(engine, f"{name}_copy")

    engine.delete_collection(collection)
    assert restore(engine, saved.file).collection == collection
    assert content(engine, collection) == expected
    assert {v.collection for v in versions(engine, name)} == {first, collection}


def test_a_server_keeps_no_temporary_snapshot(
    server: Server,
    rest_engine: Engine,
    name: str,
    encoder: HashEncoder,
    make_data: MakeData,
    tmp_path: Path,
) -> None:
    collection = loader.load(rest_engine, make_data(make_passages(20)), encoder, name=name)
    saved = snapshot(rest_engine, collection.collection, tmp_path)
    copy = restore(rest_engine, saved.file, name=f"{name}_copy")
    for made in (collection.collection, copy.collection):
        assert snapshots_on(server, made) == []
    with zipfile.ZipFile(saved.file) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        inner = archive.read("collection.snapshot")
    assert manifest["files"][0]["sha256"] == hashlib.sha256(inner).hexdigest()
    assert inner[257:262] == b"ustar"  # Qdrant's own file, as it is


@pytest.mark.parametrize("engine", ["edge", "rest"], indirect=True)
def test_what_cannot_be_saved(
    engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData, tmp_path: Path
) -> None:
    with pytest.raises(CollectionNotFound):
        snapshot(engine, name, tmp_path)
    collection = loader.load(engine, make_data(make_passages(20)), encoder, name=name).collection
    engine.delete(collection, [point_id("p3")])
    with pytest.raises(VerificationFailed, match="19 points, expected 20"):
        snapshot(engine, collection, tmp_path)
    engine.create_collection(f"{name}_foreign", vectors_config=ONE_VECTOR)
    with pytest.raises(CollectionMismatch, match="was not made by ingest load"):
        snapshot(engine, f"{name}_foreign", tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good archive of the embedded engine's; it takes a second, for Edge allots 200 MB."""
    folder = tmp_path_factory.mktemp("made")
    engine = connect(path=folder / "edge")
    passages = [passage._replace(fields={}) for passage in make_passages(COUNT)]
    data = write_data(folder / "DATA", passages)
    collection = loader.load(engine, data, HashEncoder(pca_dims=()), name="good").collection
    file = snapshot(engine, collection, folder / "saved").file
    engine.close()
    return file


def refused(engine: Engine, file: Path, expected: str) -> None:
    """Restoring `file` fails in one line and leaves nothing."""
    engine.update_collection_aliases([])  # writes the file of them
    before = names(engine, ""), beside(engine)
    with pytest.raises((DataError, EngineError), match=expected) as caught:
        restore(engine, file, name="other")
    assert "\n" not in str(caught.value)
    assert (names(engine, ""), beside(engine)) == before


def beside(engine: Engine) -> list[str]:
    """What lies in the folder of the collections, hidden or not, and around it."""
    folder = Path(engine.where)  # type: ignore[attr-defined]
    places = (folder / "collections", folder, folder.parent)
    return sorted(str(path) for place in places for path in place.iterdir())


class Entry(NamedTuple):
    """An entry of an archive that is put together by hand."""

    info: zipfile.ZipInfo
    content: bytes


def entry(name: str, content: bytes = b"x", *, kind: int = stat.S_IFREG) -> Entry:
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o644) << 16
    return Entry(info, content)


def archive_of(source: Path, *entries: Entry, **changes: object) -> Path:
    """Return an archive of these entries alone; its manifest says so, and is right beside that."""
    target = source.with_name("by_hand.zip")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        manifest = json.loads(old.read("manifest.json")) | {"files": []} | changes
        for info, content in entries:
            new.writestr(info, content)
            manifest["files"].append(
                {"name": info.filename, "size": len(content), "sha256": sha256(content)}
            )
        new.writestr("manifest.json", json.dumps(manifest))
    return target


def changed(source: Path, replace: Mapping[str, bytes], **changes: object) -> Path:
    """Return the archive with other contents or another manifest, and all made to fit."""
    with zipfile.ZipFile(source) as old:
        inside = [n for n in old.namelist() if n != "manifest.json"]
        return archive_of(
            source, *(entry(n, replace.get(n, old.read(n))) for n in inside), **changes
        )


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_damaged_archive_is_refused(edge_engine: Engine, made: Path, tmp_path: Path) -> None:
    whole = made.read_bytes()
    bad = tmp_path / "bad.zip"
    for part in (0, 100, len(whole) // 2, len(whole) - 1):
        bad.write_bytes(whole[:part])
        refused(edge_engine, bad, "bad.zip is no complete archive of ingest snapshot")
    bad.write_bytes(os.urandom(5000))
    refused(edge_engine, bad, "no complete archive")
    refused(edge_engine, tmp_path / "none.zip", "cannot read .*none.zip")
    refused(edge_engine, tmp_path, "cannot read")
    with zipfile.ZipFile(made) as archive:
        entries = [i for i in archive.infolist() if i.compress_size > 2_000]
    for info in (entries[0], entries[-1]):
        flipped = bytearray(whole)
        flipped[info.header_offset + info.compress_size // 2] ^= 0x40
        bad.write_bytes(flipped)
        refused(edge_engine, bad, "no complete archive")


def test_a_tampered_archive_is_refused(edge_engine: Engine, made: Path) -> None:
    with open_archive(made) as (manifest, _):
        metadata = manifest.metadata
    other = {**metadata, "bm25": {"avg_len": 1.0}}
    refused(edge_engine, changed(made, {}, metadata=other), "not that of its manifest")
    refused(edge_engine, changed(made, {}, points=7), "120 points, its manifest says 7")
    broken = {"shard/edge_config.json": b"{"}
    refused(edge_engine, changed(made, broken), "Failed to deserialize")


@pytest.mark.parametrize("kind", ["half", "ones", "huge"])
def test_what_was_forged_with_its_hashes_is_read_or_refused(
    edge_engine: Engine, made: Path, kind: str
) -> None:
    """Some files of it: either all points can be read afterwards, or nothing is left."""
    with zipfile.ZipFile(made) as archive:
        names = [i.filename for i in archive.infolist() if i.file_size > 16]
        contents = {name: archive.read(name) for name in names if name.startswith("shard/")}
    before = {c.name for c in edge_engine.get_collections().collections}
    for name in sorted(contents)[::12]:
        content = contents[name]
        forged = {
            "half": content[: len(content) // 2],
            "ones": content[:8] + b"\xff" * 8 + content[16:],
            "huge": content[:8] + (1 << 60).to_bytes(8, "little") + content[16:],
        }[kind]
        try:
            collection = restore(edge_engine, changed(made, {name: forged})).collection
        except EngineError as error:
            refusal = str(error)
        else:
            refusal = ""
            assert len(edge_engine.scroll(collection, limit=200, with_vectors=True)[0]) == 120
            edge_engine.delete_collection(collection)
        assert "\n" not in refusal
        assert {c.name for c in edge_engine.get_collections().collections} == before


def test_a_shard_is_read_within_limits(
    edge_engine: Engine, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(made) as archive:
        size = sum(i.file_size for i in archive.infolist() if i.filename.startswith("shard/"))
    monkeypatch.setattr(edge_check, "LEAST_MEMORY", 2**20 - 4 * size)
    refused(edge_engine, made, "is not restored: the engine cannot read its files .*; take another")
    monkeypatch.undo()
    monkeypatch.setattr(edge_check, "LEAST_S", 0.01)
    monkeypatch.setattr(edge_check, "BYTES_PER_S", 1e12)
    refused(edge_engine, made, "it reads for more than 0 s")


def test_a_manifest_that_lies_is_refused(edge_engine: Engine, made: Path) -> None:
    for expected, changes in {
        "no collection that ingest load made": {"metadata": {}},
        "found format 'other/9', expected": {"format": "other/9"},
        "unknown configuration key surprise": {"surprise": 1},
        "its manifest.json cannot be read: collection is 7": {"collection": 7},
        "its manifest.json cannot be read: points is 'many'": {"points": "many"},
        "its manifest.json cannot be read: embedded is 1": {"embedded": 1},
    }.items():
        refused(edge_engine, archive_of(made, **changes), expected)
    refused(edge_engine, archive_of(made), "lacks collection.json")
    stray = archive_of(made, entry("elsewhere.txt"))
    refused(edge_engine, stray, "no file of the embedded engine")
    undeclared = archive_of(made, entry("collection.json"))
    with zipfile.ZipFile(undeclared, "a") as archive:
        archive.writestr("shard/undeclared", b"x")
    refused(edge_engine, undeclared, "'shard/undeclared' is not both in it and in its manifest")
    absent = {"name": "shard/a", "size": 1, "sha256": sha256(b"x")}
    refused(edge_engine, archive_of(made, files=[absent]), "'shard/a' is not both")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_entries_are_refused(edge_engine: Engine, made: Path) -> None:
    for evil in (
        *("../evil", "shard/../../evil", "/tmp/evil", "shard//evil", "C:/evil", "a\\..\\evil"),
        *("shard/.hidden", "", "shard/", "~/evil", "shard/e\nvil", "shard/" + "x" * 300),
    ):
        refused(edge_engine, archive_of(made, entry(evil)), "no name of a file in an archive")
    for kind in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFDIR):
        link = entry("shard/link", b"/etc/passwd", kind=kind)
        refused(edge_engine, archive_of(made, link), "'shard/link' is no plain file")
    twice = archive_of(made, entry("collection.json"), entry("collection.json", b"other"))
    refused(edge_engine, twice, "has a file twice")


def test_a_snapshot_goes_back_to_its_own_kind(
    edge_engine: Engine,
    rest_engine: Engine,
    made: Path,
    name: str,
    make_data: MakeData,
    tmp_path: Path,
) -> None:
    with pytest.raises(DataError, match=r"embedded engine \(--path\) and cannot .* ingest copy"):
        restore(rest_engine, made, name=name)
    loaded = loader.load(rest_engine, make_data(make_passages(9)), HashEncoder(), name=name)
    theirs = snapshot(rest_engine, loaded.collection, tmp_path).file
    refused(edge_engine, theirs, r"snapshot of a server \(--url\) and cannot be restored to the")


def test_a_server_refuses_what_is_no_snapshot_and_keeps_nothing(
    server: Server, rest_engine: Engine, name: str, make_data: MakeData, tmp_path: Path
) -> None:
    made = loader.load(rest_engine, make_data(make_passages(9)), HashEncoder(), name=name)
    good = snapshot(rest_engine, made.collection, tmp_path).file
    with zipfile.ZipFile(good) as archive:
        half = archive.read("collection.snapshot")[:20_000]
    for inner in (half, b"", b"garbage" * 100):
        bad = archive_of(good, entry("collection.snapshot", inner))
        with pytest.raises(EngineError, match="the server cannot use the snapshot"):
            restore(rest_engine, bad, name=f"{name}_bad")
    assert names(rest_engine, name) == [made.collection]
    again = restore(rest_engine, good, name=f"{name}_bad").collection
    assert snapshots_on(server, again) == []


def test_the_commands(tmp_path: Path, name: str, make_data: MakeData) -> None:
    where = ["--path", str(tmp_path / "edge")]
    engine = connect(path=tmp_path / "edge")
    made = loader.load(engine, make_data(make_passages(30)), HashEncoder(), name=name).collection
    promote(engine, name)
    engine.close()
    saved = run("snapshot", name, "--out", tmp_path / "out", *where)
    file, told = saved.split(": ", 1)
    assert re.fullmatch(rf"30 points of {made}, [0-9.]+ MiB\n", told)
    elsewhere = ["--path", str(tmp_path / "elsewhere")]
    answer = run("restore", file, "--promote", *elsewhere)
    assert answer == f"{made}: restored and verified 30 points\n{name} -> {made}\n"
    failed = CliRunner().invoke(app, ["restore", file, *elsewhere])
    assert failed.exit_code == 1
    assert re.fullmatch(r"Error: there is a collection [^\n]+\n", failed.stderr)


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def limited(*arguments: str | Path) -> str:
    """Run a command that may write no large file; return its one line."""
    done = subprocess.run(
        [sys.executable, "-c", "from two_tower.ingest.cli import app; app()", *arguments],
        capture_output=True,
        text=True,
        preexec_fn=limit_files,
        check=False,
    )
    assert done.returncode == 1
    assert re.fullmatch(r"Error: [^\n]+\n", done.stderr), done.stderr
    return done.stderr


def test_a_full_disk_leaves_nothing_behind(made: Path, tmp_path: Path) -> None:
    source = made.parent.parent / "edge"
    collection = made.name.split(".")[0]
    failed = limited("snapshot", collection, "--out", tmp_path / "out", "--path", source)
    assert re.match(r"Error: cannot write .*File too large", failed)
    assert list((tmp_path / "out").iterdir()) == []
    failed = limited("restore", made, "--path", tmp_path / "edge")
    assert re.match(r"Error: cannot write to .*File too large", failed)
    assert list((tmp_path / "edge" / "collections").iterdir()) == []
