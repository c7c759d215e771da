"""One loader at a time, and one that outlives a restart of the server."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Node
from conftest import HashEncoder, make_passages

from two_tower.ingest.loading import lease as leases
from two_tower.ingest.loading import loader
from two_tower.ingest.loading.lease import Lease
from two_tower.ingest.loading.loader import LoadSettings
from two_tower.models.data import Dataset
from two_tower.retriever.collection.schema import read_metadata
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.errors import EngineError, EngineLocked, EngineUnavailable

MakeData = Callable[..., Dataset]
PASSAGES = make_passages(300)


def test_the_second_of_two_loaders_is_told_who_loads(
    rest_engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data, other = make_data(PASSAGES), make_data(PASSAGES[:9], name="OTHER")
    collection = loader.load(rest_engine, data, encoder, name=name).collection
    settled = read_metadata(rest_engine, collection)
    with Lease(rest_engine, collection):
        with pytest.raises(EngineLocked, match=rf"process {os.getpid()} on .*--take-over") as found:
            loader.load(rest_engine, other, encoder, name=name)
        assert "\n" not in str(found.value)
        assert read_metadata(rest_engine, collection) == settled
    assert loader.load(rest_engine, other, encoder, name=name).unchanged == 9
    assert "lease" not in (rest_engine.get_collection(collection).config.metadata or {})


def test_a_lease_of_a_dead_loader_is_in_nobodys_way(
    rest_engine: Engine, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(PASSAGES[:20])
    collection = loader.load(rest_engine, data, encoder, name=name).collection
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    note = {"owner": "x", "host": leases.platform.node(), "pid": ended.pid}
    elsewhere = {"owner": "x", "host": "elsewhere", "pid": 1}
    late, early = "2999-01-01T00:00:00+00:00", "2020-01-01T00:00:00+00:00"
    for dead in (note | {"until": late}, elsewhere | {"until": early}):
        rest_engine.update_collection(collection, metadata={"lease": dead})
        assert loader.load(rest_engine, data, encoder, name=name).unchanged == 20
    rest_engine.update_collection(collection, metadata={"lease": elsewhere | {"until": late}})
    with pytest.raises(EngineLocked, match="process 1 on elsewhere"):
        loader.load(rest_engine, data, encoder, name=name)
    taking = LoadSettings(take_over=True)
    assert loader.load(rest_engine, data, encoder, name=name, settings=taking).unchanged == 20


def test_a_loader_that_lost_its_lease_stops(
    rest_engine: Engine,
    name: str,
    encoder: HashEncoder,
    make_data: MakeData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leases, "RENEW_EVERY_S", 0.1)
    collection = loader.load(rest_engine, make_data(PASSAGES), encoder, name=name).collection
    with Lease(rest_engine, collection) as first, Lease(rest_engine, collection, take_over=True):
        time.sleep(0.5)
        with pytest.raises(EngineLocked, match="is being loaded by process"):
            first.check()


def test_an_embedded_folder_takes_one_loader(
    tmp_path: Path, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    engine, other = connect(path=tmp_path / "edge"), connect(path=tmp_path / "edge")
    collection = loader.load(engine, make_data(PASSAGES[:5]), encoder, name=name).collection
    assert "lease" not in (engine.get_collection(collection).config.metadata or {})
    with Lease(engine, collection), pytest.raises(EngineLocked, match="loaded in this process"):
        loader.load(other, make_data(PASSAGES), encoder, name=name)
    assert loader.load(other, make_data(PASSAGES), encoder, name=name).added
    engine.close()
    other.close()


def test_patience_outlives_a_restart_and_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node("one", tmp_path, [])
    node.start({})
    try:
        node.wait_until_ready()
        engine = connect(url=node.url)
        node.kill()
        start = time.monotonic()
        with pytest.raises(EngineUnavailable, match=r"gave up after 1 s: run the same command"):
            engine.with_retry(0.8).get_collections()
        assert time.monotonic() - start < 10
        back = threading.Timer(1.0, node.start, [{}])
        back.start()
        assert engine.with_retry().get_collections().collections == []
        assert "trying again for 120 s" in caplog.text
        back.join()
        with pytest.raises(EngineError, match=r"no collection|Not found"):
            engine.with_retry().get_collection("nope")  # at once: no time heals that
        engine.close()
    finally:
        node.kill()
