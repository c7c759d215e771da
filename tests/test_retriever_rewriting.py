"""HyDE: passages that a language model imagines, through every door, and what happens without."""

import csv
import json
import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import HashEncoder, free_ports, make_passages, write_data
from endpoints import Asked, Reply, running_endpoint
from judged import load_judged, write_judged
from services import load, running_service
from typer.testing import CliRunner, Result

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.loading import loader
from two_tower.models.bundle.no_tower import NoTower
from two_tower.models.data import Dataset, Qrel, Query
from two_tower.models.errors import ConfigError
from two_tower.retriever.cli import app
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.search import rewriting
from two_tower.retriever.search.retriever import Retriever
from two_tower.retriever.search.rewriting import AnswerWriter
from two_tower.retriever.search.settings import RewriteSettings, SearchSettings, read_settings
from two_tower.retriever.tuning.choice import changes, count_changes

PASSAGES = make_passages(120)
QUERY = "storm on the river bank"


def run(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [*map(str, words)])
    assert result.exit_code == code, result.output + result.stderr
    return result


@pytest.fixture
def retriever(edge_engine: Engine, encoder: HashEncoder, tmp_path: Path, name: str) -> Retriever:
    report = loader.load(edge_engine, write_data(tmp_path / "DATA", PASSAGES), encoder, name=name)
    bundle: object = encoder
    return Retriever(edge_engine, report.collection, bundle, settings=SearchSettings())  # type: ignore[arg-type]


def by(url: str, **more: object) -> SearchSettings:
    return SearchSettings(rewrite=RewriteSettings(llm=url, model="m", **more))  # type: ignore[arg-type]


def test_a_real_model_moves_the_tower_to_the_mean(
    retriever: Retriever, encoder: HashEncoder, gemma_url: str
) -> None:
    settings = by(gemma_url, within_s=60.0)
    assert settings.rewrite is not None
    (passage,) = AnswerWriter(settings.rewrite)(QUERY)  # the likeliest text: always the same
    assert passage
    vectors = encoder.encode_passages([QUERY, passage])
    mean = vectors.sum(0) / np.linalg.norm(vectors.sum(0))
    cosines = encoder.encode_passages([p.content for p in PASSAGES]) @ mean
    result = retriever.explain(QUERY, settings=settings)
    assert result.stages_run == ("rewrite", "dense", "bm25", "rerank")
    assert [*result.timings_ms][:2] == ["rewrite", "encode"]
    for hit in result.hits:
        expected = float(cosines[int(hit.passage_id[1:])])
        assert hit.stages["rerank"].score == pytest.approx(expected, abs=1e-5)


def test_several_passages_and_a_prompt_of_your_own(
    retriever: Retriever, gemma_url: str, tmp_path: Path
) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("The sea is wide.\nMore about {query}:")
    settings = by(gemma_url, within_s=60.0, passages=3, prompt=str(prompt))
    assert settings.rewrite is not None
    texts = AnswerWriter(settings.rewrite)(QUERY)
    assert len(texts) == 3
    assert retriever.explain(QUERY, settings=settings).stages_run[0] == "rewrite"


def test_search_evaluate_and_tune_read_it_from_a_settings_file(
    tiny_bundle: Path, gemma_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewriting, "MAX_TOKENS", 12)
    with DatasetWriter(tmp_path / "DATA", source="six") as writer:
        for passage in PASSAGES:
            writer.add_passage(passage)
        for number in range(6):
            writer.add_query(Query(f"q{number}", " ".join(PASSAGES[number].text.split()[:3])))
            writer.add_qrel(Qrel(f"q{number}", f"p{number}", 1, "dev"))
    data, edge = Dataset.open(tmp_path / "DATA"), tmp_path / "edge"
    load_judged(data, tiny_bundle, edge)
    rewrite = f"{{llm: '{gemma_url}', model: gemma, within_s: 60}}"
    (tmp_path / "hyde.yaml").write_text(f"search: {{rewrite: {rewrite}}}\n")
    flags = ("--bundle", tiny_bundle, "--path", edge, "--settings", tmp_path / "hyde.yaml")
    done = run("search", "pages", QUERY, "--json", *flags)
    assert json.loads(done.stdout)["stages_run"][0] == "rewrite"
    explained = run("search", "pages", QUERY, "--explain", *flags)
    assert "stages: rewrite, dense, bm25, rerank" in explained.stdout
    assert "ms: rewrite " in explained.stdout
    words = ("evaluate", "pages", data.path, "--out", tmp_path / "report", *flags)
    run(*words, "--systems", "bm25,rerank,hyde")
    rows = json.loads((tmp_path / "report" / "report.json").read_text())["systems"]
    bm25, rerank, hyde = rows
    assert [bm25["system"], rerank["system"], hyde["system"]] == ["bm25", "rerank", "hyde"]
    assert hyde["p95_ms"] > rerank["p95_ms"]
    tuned = ("tune", "pages", data.path, "--out", tmp_path / "tuned", *flags)
    run(*tuned, "--sweeps", "fusion", "--goal", "max recall@10")
    with (tmp_path / "tuned" / "tune.csv").open() as file:
        measured = {row["sweep"]: row for row in csv.DictReader(file)}
    assert measured["rewrite"]["setting"] == "rewritten by gemma, both legs 100"
    assert float(measured["rewrite"]["p50_ms"]) > 0
    again = run(*words, "--systems", "rerank,hyde")
    from_cache = "answers came from the cache, so their times are too short"
    assert from_cache in again.stderr
    page = (tmp_path / "report" / "report.md").read_text()
    assert re.search(rf"^hyde: \d+ {from_cache}\.", page, re.MULTILINE)


def silent(asked: Asked) -> Reply:
    time.sleep(4.0)
    return 200, {"choices": [{"index": 0, "text": PASSAGES[3].content}]}


def test_a_late_answer_is_not_waited_for_and_not_lost(
    retriever: Retriever, caplog: pytest.LogCaptureFixture
) -> None:
    plain = retriever.search(QUERY)
    with running_endpoint(silent) as url:
        settings = by(url, within_s=2.5)
        late = retriever.explain(QUERY, settings=settings)
        assert late.skipped == ("rewrite",)
        assert 2490 <= late.timings_ms["rewrite"] < 3900
        assert late.hits == plain
        assert "no answer within 2.5 s" in caplog.text
        time.sleep(2.5)
        after = retriever.explain(QUERY, settings=settings)
        assert after.skipped == ()
        assert after.stages_run[0] == "rewrite"
        assert after.timings_ms["rewrite"] < 1000


def test_a_budget_shortens_the_wait(retriever: Retriever) -> None:
    with running_endpoint(silent) as url:
        result = retriever.explain(QUERY, settings=by(url, within_s=30.0), budget_ms=300)
        assert result.timings_ms["rewrite"] < 3900
        assert "rewrite" in result.skipped
        assert result.hits


FAILURES = {
    "a wrong key": ((401, {"error": "bad key sk-123"}), "set TWO_TOWER_API_KEY"),
    "an unknown model": ((404, {"error": "no model m"}), "no such path"),
    "another form": ((200, {"hello": 1}), "gave no list of texts"),
    "no JSON": ((200, b"<html>"), "gave no list of texts"),
    "no text": ((200, {"choices": []}), "empty list of choices"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_service_that_fails_is_done_without(
    kind: str, retriever: Retriever, caplog: pytest.LogCaptureFixture
) -> None:
    reply, words = FAILURES[kind]
    with running_endpoint(lambda asked: reply) as url:
        settings = by(url)
        plain = retriever.search_many(["river", "oven bread", QUERY])
        results = retriever.explain_many(["river", "oven bread", QUERY], settings=settings)
        assert [result.hits for result in results] == plain
        assert all(result.skipped == ("rewrite",) for result in results)
        assert caplog.text.count(words) == 1  # told once, not for every query


def test_no_server_is_done_without_by_a_search_and_refused_by_evaluate(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    data, edge = write_judged(tmp_path / "DATA"), tmp_path / "edge"
    load_judged(data, tiny_bundle, edge)
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    (tmp_path / "hyde.yaml").write_text(f"search: {{rewrite: {{llm: '{url}', model: m}}}}\n")
    flags = ("--bundle", tiny_bundle, "--path", edge, "--settings", tmp_path / "hyde.yaml")
    done = run("search", "pages", QUERY, "--json", *flags)
    assert json.loads(done.stdout)["skipped"] == ["rewrite"]
    assert done.stderr.startswith("searching without imagined passages: ")
    assert done.stderr.count("\n") == 1
    refused = run("evaluate", "pages", data.path, "--out", tmp_path / "r", *flags, code=1)
    assert url in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("rewrite", "message"),
    [
        ("{model: m}", "search.rewrite.llm is missing"),
        ("{llm: 'http://localhost:1'}", "search.rewrite.model is missing"),
        ("{llm: nonsense, model: m}", "expected a URL"),
        ("{llm: 'http://key@localhost:1', model: m}", "holds a key"),
        ("{llm: 'http://localhost:1', model: m, passages: 0}", "expected 1 to 16"),
        ("{llm: 'http://localhost:1', model: m, within_s: 0}", "expected above 0"),
        ("{llm: 'http://localhost:1', model: m, prompt: none.txt}", "cannot be read"),
        ("{llm: 'http://localhost:1', model: m, prompt: bad.txt}", "has no {query}"),
        ("{llm: 'http://localhost:1', model: m, passage: 2}", "did you mean"),
    ],
)
def test_bad_settings_are_one_line(
    rewrite: str, message: str, retriever: Retriever, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.txt").write_text("write a passage about {question}")
    (tmp_path / "s.yaml").write_text(f"search: {{rewrite: {rewrite}}}\n")
    with pytest.raises(ConfigError) as refused:
        retriever.with_settings(read_settings(tmp_path / "s.yaml"))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_recommended_rewrite_is_written_and_read_again(tmp_path: Path) -> None:
    chosen = replace(by("http://localhost:1", passages=2), legs={"dense": 50, "bm25": 20})
    plain = changes(chosen, SearchSettings())
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"search": plain}))
    assert read_settings(tmp_path / "s.yaml") == chosen
    assert count_changes(chosen, SearchSettings()) == 2


def test_words_alone_ask_nobody(
    edge_engine: Engine, retriever: Retriever, tmp_path: Path, name: str
) -> None:
    asked = []
    lexical = SearchSettings(legs={"bm25": 50}, rerank=False)
    with running_endpoint(lambda one: asked.append(one) or (200, {"choices": []})) as url:
        settings = replace(lexical, rewrite=by(url).rewrite)
        assert retriever.explain(QUERY, settings=settings).stages_run == ("bm25",)
        assert not asked
        data = write_data(tmp_path / "DATA", PASSAGES)
        words = loader.load(edge_engine, data, NoTower(), name=f"{name}_words").collection
        with pytest.raises(ConfigError, match="ask for rewrite, and the collection has BM25"):
            Retriever(edge_engine, words, NoTower(), settings=settings)


def test_many_queries_are_asked_a_few_at_a_time(retriever: Retriever) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def reply(asked: Asked) -> Reply:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with lock:
            now -= 1
        return 200, {"choices": [{"index": 0, "text": "river"}]}

    with running_endpoint(reply) as url:
        queries = [f"number{n}" for n in range(40)]
        results = retriever.explain_many(queries, settings=by(url, within_s=20.0))
        assert all(result.stages_run[0] == "rewrite" for result in results)
        assert most <= rewriting.THREADS


def test_a_function_may_have_a_limit_too(retriever: Retriever) -> None:
    def slow(query: str) -> list[str]:
        time.sleep(0.5)
        return [PASSAGES[3].content]

    limited = retriever.with_rewriter(slow, within_s=0.1)
    assert limited.explain(QUERY).skipped == ("rewrite",)
    assert retriever.with_rewriter(slow).explain(QUERY).stages_run[0] == "rewrite"


def test_a_stranger_names_no_url(tiny_bundle: Path, tmp_path: Path, gemma_url: str) -> None:
    load(tmp_path, tiny_bundle, PASSAGES, path=tmp_path / "edge")
    rewrite = f"{{llm: '{gemma_url}', model: gemma, within_s: 90}}"
    (tmp_path / "hyde.yaml").write_text(f"search: {{rewrite: {rewrite}}}\n")
    flags = ("--path", tmp_path / "edge", "--settings", tmp_path / "hyde.yaml", "--timeout", "100")
    with running_service(tmp_path, tiny_bundle, *flags) as service:
        answer = service.post("/search", {"query": QUERY}).json
        assert answer["stages_run"][0] == "rewrite"
        assert answer["timings_ms"]["rewrite"] > 0
        asked = {"query": "x", "settings": {"rewrite": {"llm": "http://10.0.0.1", "model": "m"}}}
        assert service.post("/search", asked).status == 422
