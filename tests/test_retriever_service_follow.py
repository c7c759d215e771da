"""A service follows the name of its collection, with the bundle of each version."""

import shutil
import threading
from pathlib import Path

import pytest
from conftest import Server, make_bundle, make_passages, server_engine, write_data
from services import running_service, until

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.loading import loader
from two_tower.ingest.versions import versions as collections
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.data import Dataset, Query
from two_tower.retriever.collection.serving import served_lately
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.errors import EngineError
from two_tower.retriever.service.backend import Backend
from two_tower.retriever.service.config import ServiceConfig

PASSAGES = make_passages(40)
BODY = {"query": "storm on the river bank", "k": 3}


def test_a_service_follows_promote_and_rollback_without_dropping_a_request(
    server: Server, name: str, tmp_path: Path
) -> None:
    data = write_data(tmp_path / "DATA", PASSAGES)
    environment = {"QDRANT_API_KEY": server.api_key} if server.api_key else {}
    with server_engine(server, name) as engine:
        versions = []
        for folder, seed in (("old", 1), ("new", 2), ("lost", 3)):
            make_bundle(tmp_path / "bundles" / folder, seed=seed)
            bundle = ModelBundle.load(tmp_path / "bundles" / folder)
            versions.append(loader.load(engine, data, bundle, name=name).collection)
        old, new, lost = versions
        shutil.rmtree(tmp_path / "bundles" / "lost")
        collections.promote(engine, name, old)
        with running_service(
            tmp_path, tmp_path / "bundles/old", "--url", server.url, name=name, **environment
        ) as service:
            statuses: list[int] = []
            ended = threading.Event()

            def keep_searching() -> None:
                while not ended.is_set():
                    statuses.append(service.post("/search", BODY).status)

            def serves(collection: str) -> bool:
                health = service.get("/health").json
                return (health["collection"], health["is_current"]) == (collection, True)

            thread = threading.Thread(target=keep_searching)
            thread.start()
            try:
                assert serves(old)
                collections.promote(engine, name, new)
                until(lambda: serves(new))
                assert service.get("/health").json["fingerprint"][:8] == new[-8:]
                assert collections.rollback(engine, name) == old
                until(lambda: serves(old))
                until(lambda: bool(served_lately(engine, new)))
                with pytest.raises(EngineError, match="was searched by a service on") as failure:
                    collections.drop(engine, new)
                assert "\n" not in str(failure.value)
                collections.promote(engine, name, lost)  # its bundle is nowhere
                until(lambda: "note" in service.get("/health").json)
                health = service.get("/health").json
                assert health["collection"] == old
                assert f"'{name}' is now {lost}" in health["note"]
            finally:
                ended.set()
                thread.join()
            assert set(statuses) == {200}
            collections.drop(engine, old, yes=True)  # what it still searches
            for answer in (service.post("/search", BODY), service.post("/search", BODY)):
                assert (answer.status, answer.code) == (503, "bundle_missing")
                assert f"'{name}' is another version now" in answer.json["error"]["message"]
            collections.promote(engine, name, new)
            assert service.post("/search", BODY).status == 200  # at once
            assert serves(new)
        assert "Traceback" not in service.log.read_text()


def test_the_page_offers_queries_of_data(tmp_path: Path, tiny_bundle: Path) -> None:
    with DatasetWriter(tmp_path / "DATA", source="test") as writer:
        for passage in PASSAGES:
            writer.add_passage(passage)
        for number, text in enumerate(["storm  on the river", "x" * 61, "boats", "boats", "tide"]):
            writer.add_query(Query(f"q{number}", text))
    engine = connect(path=tmp_path / "edge")
    bundle, data = ModelBundle.load(tiny_bundle), Dataset.open(tmp_path / "DATA")
    collection = loader.load(engine, data, bundle, name="mine").collection
    engine.close()
    config = ServiceConfig(name=collection, bundle=tiny_bundle, path=tmp_path / "edge")
    backend = Backend(config)
    assert backend.describe()["examples"] == ["storm on the river", "boats", "tide"]
    backend.close()
