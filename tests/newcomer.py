"""What somebody does in the first hour with the installed package, step by step.

`test_newcomer.py` runs this as a program of its own, in an empty folder. It has the commands and
`import two_tower`, and knows nothing of the repository. The argument is the URL of a Qdrant server.
"""

import csv
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from typing import Any

import two_tower
from two_tower import Collection, Passage, Retriever

URL = sys.argv[1]
TOOLS = ("whip", "spanner", "lever", "cutter", "pump", "press", "puller", "stand", "gauge", "file")
TOOLS += ("brush", "clamp")
PLACES = ("hub", "wheel", "brake", "saddle")
SMALL = "tower: {dim: 16}\npretrain: {epochs: 1}\nlabelled: {epochs: 2}\n"
SINCE_DECEMBER = {"added": {"gte": "2025-12-01"}}
KEY = "a-key-of-some-length"

steps: list[Callable[[], None]] = []


def step(function: Callable[[], None]) -> Callable[[], None]:
    steps.append(function)
    return function


def run(*words: str | Path) -> str:
    """Type a command that succeeds; return what it prints."""
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def refusal(*words: str | Path) -> str:
    """Type a command that is refused; return the one line that says why."""
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1, (words, done.stdout, done.stderr)
    (line,) = done.stderr.strip().splitlines()
    return line


def ids(*words: str) -> list[str]:
    """Return the passages that `retriever search …` finds."""
    return [
        hit["passage_id"]
        for hit in json.loads(run("retriever", "search", *words, "--json"))["hits"]
    ]


def found(query: str, **options: Any) -> list[str]:
    """Return the passages that `Retriever.search` finds in a collection opened for it."""
    where = {name: options.pop(name) for name in ("url",) if name in options}
    with Retriever.open(options.pop("name", "tools"), **where) as engine:
        return [hit.passage_id for hit in engine.search(query, **options)]


def tool_rows() -> Iterator[dict[str, Any]]:
    for number, (tool, place) in enumerate((t, p) for t in TOOLS for p in PLACES):
        yield {
            "id": f"t{number}",
            "title": f"{place} {tool}",
            "text": f"A {tool} for work at the {place}. Workshops keep number {number} on a board.",
            "price": f"{2 + number * 1.5:.2f}",
            "in_stock": "true" if number % 3 else "false",
            "added": f"2025-{1 + number % 12:02}-01",
            "place": place,
        }


@step
def rows_without_labels_become_data() -> None:
    with Path("tools.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(next(tool_rows())))
        table.writeheader()
        table.writerows(tool_rows())
    said = run("ingest", "prepare", "tools.csv", "--out", "tools")
    assert "passages      48" in said
    assert "rejected      0" in said


@step
def words_alone_search_them() -> None:
    assert "tools -> tools--" in run("ingest", "load", "tools", "--collection", "tools")
    assert ids("tools", "cutter for a brake cable")[0] == "t14"


@step
def a_hit_is_json() -> None:
    with Retriever.open("tools") as engine:
        (hit,) = engine.search("saddle clamp", k=1)
        assert json.loads(json.dumps(hit.to_dict()))["payload"]["place"] == "saddle"
        assert repr(hit).startswith("Hit(rank=1, passage_id='t47'")


@step
def fields_have_the_types_of_their_values() -> None:
    with Retriever.open("tools") as engine:
        cheap = engine.search("work", k=48, filter={"in_stock": True, "price": {"lt": 10}})
        assert {hit.passage_id for hit in cheap} == {"t1", "t2", "t4", "t5"}
        assert dict(engine.values("in_stock")) == {True: 32, False: 16}
    assert ids("tools", "work", "--filter", "in_stock=false", "--filter", "price>=69.5") == ["t45"]


@step
def dates_are_declared() -> None:
    refused = refusal("retriever", "search", "tools", "work", "--filter", "added>=2025-12-01")
    assert "added: datetime" in refused
    Path("options.yaml").write_text("collection:\n  indexes: {added: datetime}\n")
    run("ingest", "load", "tools", "--collection", "tools", "--options", "options.yaml")
    assert set(found("work", k=48, filter=SINCE_DECEMBER)) == {"t11", "t23", "t35", "t47"}


@step
def many_queries_are_answered_at_once() -> None:
    with Retriever.open("tools") as engine:
        first, second = engine.search_many(["saddle clamp", "hub file"], k=100)
        assert (first[0].passage_id, second[0].passage_id) == ("t47", "t36")
        assert len(first) <= 48
        result = engine.explain("saddle clamp", k=2)
        assert [hit.rank for hit in result.hits] == [1, 2]
        assert result.stages_run == ("bm25",)


@step
def fields_and_info_say_what_is_there() -> None:
    said = run("retriever", "fields", "tools", "place")
    assert {*said.split()} >= {"hub", "wheel", "brake", "saddle", "12"}
    with Retriever.open("tools") as engine:
        assert (engine.size, engine.bundle.dim) == (48, 0)


@step
def a_tower_is_learnt_without_labels() -> None:
    Path("small.yaml").write_text(SMALL)
    run("models", "train", "tools", "--out", "first", "--config", "small.yaml")
    said = run("ingest", "load", "tools", "--collection", "tools", "--bundle", "first")
    assert "tools -> tools--" in said
    assert found("cutter for a brake cable")[0] == "t14"
    assert len(found("work", k=48, filter=SINCE_DECEMBER)) == 4
    assert str(Path("first").resolve()) in run("retriever", "info", "tools")


@step
def neighbours_are_found() -> None:
    said = run("retriever", "similar", "tools", "t14", "-k", "3", "--json")
    assert len(json.loads(said)["hits"]) == 3
    with Retriever.open("tools") as engine:
        assert len(engine.similar("t14", k=3)) == 3


@step
def a_passage_is_added_in_python() -> None:
    note = Passage("n1", "Unscrews the bottom bracket.", "Socket", fields={"place": "frame"})
    with Collection.open("tools") as collection:
        assert len(collection) == 48
        assert "1 added" in str(collection.add([note]))
        assert len(collection) == 49
    time.sleep(1)
    assert found("bottom bracket")[0] == "n1"
    assert found("bottom bracket", filter={"place": "frame"}) == ["n1"]


@step
def passages_are_added_from_a_file() -> None:
    Path("more.csv").write_text(
        "id,title,text,price,in_stock,added,place\n"
        "n2,Bench,A bench for gluing tubular tyres.,99,true,2026-01-01,17\n"
    )
    assert "1 added" in run("ingest", "add", "tools", "more.csv")
    assert found("tubular")[0] == "n2"
    assert found("gluing", filter={"price": {"gt": 98.5}, "in_stock": True, "place": "17"}) == [
        "n2"
    ]


@step
def a_text_is_changed() -> None:
    bench = Passage("n2", "A bench for waxing skis.", "Bench", fields={"place": "wheel"})
    with Retriever.open("tools") as engine, Collection.open("tools") as collection:
        collection.add([bench])
        assert engine.search("waxing skis", k=1)[0].passage_id == "n2"
        assert all("tubular" not in hit.text for hit in engine.search("tubular", k=50))


@step
def passages_are_deleted() -> None:
    assert "1 of 2 deleted" in run("ingest", "delete", "tools", "n2", "nobody")
    with Retriever.open("tools") as engine:
        assert engine.count(["n1", "n2", "t0"]) == 2
        assert "n2" not in [hit.passage_id for hit in engine.search("waxing skis", k=50)]
    assert "49" in run("ingest", "list")


@step
def a_load_brings_back_what_data_has() -> None:
    with Collection.open("tools") as collection:
        assert collection.delete(["t0"]) == 1
    said = run("ingest", "load", "tools", "--collection", "tools", "--bundle", "first", "--prune")
    assert "1 added" in said
    assert "1 pruned" in said
    assert "verified 48" in run("ingest", "verify", "tools", "--data", "tools")


@step
def fifty_labels_come_in_a_second_file() -> None:
    rows = [(row["title"], row["id"]) for row in tool_rows()]
    rows += [("something to cut cables", "t14"), ("air for a tyre", "t17")]
    with Path("labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("query", "passage_id"), *rows])
    prepare = ["ingest", "prepare", "tools.csv", "--out", "labelled", "--queries", "labels.csv"]
    assert "queries       50 (0 without judgement)" in run(*prepare, "--dev-fraction", "0.3")
    splits = two_tower.Dataset.open("labelled").manifest["counts"]["labelled_queries"]
    assert splits["train"] + splits["dev"] == 50


@step
def a_bundle_is_trained_from_the_first() -> None:
    train = ["models", "train", "labelled", "--out", "second", "--config", "small.yaml"]
    assert run(*train, "--start", "first").startswith("second ")
    bundle = two_tower.ModelBundle.load("second")
    assert bundle.card["data"]["counts"]["queries"] == 50


@step
def both_versions_are_evaluated() -> None:
    load = ["ingest", "load", "labelled", "--collection", "tools", "--bundle", "second"]
    run(*load, "--no-promote")
    new = "tools--" + two_tower.ModelBundle.load("second").fingerprint[:8]
    flags = ["--split", "dev", "--systems", "bm25,rerank", "--out", "report"]
    assert "rerank" in run("retriever", "evaluate", new, "labelled", *flags)
    report = json.loads(Path("report", "report.json").read_text())
    assert report["systems"][0]["metrics"]["recall@10"] > 0.9
    with Retriever.open("tools") as engine:
        assert two_tower.evaluate(engine, "labelled", systems=["bm25"]).collection != new


@step
def an_open_retriever_follows_promote_and_rollback() -> None:
    first, second = (two_tower.ModelBundle.load(name).fingerprint for name in ("first", "second"))
    with (
        Retriever.open("tools", follow_s=0.1) as engine,
        two_tower.connect(path=".qdrant") as qdrant,
    ):
        assert engine.bundle.fingerprint == first
        for turn, fingerprint in ((two_tower.promote, second), (two_tower.rollback, first)):
            turn(qdrant, "tools")
            time.sleep(0.2)
            assert engine.search("brake cutter", k=1)[0].passage_id == "t14"
            assert engine.bundle.fingerprint == fingerprint


@step
def the_commands_switch_too() -> None:
    second = two_tower.ModelBundle.load("second").fingerprint[:8]
    assert run("ingest", "promote", "tools").strip().endswith(second)
    assert found("brake cutter")[0] == "t14"
    assert second not in run("ingest", "rollback", "tools").splitlines()[-1]
    with two_tower.connect(path=".qdrant") as qdrant:
        assert two_tower.promote(qdrant, "tools").endswith(second)


@step
def a_notebook_cell_runs_twice() -> None:
    cell = (
        "from two_tower import Retriever\n"
        "engine = Retriever.open('tools')\n"
        "hits = engine.search('hub spanner', k=3)\n"
    )
    names: dict[str, Any] = {}
    for _ in range(2):
        exec(cell, names)
        assert names["hits"][0].passage_id == "t4"
    del names["engine"]
    assert "tools--" in run("ingest", "list")  # the folder is free again


@step
def one_process_has_two_collections() -> None:
    Path("notes").mkdir()
    for number in range(12):
        Path("notes", f"note{number}.md").write_text(
            f"# Note {number}\n\nRemember shelf {number}.\n"
        )
    two_tower.prepare("notes", "notes-data")
    with (
        Collection.load("notes", "notes-data") as notes,
        Retriever.open("tools") as tools,
        Retriever.open("notes") as engine,
    ):
        assert engine.search("shelf 7", k=1)[0].passage_id == "note7.md"
        assert tools.search("hub spanner", k=1)[0].passage_id == "t4"
        notes.add([Passage("own", "The landlord's number is on the fridge.")])
        assert engine.search("landlord", k=1)[0].passage_id == "own"


@step
def equal_texts_are_merged_on_request() -> None:
    rows = [{"id": f"s{n}", "text": "Cotton rag", "colour": c} for n, c in enumerate("rgb")]
    Path("rags.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert two_tower.prepare("rags.jsonl", "rags").passage_count == 3
    assert two_tower.prepare("rags.jsonl", "rag", merge=True).merged_ids() == {
        "s1": "s0",
        "s2": "s0",
    }


@step
def a_bundle_is_found_where_it_has_moved() -> None:
    Path("bundles").mkdir()
    Path("second").rename("bundles/moved")
    assert "TWO_TOWER_BUNDLE" in failure(lambda: Retriever.open("tools"))
    os.environ["TWO_TOWER_BUNDLE"] = str(Path("bundles").resolve())
    assert found("brake cutter")[0] == "t14"


@step
def a_snapshot_is_restored() -> None:
    run("ingest", "snapshot", "notes", "--out", "saved")
    (file,) = Path("saved").glob("*.zip")
    run("ingest", "restore", file, "--collection", "old-notes", "--promote")
    assert found("landlord", name="old-notes")[0] == "own"


@step
def a_collection_goes_to_a_server() -> None:
    run("ingest", "copy", "tools", "--to-url", URL, "--promote")
    assert found("brake cutter", url=URL)[0] == "t14"
    assert "48" in run("ingest", "list", "--url", URL)


@contextmanager
def process(*words: str, ready: str, cwd: str = ".", **variables: str) -> Iterator[str]:
    """Run a server on a free port until the block ends; give its URL."""
    port = free_port()
    command = [*words, "--port", str(port)]
    with Path("server.log").open("w") as log:
        started = subprocess.Popen(command, cwd=cwd, env=os.environ | variables, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert started.poll() is None, Path("server.log").read_text()
            try:
                urllib.request.urlopen(url + ready, timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        started.terminate()
        started.wait(timeout=30)


def free_port() -> int:
    with socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def ask(url: str, body: object = None) -> Any:
    """Send a request with the key, GET or with a body POST, and return the JSON that comes."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as answer:
        return json.load(answer)


@step
def a_service_searches_and_takes_passages() -> None:
    words = ("retriever", "serve", "tools", "--url", URL)
    with process(*words, ready="/health", TWO_TOWER_SERVICE_KEY=KEY) as url:
        hits = ask(f"{url}/search?q=brake+cutter&k=2")["hits"]
        assert hits[0]["passage_id"] == "t14"
        assert hits[0]["payload"]["place"] == "brake"
        new = {"passage_id": "web", "text": "Sent over the wire: a truing stand."}
        assert ask(f"{url}/passages", {"passages": [new]})
        time.sleep(1)
        assert ask(f"{url}/search", {"query": "over the wire"})["hits"][0]["passage_id"] == "web"
    with Retriever.open("tools", url=URL) as engine:
        assert engine.count(["web"]) == 1


@step
def an_application_has_its_own_modules() -> None:
    folder = Path("shop")
    folder.mkdir()
    for name in ("models", "ingest", "retriever"):
        (folder / f"{name}.py").write_text(f"NAME = 'my own {name}'\n")
    (folder / "app.py").write_text(
        "import ingest, models, retriever\n"
        "from fastapi import FastAPI\n"
        "from two_tower import Hit, Retriever\n"
        "app = FastAPI()\n"
        f"engine = Retriever.open('tools', url={URL!r})\n"
        "@app.get('/find')\n"
        "def find(q: str) -> list[Hit]:\n"
        "    return engine.search(q, k=2)\n"
        "@app.get('/names')\n"
        "def names() -> list[str]:\n"
        "    return [models.NAME, ingest.NAME, retriever.NAME]\n"
    )
    with process(sys.executable, "-m", "uvicorn", "app:app", ready="/names", cwd="shop") as url:
        assert ask(f"{url}/names") == ["my own models", "my own ingest", "my own retriever"]
        hits = ask(f"{url}/find?q=brake+cutter")
        assert [hit["rank"] for hit in hits] == [1, 2]
        with Retriever.open("tools", url=URL) as engine:
            assert hits[0].keys() == engine.search("x", k=1)[0].to_dict().keys()


@step
def wrong_calls_say_why_in_one_line() -> None:
    with Retriever.open("tools") as engine:
        calls: list[Callable[[], object]] = [
            lambda: engine.search(None),  # type: ignore[arg-type]
            lambda: engine.search("hub", k="5"),  # type: ignore[arg-type]
            lambda: engine.search("hub", k=0),
            lambda: engine.search("hub", filter={"colour": "red"}),
            lambda: engine.search_many("hub"),  # type: ignore[arg-type]
            lambda: engine.similar("nobody"),
        ]
        for call in calls:
            line = failure(call)
            assert "\n" not in line
            assert len(line) < 300
    assert "closed" in failure(lambda: engine.search("hub"))
    assert "nowhere" in failure(lambda: Retriever.open("nowhere"))


def failure(call: Callable[[], object]) -> str:
    try:
        call()
    except two_tower.TwoTowerError as error:
        return str(error)
    raise AssertionError("that was not refused")


@step
def wrong_commands_say_why_in_one_line() -> None:
    assert "no-such.csv" in refusal("ingest", "prepare", "no-such.csv", "--out", "x")
    assert "not a DATA folder" in refusal("models", "train", "tools.csv", "--out", "x")
    assert "nowhere" in refusal("retriever", "search", "nowhere", "query")
    assert not Path("x").exists()


@step
def a_version_is_dropped() -> None:
    run("ingest", "drop", "old-notes", "--yes")
    assert "old-notes" not in run("ingest", "list")
    assert found("landlord", name="notes")[0] == "own"
    with two_tower.connect(url=URL) as qdrant:
        assert len(two_tower.drop(qdrant, "tools", yes=True)) == 1


if __name__ == "__main__":
    for function in steps:
        started = time.monotonic()
        function()
        print(f"{function.__name__} {time.monotonic() - started:.1f} s", flush=True)
