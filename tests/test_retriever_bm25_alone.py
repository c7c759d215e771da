"""Collections that were loaded without a bundle: BM25 alone, through every command."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Server, make_passages, server_engine
from judged import write_judged
from services import running_service
from typer.testing import CliRunner, Result

from two_tower.ingest.cli import app as ingest_app
from two_tower.ingest.loading import loader
from two_tower.ingest.loading.verify import repair, verify
from two_tower.ingest.versions.copying import copy
from two_tower.ingest.versions.snapshots import restore, snapshot
from two_tower.ingest.versions.versions import promote, rollback, versions
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.no_tower import NoTower
from two_tower.models.data import Dataset
from two_tower.models.errors import ConfigError
from two_tower.models.text.bm25 import Bm25Config
from two_tower.retriever import Retriever
from two_tower.retriever.cli import app as retriever_app
from two_tower.retriever.collection.bm25_vectors import EngineAnalyzer
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.errors import CollectionMismatch, QueryError
from two_tower.retriever.evaluation.systems import default_systems, system_names
from two_tower.retriever.search.settings import AnnSettings, SearchSettings

MakeData = Callable[..., Dataset]
PASSAGES = make_passages(150)
QUERIES = ("storm on the river bank", "bread from the oven", "iron bridge and car", "number77")


def opened(engine: Engine, name: str, **settings: object) -> Retriever:
    return Retriever(engine, name, NoTower(), settings=SearchSettings(**settings))  # type: ignore[arg-type]


def run(app: object, *words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [*map(str, words)])  # type: ignore[arg-type]
    assert result.exit_code == code, result.output + result.stderr
    return result


def formula(query: str, *, k: float, b: float, title_weight: float) -> dict[str, float]:
    """The BM25 score of each passage that has a term of the query, term by term.

    Its share of the title counts beside its places in the whole.
    """
    analyzer = EngineAnalyzer()
    counts = {p.passage_id: analyzer.term_counts(p.content) for p in PASSAGES}
    titles = {p.passage_id: analyzer.term_counts(p.title) for p in PASSAGES}
    mean = sum(sum(terms.values()) for terms in counts.values()) / len(counts)
    scores: dict[str, float] = {}
    for term in analyzer.term_counts(query):
        holders = [passage_id for passage_id, terms in counts.items() if term in terms]
        idf = math.log(1 + (len(counts) - len(holders) + 0.5) / (len(holders) + 0.5))
        for passage_id in holders:
            norm = 1 - b + b * sum(counts[passage_id].values()) / mean
            title = titles[passage_id]
            share = title.get(term, 0) / sum(title.values())
            tf = counts[passage_id][term] / norm + title_weight * share
            gain = idf * tf * (k + 1) / (tf + k)
            scores[passage_id] = scores.get(passage_id, 0.0) + gain
    return scores


def test_it_scores_by_the_formula(engine: Engine, name: str, make_data: MakeData) -> None:
    report = loader.load(engine, make_data(PASSAGES), NoTower(), name=name)
    retriever = opened(engine, report.collection)
    config = Bm25Config(**retriever.metadata.bm25)
    for query in QUERIES:
        hits = retriever.search(query, k=150)
        assert {h.passage_id: h.score for h in hits} == pytest.approx(
            formula(query, k=config.k, b=config.b, title_weight=20.0), rel=1e-5
        )
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert all([*hit.stages] == ["bm25"] for hit in hits)


def test_it_holds_no_dense_vector_and_equals_data(
    engine: Engine, name: str, make_data: MakeData
) -> None:
    data = make_data(PASSAGES)
    collection = loader.load(engine, data, NoTower(), name=name).collection
    assert verify(engine, collection, data, NoTower()).compared == 64
    assert repair(engine, collection, data, NoTower()).sent == 0
    assert loader.load(engine, data, NoTower(), name=name).unchanged == 150
    records, _ = engine.scroll(collection, limit=3, with_vectors=True)
    assert all(isinstance(r.vector, dict) and [*r.vector] == ["bm25"] for r in records)
    retriever = opened(engine, collection)
    hits = retriever.search("storm", k=5, filter={"kind": "note"})
    assert hits
    assert {hit.payload["kind"] for hit in hits} == {"note"}
    grouped = opened(engine, collection, group_by="kind").search(QUERIES[0], k=5)
    assert len({hit.payload["kind"] for hit in grouped}) == len(grouped)
    assert retriever.search("zzz qqq") == []
    assert len(retriever.search_many(QUERIES * 10, k=2)) == 40


def test_a_bundle_makes_a_new_version_and_back(
    engine: Engine, name: str, make_data: MakeData, tiny_bundle: Path
) -> None:
    data, bundle = make_data(PASSAGES), ModelBundle.load(tiny_bundle)
    plain = loader.load(engine, data, NoTower(), name=name).collection
    promote(engine, name, plain)
    trained = loader.load(engine, data, bundle, name=name).collection
    assert trained != plain
    with pytest.raises(CollectionMismatch, match="leave the bundle out, or run: ingest promote"):
        Retriever(engine, name, bundle, settings=SearchSettings())
    promote(engine, name, trained)
    assert Retriever(engine, name, bundle, settings=SearchSettings()).search(QUERIES[0], k=3)
    with pytest.raises(CollectionMismatch, match="was loaded with bundle"):
        opened(engine, name)
    assert rollback(engine, name) == plain
    assert opened(engine, name).search(QUERIES[0], k=3)
    assert {version.metadata.has_tower for version in versions(engine, name)} == {True, False}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (SearchSettings(legs={"dense": 10}), "ask for dense"),
        (SearchSettings(legs={"bm25": 10, "pca_8": 10}), "ask for pca_8"),
        (SearchSettings(diversity=0.5), "ask for diversity"),
        (SearchSettings(ann=AnnSettings(n_probe=2)), "has no clusters"),
    ],
)
def test_what_needs_a_tower_is_refused(
    edge_engine: Engine, name: str, make_data: MakeData, settings: SearchSettings, words: str
) -> None:
    collection = loader.load(edge_engine, make_data(PASSAGES), NoTower(), name=name).collection
    retriever = opened(edge_engine, collection)
    with pytest.raises(ConfigError, match=words):
        retriever.search("storm", settings=settings)
    with pytest.raises(ConfigError, match=words):
        retriever.with_settings(settings)
    with pytest.raises(QueryError, match="has BM25 alone"):
        retriever.similar("p1")


def test_copies_and_snapshots(
    edge_engine: Engine, rest_engine: Engine, name: str, make_data: MakeData, tmp_path: Path
) -> None:
    data = make_data(PASSAGES)
    collection = loader.load(edge_engine, data, NoTower(), name=name).collection
    promote(edge_engine, name)
    expected = opened(edge_engine, name).search(QUERIES[0], k=10)
    assert copy(edge_engine, rest_engine, name).sent == 150
    for engine in (edge_engine, rest_engine):
        saved = snapshot(engine, collection, tmp_path / type(engine).__name__)
        restored = restore(engine, saved.file, name=f"{name}_again").collection
        assert verify(engine, restored, data, NoTower()).points == 150
        hits = opened(engine, restored).search(QUERIES[0], k=10)
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected])
        engine.delete_collection(restored)


def test_every_command_works_or_refuses_in_one_line(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_judged(tmp_path / "DATA")
    planned = run(ingest_app, "load", data.path, "--collection", "words", "--dry-run")
    assert "120 added" in planned.stdout
    assert "MB on disk" in planned.stdout
    assert not (tmp_path / ".qdrant").exists()
    loaded = run(ingest_app, "load", data.path, "--collection", "words")
    assert "verified 120 points; 64 compared in full" in loaded.stdout
    # A bundle in the environment is for the collections that need one.
    monkeypatch.setenv("TWO_TOWER_BUNDLE", str(tiny_bundle))
    found = run(retriever_app, "search", "words", "storm", "-k", "2", "--json")
    assert json.loads(found.stdout)["stages_run"] == ["bm25"]
    monkeypatch.delenv("TWO_TOWER_BUNDLE")
    refused = run(retriever_app, "search", "words", "storm", "--bundle", tiny_bundle, code=1)
    assert "leave the bundle out" in refused.stderr
    assert "none" in run(ingest_app, "list").stdout
    assert "none: BM25 alone" in run(retriever_app, "info", "words").stdout
    (tmp_path / "more.jsonl").write_text('{"passage_id": "new", "text": "quokkas smile"}')
    assert "1 added" in run(ingest_app, "add", "words", "more.jsonl").stdout
    assert "quokkas smile" in run(retriever_app, "search", "words", "quokka", "-k", "1").stdout
    run(ingest_app, "delete", "words", "new")
    refused = run(retriever_app, "calibrate", "words", code=1)
    assert "no cosine to weigh" in refused.stderr
    verified = run(ingest_app, "verify", "words", "--data", data.path)
    assert "64 compared in full" in verified.stdout
    refused = run(retriever_app, "tune", "words", data.path, "--out", "tuned", code=1)
    assert "nothing to tune" in refused.stderr
    assert not (tmp_path / "tuned").exists()
    run(retriever_app, "evaluate", "words", data.path, "--out", "report")
    systems = json.loads((tmp_path / "report" / "report.json").read_text())["systems"]
    assert [row["system"] for row in systems] == ["tfidf", "bm25"]
    run(ingest_app, "load", data.path, "--collection", "trained", "--bundle", tiny_bundle)
    also = ("--also", "words", "--bundle", tiny_bundle, "--systems", "bm25,words/bm25")
    run(retriever_app, "evaluate", "trained", data.path, "--out", "both", *also)
    systems = json.loads((tmp_path / "both" / "report.json").read_text())["systems"]
    assert systems[0]["metrics"] == pytest.approx(systems[1]["metrics"], abs=0.02)  # ties
    with Retriever.open("words") as retriever:
        assert system_names(retriever) == ["tfidf", "rank_bm25", "bm25"]
        assert default_systems(retriever)[-1] == "bm25"
    (tmp_path / "options.yaml").write_text("collection: {clusters: 4}")
    words = ("load", data.path, "--collection", "other", "--options", "options.yaml")
    assert "add --bundle" in run(ingest_app, *words, code=1).stderr


def test_verify_finds_the_bundle_where_there_is_one(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_judged(tmp_path / "DATA").path
    run(ingest_app, "load", data, "--collection", "c", "--bundle", tiny_bundle)
    verified = run(ingest_app, "verify", "c", "--data", data)
    assert "64 compared in full" in verified.stdout


def test_it_is_searched_without_torch(tmp_path: Path, make_data: MakeData) -> None:
    program = (
        "import sys\n"
        "from two_tower import Retriever\n"
        "from two_tower.ingest.cli import app\n"
        "app(['load', sys.argv[1], '--collection', 'c'], standalone_mode=False)\n"
        "with Retriever.open('c') as retriever:\n"
        "    assert retriever.search('storm', k=1)\n"
        "heavy = {'torch', 'onnxruntime', 'two_tower.models.bundle.bundle'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    words = [sys.executable, "-c", program, str(make_data(PASSAGES).path)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_it_is_served(server: Server, name: str, make_data: MakeData, tmp_path: Path) -> None:
    key = {"QDRANT_API_KEY": server.api_key} if server.api_key else {}
    with server_engine(server, name) as engine:
        loader.load(engine, make_data(PASSAGES), NoTower(), name=name)
        promote(engine, name)
        with running_service(tmp_path, None, "--url", server.url, name=name, **key) as service:
            assert service.get("/health").json["status"] == "ready"
            assert service.get("/collection").json["modes"] == {"bm25": {}}
            expected = opened(engine, name).search(QUERIES[0], k=5)
            answer = service.post("/search", {"query": QUERIES[0], "k": 5}).json
            assert [h["passage_id"] for h in answer["hits"]] == [h.passage_id for h in expected]
            refused = service.post("/search", {"query": "x", "settings": {"legs": {"dense": 5}}})
            assert refused.status == 400
            assert service.post("/similar", {"passage_id": "p1"}).status == 400
