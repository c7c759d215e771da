"""A real service that keeps a log, and what is made of it: judgements, training, a comparison."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_passages
from prometheus_client.parser import text_string_to_metric_families
from services import NAME, Service, load, run_serve, running_service, until
from topics import QUICK, write_topics
from typer.testing import CliRunner

from two_tower.ingest.cli import app as ingest
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.cli import app as models
from two_tower.models.data import Dataset
from two_tower.retriever.cli import app as retriever

PASSAGES = make_passages(60)
QUERY = "storm on the river bank"
PERSON = "jane.doe@example.org"
KEYS = {
    *("application", "query_id", "client_id", "user_query", "object_id_field", "timestamp"),
    *("query_response_id", "query_response_hit_ids", "query_attributes"),
}
"""Of User Behavior Insights 1.3, query.request.schema.json; all of its keys."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    made = tmp_path_factory.mktemp("log")
    load(made, tiny_bundle, PASSAGES, path=made / "edge")
    (made / "bm25.yaml").write_text("search: {legs: {bm25: 100}, rerank: false}\n")
    return made


@pytest.fixture(scope="module")
def service(folder: Path, tiny_bundle: Path) -> Iterator[Service]:
    flags = ("--log", folder / "log", "--against", folder / "bm25.yaml", "--share", "50%")
    with running_service(folder, tiny_bundle, "--path", folder / "edge", *flags) as running:
        yield running


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    files = sorted(folder.glob(f"{kind}-*.jsonl"))
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def event(answer: Any, place: int, action: str = "click", **more: Any) -> dict[str, Any]:
    hit = {"object": {"object_id": answer["hits"][place]["passage_id"], "color": "red"}}
    about = {**hit, "position": {"ordinal": place + 1}, **more}
    names = {"action_name": action, "query_id": answer["query_id"]}
    return {**names, "event_attributes": about, "client_id": PERSON, "message": "not kept"}


def test_a_search_and_a_click_are_kept_without_the_person(service: Service, folder: Path) -> None:
    answer = service.post("/search", {"query": QUERY, "k": 3, "client_id": PERSON}).json
    assert service.post("/events", event(answer, 1)).status == 202
    until(lambda: rows(folder / "log", "events"))
    (search,) = [r for r in rows(folder / "log", "queries") if r["query_id"] == answer["query_id"]]
    assert set(search) <= KEYS
    assert search["user_query"] == QUERY
    assert search["query_response_hit_ids"] == [hit["passage_id"] for hit in answer["hits"]]
    about = search["query_attributes"]
    assert about["collection"].startswith(f"{NAME}--")
    assert about["k"] == 3
    assert about["stages_run"] == answer["stages_run"]
    (click,) = rows(folder / "log", "events")
    assert click["client_id"] == search["client_id"] != PERSON
    kept = {"object_id": answer["hits"][1]["passage_id"], "object_id_field": "passage_id"}
    assert click["event_attributes"] == {"object": kept, "position": {"ordinal": 2}}
    assert PERSON not in "".join(p.read_text() for p in (folder / "log").glob("*.jsonl"))
    assert service.get("/collection").json["keeps_log"] is True


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"query_id": "01234567-89ab-cdef-0123-456789abcdef"}, 404, "unknown_query"),
        ({"query_id": "anything"}, 404, "unknown_query"),
        ({"action_name": ""}, 422, "invalid_request"),
        ({"event_attributes": {}}, 422, "invalid_request"),
        ({"event_attributes": {"object": {"object_id": "p1"}, "rating": 99}}, 422, None),
        ({"client_id": "x" * 101}, 422, "invalid_request"),
        ({"other": 1}, 422, "invalid_request"),
    ],
)
def test_an_event_that_is_about_nothing_is_refused(
    service: Service, changes: dict[str, Any], status: int, code: str | None
) -> None:
    answer = service.post("/search", {"query": QUERY}).json
    refused = service.post("/events", {**event(answer, 0), **changes})
    assert refused.status == status, refused.text
    assert code in (None, refused.code)
    assert PERSON not in refused.text


@pytest.mark.parametrize(
    "body",
    [
        {"query": f"why does {PERSON} cough", "k": 0},
        {"query": f"why does {PERSON} cough" * 1000},
        {"query": {PERSON: 1}},
        {"query": f"{PERSON} \ud800"},
        {"query": "cough", "client_id": PERSON * 50},
        {"query": f"why does {PERSON} cough", "settings": {"legs": {"nope": 3}}},
        {"query": f"why does {PERSON} cough", "filter": {"nope": 3}},
    ],
)
def test_no_error_no_metric_and_no_line_of_the_service_repeats_a_query(
    service: Service, body: dict[str, Any]
) -> None:
    for answer in (service.post("/search", body), service.get(f"/search?q={PERSON}&k=0")):
        assert answer.status in (400, 422), answer.text
        assert PERSON not in answer.text
    service.post("/search", {"query": f"why does {PERSON} cough", "client_id": PERSON})
    assert PERSON not in service.get("/metrics").text
    assert PERSON not in service.log.read_text()


def test_half_of_the_searches_are_interleaved_and_compare_knows(
    service: Service, folder: Path
) -> None:
    before = len(rows(folder / "log", "queries"))
    # Words that passages share give the two ways different orders.
    for number in range(60):
        body = {"query": f"{QUERY} {PASSAGES[number].title}", "k": 6, "client_id": str(number)}
        answer = service.post("/search", body).json
        assert answer["hits"] == service.post("/search", body).json["hits"]  # and stays so
        assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3, 4, 5, 6]
    until(lambda: len(rows(folder / "log", "queries")) >= before + 120)
    new = rows(folder / "log", "queries")[before:]
    experiments = [r for r in new if "experiment" in r["query_attributes"]]
    assert 17 <= len(experiments) / 2 <= 43  # 30, standard deviation 3.9
    for row in experiments:
        about = row["query_attributes"]["experiment"]
        assert len(about["teams"]) == len(row["query_response_hit_ids"])
        assert about["teams"].count("other") == about["teams"].count("own") == 3
    for row in experiments:
        teams = row["query_attributes"]["experiment"]["teams"]
        won = row["query_response_hit_ids"][teams.index("other")]
        hit = {"object": {"object_id": won}, "position": {"ordinal": 1}}
        content = {"action_name": "answers", "query_id": row["query_id"], "event_attributes": hit}
        service.post("/events", content)
    last = experiments[-1]["query_id"]
    until(lambda: last in [row["query_id"] for row in rows(folder / "log", "events")])
    with_settings = service.post("/search", {"query": QUERY, "settings": {"rerank": False}}).json
    until(lambda: rows(folder / "log", "queries")[-1]["query_id"] == with_settings["query_id"])
    assert "experiment" not in rows(folder / "log", "queries")[-1]["query_attributes"]
    done = CliRunner().invoke(retriever, ["compare", str(folder / "log")])
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    wins, losses, ties = map(int, re.findall(r"(\d+) (?:wins|losses|ties)", said))
    assert losses + ties <= 1  # what another test clicked
    assert wins >= len(experiments) / 2
    assert "bm25.yaml" in said
    assert "is better: it wins" in said


def test_a_log_that_cannot_be_written_stops_no_search(folder: Path, tiny_bundle: Path) -> None:
    """A file in the folder's place is what nobody can write, whoever runs the tests."""
    (folder / "blocked").write_text("")
    load(folder / "second", tiny_bundle, PASSAGES[:5], path=folder / "second" / "edge")
    flags = ("--path", folder / "second" / "edge", "--log", folder / "blocked" / "log")
    with running_service(folder, tiny_bundle, *flags) as service:
        for _ in range(5):
            answer = service.post("/search", {"query": f"{PERSON} storm"})
            assert answer.status == 200
            assert service.post("/events", event(answer.json, 0)).status == 202
        until(lambda: records(service) == {"lost": 10.0})
        said = service.log.read_text()
        assert said.count("searches go on") == 1
        assert PERSON not in said
        (folder / "blocked").unlink()
        service.post("/search", {"query": QUERY})
        until(lambda: rows(folder / "blocked" / "log", "queries"))
        assert "written again; 10 records are lost" in service.log.read_text()


def records(service: Service) -> dict[str, float]:
    families = text_string_to_metric_families(service.get("/metrics").text)
    return {
        sample.labels["outcome"]: sample.value
        for family in families
        for sample in family.samples
        if sample.name == "retriever_log_records_total"
    }


def test_without_a_log_nothing_is_kept(folder: Path, tiny_bundle: Path) -> None:
    load(folder / "third", tiny_bundle, PASSAGES[:5], path=folder / "third" / "edge")
    with running_service(folder, tiny_bundle, "--path", folder / "third" / "edge") as service:
        answer = service.post("/search", {"query": QUERY, "client_id": PERSON}).json
        assert "query_id" not in answer
        refused = service.post("/events", event({**answer, "query_id": "x"}, 0))
        assert (refused.status, refused.code) == (403, "no_log")
        assert service.get("/collection").json["keeps_log"] is False


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--against", "x.yaml"), "add --log FOLDER"),
        (("--log", "log", "--against", "x", "--share", "0%"), "expected more than 0%"),
        (("--log", "log", "--against", "x", "--share", "half"), "expected more than 0%"),
    ],
)
def test_flags_that_fit_nothing_are_refused_in_a_line(flags: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(retriever, ["serve", NAME, *flags])
    assert done.exit_code == 1, done.output
    assert message in " ".join(done.output.split())


def test_another_way_that_is_nowhere_is_refused_at_the_start(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    load(tmp_path, tiny_bundle, PASSAGES[:2], path=tmp_path / "edge")
    at = ("--path", tmp_path / "edge", "--bundle", tiny_bundle, "--log", tmp_path / "log")
    done = run_serve(NAME, *at, "--against", "nowhere")
    assert done.returncode == 1, done.stderr
    assert "'nowhere', which is no settings file, no bundle and no collection" in done.stderr
    assert "Traceback" not in done.stderr


def four(_: str) -> list[str]:
    return [passage.passage_id for passage in PASSAGES[:4]]


def write_log(
    log: Path,
    clicks: list[tuple[str, str, str]],
    *,
    hits: Callable[[str], list[str]] = four,
) -> None:
    """Write searches, each with a click: (query, person, passage)."""
    log.mkdir()
    queries, events = [], []
    for number, (query, person, passage_id) in enumerate(clicks):
        queries.append(
            {
                "query_id": str(number),
                "user_query": query,
                "client_id": person,
                "query_response_hit_ids": hits(passage_id),
                "query_attributes": {"collection": "pets--0123"},
            }
        )
        thing = {"object": {"object_id": passage_id}}
        events.append({"query_id": str(number), "action_name": "click", "event_attributes": thing})
    for name, content in (("queries", queries), ("events", events)):
        (log / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))


def prepare(*words: str | Path) -> Any:
    return CliRunner().invoke(ingest, ["prepare", *map(str, words)])


def test_a_log_becomes_judgements(folder: Path, tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "clicks"
    write_log(
        log,
        [
            ("Where is the boat", "ann", "p2"),
            ("where  is the BOAT", "bob", "p2"),
            ("what is bread", "ann", "p1"),  # once is not enough
            ("who sails", "ann", "p9"),  # was not shown
        ],
    )
    with (log / "events.jsonl").open("a") as file:
        file.write('{"query_id": "77", "action_name": "click", "event_attributes": ')
        file.write('{"object": {"object_id": "p1"}}}\n{"query_id": "0", "acti')
    done = prepare(log, "--corpus", folder / "DATA", "--out", out)
    assert done.exit_code == 0, done.output
    data = Dataset.open(out)
    assert "Warning" not in done.output
    assert "--start BUNDLE --only fusion,cross" in done.output
    assert data.manifest["source"]["kind"] == "clicks"
    assert data.passage_count == len(PASSAGES)
    (query,) = data.queries("train")
    (qrel,) = data.qrels("train")
    assert data.splits == ["train"]
    assert (query.text, qrel.passage_id, qrel.relevance) == ("Where is the boat", "p2", 1)
    assert data.manifest["counts"]["rejected"] == {
        "event: its search did not show that passage": 1,
        "event: its search is not in the log": 1,
        "line: cut off": 1,
    }
    assert data.manifest["counts"]["left_out"] == {"queries whose clicks say too little": 2}


def test_bad_logs_are_refused_in_a_line(folder: Path, tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "clicks"
    write_log(log, [("a boat", person, "p2") for person in ("ann", "bob")])
    done = prepare(log, "--out", out)
    assert done.exit_code == 1
    assert "--corpus DATA" in done.output
    done = prepare(folder / "DATA", "--out", out, "--corpus", folder / "DATA")
    assert done.exit_code == 1
    rows_file = tmp_path / "rows.csv"
    rows_file.write_text("query,passage\nwhat is a cat,a cat is an animal\n")
    assert prepare(rows_file, "--out", tmp_path / "other").exit_code == 0
    done = prepare(log, "--out", out, "--corpus", tmp_path / "other")
    assert done.exit_code == 1
    assert "is of another collection (pets--0123): 1 of 1 clicked passages" in " ".join(
        done.output.split()
    )
    assert not out.exists()


def test_clicks_teach_a_bundle_that_keeps_its_vectors(tmp_path: Path) -> None:
    recipe = {**QUICK, "fusion": {"folds": 2}, "cross": {"epochs": 1}}
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(recipe))

    def learn(data: Path, out: Path, *flags: str | Path) -> ModelBundle:
        words = ["train", data, "--out", out, "--config", tmp_path / "quick.yaml", *flags]
        done = CliRunner().invoke(models, list(map(str, words)))
        assert done.exit_code == 0, done.output
        return ModelBundle.load(out)

    corpus = write_topics(tmp_path / "DATA", topics=20, dev=False)
    before = learn(corpus.path, tmp_path / "before", "--only", "query")
    answers = {qrel.query_id: qrel.passage_id for qrel in corpus.qrels("train")}
    log = tmp_path / "log"
    clicks = [(q.text, who, answers[q.query_id]) for q in corpus.queries() for who in ("a", "b")]
    hits = [passage.passage_id for passage in corpus.passages()]
    write_log(log, clicks, hits=lambda passage_id: [passage_id, *hits[:5]])
    assert prepare(log, "--corpus", corpus.path, "--out", tmp_path / "clicks").exit_code == 0
    made = Dataset.open(tmp_path / "clicks")
    assert {q.text for q in made.queries("train")} == {q.text for q in corpus.queries()}
    start = ("--start", tmp_path / "before", "--only", "fusion,cross")
    after = learn(tmp_path / "clicks", tmp_path / "after", *start)
    assert after.fingerprint == before.fingerprint
    assert set(after.extras) == {"fusion.json"}  # too few for a cross-scorer
