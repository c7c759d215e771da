"""`ingest load`, `verify`, `promote`, `list` and `drop` as a user runs them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Server, free_ports, make_bundle, make_passages, write_data
from qdrant_client import models as qm
from typer.testing import CliRunner, Result

from ingest.cli import app
from models.data import Dataset
from retriever.engine import Engine, connect

COUNT = 6000
INGEST = [sys.executable, "-c", "from ingest.cli import app; app()"]


@pytest.fixture(params=["edge", "server"])
def where(request: pytest.FixtureRequest, tmp_path: Path, name: str) -> list[str]:
    """The options that choose each engine; what `name` leaves on a server is deleted."""
    if request.param == "edge":
        return ["--path", str(tmp_path / "edge")]
    request.getfixturevalue("rest_engine")
    return ["--url", request.getfixturevalue("server").url]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def good(*arguments: str | Path) -> str:
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def bad(*arguments: str | Path, code: int = 1) -> str:
    done = run(*arguments)
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    if code == 1:
        assert re.fullmatch(r"Error: [^\n]+\n", done.stderr), done.stderr
    return done.stderr


def test_the_life_of_a_collection(
    where: list[str], name: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    data = write_data(tmp_path / "DATA", make_passages(150)).path
    other = make_bundle(tmp_path / "other", seed=5)
    load = ["load", data, "--collection", name, *where]

    lines = good(*load, "--bundle", tiny_bundle).splitlines()
    first = lines[0].split(":")[0]
    assert re.fullmatch(rf"{name}--[0-9a-f]{{8}}", first)
    assert "150 added, 0 replaced, 0 payload only, 0 unchanged, 0 pruned, 0 kept" in lines[0]
    assert lines[1] == f"{first}: verified 150 points; 64 compared in full"
    assert lines[2] == f"{name} -> {first}"
    assert "0 added, 0 replaced, 0 payload only, 150 unchanged" in good(*load, "--bundle", tiny_bundle)

    second = good(*load, "--bundle", other, "--no-promote").split(":")[0]
    assert second != first
    table = good("list", *where)
    assert table.splitlines()[0].split() == ["NAME", "COLLECTION", "POINTS", "BUNDLE", "AGE"]
    rows = [line.split() for line in table.splitlines() if name in line]
    assert sorted(row[:4] for row in rows if row[0] == "*") == [["*", name, first, "150"]]
    assert sorted(row[:3] for row in rows if row[0] != "*") == [[name, second, "150"]]

    assert good("verify", name, *where).startswith(f"{first}: verified 150 points; 0 compared")
    full = ["--data", data, "--bundle", tiny_bundle]
    assert "64 compared in full" in good("verify", first, *full, *where)
    assert "was loaded with bundle" in bad("verify", second, *full, *where)

    assert good("promote", name, "--to", second, *where) == f"{name} -> {second}\n"
    assert good("promote", name, "--to", first, *where) == f"{name} -> {first}\n"
    assert "--yes" in bad("drop", first, *where)
    assert "--yes" in bad("drop", name, *where)
    assert good("drop", second, *where) == f"Dropped {second}\n"
    assert good("drop", name, "--yes", *where) == f"Dropped {first}\n"
    assert "ingest list" in bad("drop", name, "--yes", *where)
    listed = json.loads(good("list", "--json", *where))
    assert not [version for version in listed if version["name"] == name]


def test_an_update_keeps_or_prunes(
    where: list[str], name: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    old = write_data(tmp_path / "OLD", make_passages(60)).path
    new = write_data(tmp_path / "NEW", make_passages(50)).path
    load = ["--bundle", tiny_bundle, "--collection", name, *where]
    good("load", old, *load)
    lines = good("load", new, *load).splitlines()
    assert "0 added, 0 replaced, 0 payload only, 50 unchanged, 0 pruned, 10 kept" in lines[0]
    assert "verified 60 points, 10 of them not in DATA (ingest load --prune deletes" in lines[1]
    assert "10 of them" in good("verify", name, *where)
    lines = good("load", new, *load, "--prune").splitlines()
    assert "10 pruned, 0 kept" in lines[0]
    assert "verified 50 points;" in lines[1]


def test_what_cannot_work_is_told_in_one_line(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_data(tmp_path / "DATA", make_passages(5)).path
    load = ["load", data, "--bundle", tiny_bundle]
    down = f"http://127.0.0.1:{free_ports(1)[0]}"
    assert down in bad(*load, "--collection", "c", "--url", down)
    assert "not a URL" in bad(*load, "--collection", "c", "--url", "nonsense")
    assert "cannot name" in bad(*load, "--collection", "a/b", "--path", tmp_path / "e")
    assert "both URL" in bad("list", "--url", down, "--path", "x")
    assert "DATA folder" in bad("load", "none", "--bundle", tiny_bundle, "--collection", "c")
    assert "bundle" in bad("load", data, "--bundle", "none", "--collection", "c")
    assert "ingest load" in bad("verify", "nope", "--path", tmp_path / "e")
    assert "ingest load" in bad("promote", "nope", "--path", tmp_path / "e")
    assert "go together" in bad("verify", "c", "--data", data, code=2)
    assert "--bundle" in bad("load", data, "--collection", "c", code=2)
    assert not (tmp_path / ".qdrant").exists()
    monkeypatch.setenv("QDRANT_URL", down)
    assert down in bad("list")
    assert good("list", "--path", tmp_path / "e").split() == [
        *("NAME", "COLLECTION", "POINTS", "BUNDLE", "AGE")
    ]


def test_a_locked_folder_is_told_in_one_line(tmp_path: Path) -> None:
    engine = connect(path=tmp_path)
    assert f"in use by process {os.getpid()}" in bad("list", "--path", tmp_path)
    engine.close()


def test_a_broken_parquet_is_told_in_one_line(tmp_path: Path, tiny_bundle: Path) -> None:
    data = write_data(tmp_path / "DATA", make_passages(5)).path
    (data / "passages.parquet").write_bytes(b"PAR1 not really")
    arguments = ["--bundle", tiny_bundle, "--collection", "c", "--path", tmp_path / "e"]
    assert "passages.parquet cannot be read" in bad("load", data, *arguments)
    assert "c--" not in good("list", "--path", tmp_path / "e")


def everything(engine: Engine, collection: str) -> dict[str, qm.Record]:
    records, _ = engine.scroll(collection, limit=100_000, with_vectors=True)
    return {str(record.id): record for record in records}


def assert_equal_collections(left: Engine, right: Engine, collections: tuple[str, str]) -> None:
    ours, theirs = everything(left, collections[0]), everything(right, collections[1])
    assert ours.keys() == theirs.keys()
    for point, record in ours.items():
        other = theirs[point]
        assert record.payload == other.payload
        assert isinstance(record.vector, dict)
        assert isinstance(other.vector, dict)
        assert record.vector.keys() == other.vector.keys()
        assert record.vector["bm25"] == other.vector["bm25"]
        for name in ("dense", "pca_8", "pca_4"):
            np.testing.assert_allclose(record.vector[name], other.vector[name], atol=1e-6)
    infos = [e.get_collection(c) for e, c in zip((left, right), collections, strict=True)]
    metadata = [dict(info.config.metadata or {}) for info in infos]
    for one in metadata:
        one.pop("created_at")
    assert metadata[0] == metadata[1]
    assert infos[0].payload_schema.keys() == infos[1].payload_schema.keys()


def kill_after(command: list[str], delay_s: float) -> None:
    """Run `command` and kill -9 it after `delay_s`, unless it has ended by then."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            process.wait(timeout=delay_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode in (0, -signal.SIGKILL)


def points_in(folder: Path, collection: str) -> int:
    engine = connect(path=folder)
    try:
        return engine.count(collection).count if engine.collection_exists(collection) else 0
    finally:
        engine.close()


def kill_midway(command: list[str], folder: Path, collection: str, longest_s: float) -> int:
    """Kill loads at random instants until one leaves some of the points but not all."""
    shortest_s = longest_s / 3  # before that it imports
    for _ in range(12):
        delay_s = np.random.default_rng().uniform(shortest_s, longest_s)
        kill_after(command, delay_s)
        points = points_in(folder, collection)
        if 0 < points < COUNT:
            return points
        if points == 0:
            shortest_s = delay_s
        else:
            longest_s = delay_s
            shutil.rmtree(folder)
    pytest.fail(f"no kill between {shortest_s} and {longest_s} s hit the middle of a load")


MakeData = Callable[..., Dataset]


def load_command(data: Dataset, bundle: Path, name: str, where: list[str]) -> list[str]:
    options = ["--bundle", str(bundle), "--collection", name, *where]
    return [*INGEST, "load", str(data.path), *options]


def test_kill_9_and_resume_on_the_embedded_engine(
    tmp_path: Path, tiny_bundle: Path, make_data: MakeData
) -> None:
    data = make_data(make_passages(COUNT))
    start = time.monotonic()
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = load_command(data, tiny_bundle, "c", ["--path", str(whole)])
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    longest_s = time.monotonic() - start
    collection = done.stdout.split(":")[0]

    command = load_command(data, tiny_bundle, "c", ["--path", str(broken)])
    points = kill_midway(command, broken, collection, longest_s)
    kill_after(command, np.random.default_rng().uniform(0.5, 1.0) * longest_s)
    assert points_in(broken, collection) >= points
    subprocess.run(command, check=True, capture_output=True)

    unbroken, killed = connect(path=whole), connect(path=broken)
    try:
        assert killed.resolve("c") == unbroken.resolve("c") == collection
        assert_equal_collections(killed, unbroken, (collection, collection))
    finally:
        unbroken.close()
        killed.close()


def test_kill_9_and_resume_on_the_server(
    rest_engine: Engine, server: Server, name: str, tiny_bundle: Path, make_data: MakeData
) -> None:
    data = make_data(make_passages(COUNT))
    whole, broken = f"{name}_whole", f"{name}_broken"
    where = ["--url", server.url]
    subprocess.run(load_command(data, tiny_bundle, whole, where), check=True, capture_output=True)
    command = load_command(data, tiny_bundle, broken, where)
    collection = rest_engine.resolve(whole).replace(whole, broken)
    goals = np.sort(np.random.default_rng().integers(1, COUNT // 2, 3))
    reached = [kill_at(command, rest_engine, collection, int(goal)) for goal in goals]
    assert 0 < reached[0] < COUNT
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert " 0 unchanged" not in done.stdout
    assert rest_engine.resolve(broken) == collection
    assert_equal_collections(rest_engine, rest_engine, (collection, rest_engine.resolve(whole)))


def kill_at(command: list[str], engine: Engine, collection: str, points: int) -> int:
    """Kill -9 a load as soon as the collection has so many points; return how many it has."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            if engine.collection_exists(collection) and engine.count(collection).count >= points:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        process.wait()
    return engine.count(collection).count
