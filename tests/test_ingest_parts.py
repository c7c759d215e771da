"""A load in parts: processes side by side, in any order, after a stop; and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import KEY, Cluster, running_cluster
from conftest import HashEncoder, Server, make_passages, write_data
from typer.testing import CliRunner

from two_tower.ingest.cli import app
from two_tower.ingest.loading import loader
from two_tower.ingest.loading.lease import Lease
from two_tower.ingest.loading.parts import Part, load_part, loaded_parts, read_part
from two_tower.ingest.loading.verify import difference
from two_tower.ingest.versions.finishing import finish
from two_tower.ingest.versions.versions import versions
from two_tower.models.data import Dataset, Passage
from two_tower.models.errors import ConfigError, DataError
from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.engine.protocol import Engine, scroll_all
from two_tower.retriever.errors import (
    CollectionMismatch,
    CollectionNotFound,
    EngineLocked,
    VerificationFailed,
)

INGEST = [sys.executable, "-c", "from two_tower.ingest.cli import app; app()"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_data(tmp_path_factory.mktemp("parts") / "DATA", make_passages(1000))


def differences(engine: Engine, left: str, right: str) -> list[str]:
    """Return how points of two collections differ, in payload or vectors."""
    first, second = (
        {str(r.id): r for r in scroll_all(engine, one, page=256, with_vectors=True)}
        for one in (left, right)
    )
    assert first.keys() == second.keys()
    return [reason for point in first if (reason := difference(first[point], second[point]))]


def test_parts_share_all_passages_out() -> None:
    for count, of in ((1000, 8), (7, 3), (3, 3), (100, 1)):
        bounds = [Part(number, of).bounds(count) for number in range(1, of + 1)]
        assert [row for first, end in bounds for row in range(first, end)] == list(range(count))
        sizes = [end - first for first, end in bounds]
        assert max(sizes) - min(sizes) <= 1
    assert read_part(" 3/8 ") == Part(3, 8)


@pytest.mark.parametrize("text", ["0/8", "9/8", "3", "3/", "a/b", "-1/2", "1/0", "3/8/2", ""])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a number and how many: 1/8 to 8/8"):
        read_part(text)


def test_three_processes_one_killed_make_what_one_load_makes(
    server: Server, rest_engine: Engine, name: str, data: Dataset, tiny_bundle: Path
) -> None:
    load = ["load", str(data.path), "--bundle", str(tiny_bundle), "--url", server.url]
    env = os.environ | ({"QDRANT_API_KEY": server.api_key} if server.api_key else {})

    def start(part: str, *words: str) -> "subprocess.Popen[str]":
        command = [*INGEST, *load, "--collection", name, "--part", part, *words]
        return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)

    killed = start("2/3", "--rate-limit", "60")
    while not any(c.name.startswith(name) for c in rest_engine.get_collections().collections):
        time.sleep(0.05)
    others = [start("3/3"), start("1/3")]
    (collection,) = [
        c.name for c in rest_engine.get_collections().collections if c.name.startswith(name)
    ]
    while "lease 2/3" not in (rest_engine.get_collection(collection).config.metadata or {}):
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    for process in others:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    with pytest.raises(VerificationFailed, match=r"lacks 1 of 3 parts: 2; run: .*--part 2/3"):
        finish(rest_engine, name)
    last = start("2/3")
    assert last.communicate(timeout=120)[1] is not None
    assert last.returncode == 0
    assert set(loaded_parts(rest_engine, collection)) == {Part(n, 3) for n in (1, 2, 3)}
    listed = CliRunner().invoke(app, ["list", "--url", server.url])
    assert "1,000; parts 1, 2, 3 of 3" in listed.stdout
    assert f"Next: ingest finish {name}" in listed.stderr
    done = CliRunner().invoke(app, ["finish", name, "--url", server.url])
    assert done.stdout.splitlines() == [
        f"{collection}: all 3 parts are there, with 1,000 passages of DATA",
        f"{collection}: counted 1,000 points, as many as its last load meant; to compare them: "
        f"ingest verify {collection} --data DATA",
        f"{name} -> {collection}",
    ]
    listed = CliRunner().invoke(app, ["list", "--url", server.url, "--json"])
    assert [v["parts"] for v in json.loads(listed.stdout) if v["collection"] == collection] == [
        None
    ]
    assert not loaded_parts(rest_engine, collection)
    whole = CliRunner().invoke(app, [*load, "--collection", f"{name}-whole"])
    assert whole.exit_code == 0, whole.output
    assert not differences(rest_engine, collection, f"{name}-whole")


@pytest.mark.parametrize("clusters", [0, 2])
def test_any_order_in_either_engine(
    engine: Engine, name: str, data: Dataset, clusters: int, tmp_path: Path
) -> None:
    encoder, options = HashEncoder(), CollectionOptions(clusters=clusters)
    for number in (3, 1, 4, 2):
        report = load_part(engine, data, encoder, Part(number, 4), name=name, options=options)
        assert report is not None
        assert report.added == 250
    again = load_part(engine, data, encoder, Part(3, 4), name=name)
    assert again is None
    (waiting,) = versions(engine, name)
    assert (waiting.parts, waiting.of, waiting.awaits_finish) == ((1, 2, 3, 4), 4, True)
    assert finish(engine, name).points == 1000
    whole = loader.load(engine, data, encoder, name=f"{name}-w", options=options)
    assert not differences(engine, name, whole.collection)
    # A job that is tried again finds everything done.
    assert load_part(engine, data, encoder, Part(1, 4), name=name) is None
    assert finish(engine, name).points == 1000
    more = write_data(tmp_path / "more", [*data.passages(), Passage("new", "one more")])
    reports = [load_part(engine, more, encoder, Part(n, 2), name=name) for n in (1, 2)]
    assert [(r.added, r.unchanged) for r in reports if r] == [(0, 500), (1, 500)]
    assert finish(engine, name).points == 1001
    assert load_part(engine, data, encoder, Part(1, 3), name=name) is not None  # other DATA again
    assert loader.load(engine, data, encoder, name=name).kept == 1
    assert not loaded_parts(engine, engine.resolve(name))  # all of it is there without the others


def test_what_is_refused(engine: Engine, name: str, data: Dataset, tmp_path: Path) -> None:
    encoder, first = HashEncoder(), Part(1, 2)
    with pytest.raises(CollectionNotFound, match=r"no version that was loaded in parts; run: "):
        finish(engine, name)
    with pytest.raises(DataError, match=r"part 1/2000 of .* is empty: it has 1,000 passages"):
        load_part(engine, data, encoder, Part(1, 2000), name=name)
    report = load_part(engine, data, encoder, first, name=name)
    assert report is not None
    other = write_data(tmp_path / "other", make_passages(900, seed=1))
    with pytest.raises(DataError, match=r"has part 1/2 of DATA \w{12}, .* is \w{12}; finish"):
        load_part(engine, other, encoder, Part(2, 2), name=name)
    with pytest.raises(DataError, match="is being loaded in 2 parts, this is one of 3; finish"):
        load_part(engine, data, encoder, Part(2, 3), name=name)
    with pytest.raises(CollectionMismatch, match="are being loaded with another bundle, into"):
        load_part(engine, data, HashEncoder(seed=1), Part(2, 2), name=name)
    with (
        Lease(engine, report.collection, key="lease 2/2"),
        pytest.raises(EngineLocked, match="being loaded"),
    ):
        load_part(engine, data, encoder, Part(2, 2), name=name)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as three:
        yield three


@pytest.mark.cluster
def test_three_processes_by_way_of_three_nodes(
    cluster: Cluster, data: Dataset, tiny_bundle: Path
) -> None:
    load = ["load", str(data.path), "--bundle", str(tiny_bundle), "--collection", "spread"]
    processes = [
        subprocess.Popen(
            [*INGEST, *load, "--part", f"{number}/3", "--url", node.url],
            env=os.environ | {"QDRANT_API_KEY": KEY},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, node in enumerate(cluster.nodes, 1)
    ]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    with cluster.nodes[0].connected() as engine:
        assert finish(engine, "spread").points == 1000
