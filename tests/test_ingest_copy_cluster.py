"""From an embedded folder to a cluster of three real nodes and back; what a snapshot cannot do."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import KEY, Cluster, running_cluster
from conftest import HashEncoder, Server, make_passages, write_data
from typer.testing import CliRunner

from two_tower.ingest.cli import app
from two_tower.ingest.loading import loader
from two_tower.ingest.loading.verify import verify
from two_tower.ingest.versions.snapshots import restore, snapshot
from two_tower.models.data import Dataset
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.errors import EngineError

pytestmark = pytest.mark.cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_cluster(tmp_path / "cluster") as started:
        yield started


def loaded(where: Path, data: Dataset) -> str:
    engine = connect(path=where)
    collection = loader.load(engine, data, HashEncoder(), name="docs").collection
    engine.close()
    return collection


def test_one_command_to_a_cluster_and_one_back(
    cluster: Cluster, server: Server, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_data(tmp_path / "DATA", make_passages(300))
    collection = loaded(tmp_path / "edge", data)
    options = tmp_path / "cluster.yaml"
    options.write_text("collection: {shards: 6, replicas: 2, write_consistency: 1}\n")
    monkeypatch.setenv("QDRANT_API_KEY", KEY)
    here, there = ["--from-path", str(tmp_path / "edge")], ["--to-url", cluster.nodes[0].url]
    lines = good("copy", collection, *here, *there, "--options", str(options), "--promote")
    assert lines == [
        f"{collection}: 300 points sent, 0 were there; "
        "verified 300 content hashes, 60 points in full",
        f"docs -> {collection}",
    ]
    replicas = cluster.replicas(collection)
    assert len(replicas) == 12
    assert len({replica.peer for replica in replicas}) == 3

    back = ["--from-url", cluster.nodes[1].url, "--to-path", str(tmp_path / "back")]
    assert "300 points sent" in good("copy", "docs", *back)[0]
    engine = connect(path=tmp_path / "back")
    assert verify(engine, collection, data, HashEncoder()).points == 300
    engine.close()

    node = connect(url=cluster.nodes[2].url, api_key=KEY)
    with pytest.raises(EngineError, match=r"is spread over 3 nodes, .*: ingest copy"):
        snapshot(node, "docs", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    single = server.connect()
    loader.load(single, data, HashEncoder(), name=name)
    saved = snapshot(single, f"{name}{collection.removeprefix('docs')}", tmp_path).file
    with pytest.raises(EngineError, match=r"this is a cluster of 3 nodes; .*: ingest copy"):
        restore(node, saved)
    assert [c.name for c in node.get_collections().collections] == [collection]
    single.delete_collection(f"{name}{collection.removeprefix('docs')}")
    single.close()
    node.close()


def good(*arguments: str) -> list[str]:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()
