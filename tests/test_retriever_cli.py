import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import make_passages
from terminals import run_in_terminal
from typer.main import get_command
from typer.testing import CliRunner, Result

from two_tower.ingest.loading import loader
from two_tower.ingest.versions import versions as collections
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.data import Dataset, Passage
from two_tower.retriever.cli import app
from two_tower.retriever.commands.terminal import (
    Look,
    print_result,
    score_bar,
    show_hits,
    stage_lines,
    stage_rows,
    wrap,
)
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.records import Hit, SearchResult, Stage
from two_tower.retriever.search.snippets import Segment, printable
from two_tower.retriever.service.config import ServiceConfig

PASSAGES = [
    *make_passages(40),
    Passage(
        "evil",
        "storm \x1b[2Jwiped\x07 the <b>screen</b>\nand [blink]more",
        title="storm\x1b]0;x\x07 [red]alert[/red] \u202egnorw",
        url="http://x/[bold]\x9b2J",
    ),
]
QUERY = "storm on the river bank"
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Place(NamedTuple):
    """Where a loaded collection is."""

    bundle: Path
    engine: Path

    @property
    def options(self) -> list[str]:
        return ["--bundle", str(self.bundle), "--path", str(self.engine)]


@pytest.fixture
def place(tmp_path: Path, tiny_bundle: Path, make_data: Callable[..., Dataset]) -> Place:
    engine = connect(path=tmp_path / "edge")
    bundle = ModelBundle.load(tiny_bundle)
    report = loader.load(engine, make_data(PASSAGES), bundle, name="pages")
    collections.promote(engine, "pages", report.collection)
    engine.close()
    return Place(tiny_bundle, tmp_path / "edge")


def run(place: Place, *words: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, ["search", "pages", *words, *place.options], input=stdin)


def test_text_for_people(place: Place) -> None:
    done = run(place, QUERY, "-k", "3")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == QUERY
    assert [line[:4] for line in lines if re.match(r" +\d+\.", line)] == ["  1.", "  2.", "  3."]
    assert done.stdout.count("http://example.org/") == 3
    assert "█" in done.stdout
    assert "\x1b" not in done.stdout


def test_json_is_one_object_per_query(place: Place) -> None:
    done = run(place, QUERY, "oven bread", "-k", "2", "--json")
    first, second = map(json.loads, done.stdout.splitlines())
    names = ("query", "hits", "timings_ms", "stages_run", "skipped", "answerable", "read_as")
    assert list(first) == list(names)
    assert (first["query"], second["query"]) == (QUERY, "oven bread")
    assert list(first["hits"][0]) == [
        *("rank", "passage_id", "score", "title", "text", "url", "stages", "payload")
    ]
    assert first["stages_run"] == ["dense", "bm25", "rerank"]


def test_explain_is_a_table_of_stages(place: Place) -> None:
    done = run(place, QUERY, "-k", "2", "--explain")
    assert re.search(r"rank +score +dense +bm25 +rerank +title\n", done.stdout)
    assert re.search(r"\n +1 .*#\d+.*Title", done.stdout)
    assert "stages: dense, bm25, rerank" in done.stdout
    assert re.search(r"\d\.\d ms: encode .*, candidates .*, fusion .*, payload ", done.stdout)


def test_filters(place: Place) -> None:
    words = ["--filter", "kind=note", "--filter", "year>=2010", "-k", "40", "--json"]
    hits = json.loads(run(place, QUERY, *words).stdout)["hits"]
    expected = {
        p.passage_id
        for p in PASSAGES
        if p.fields.get("kind") == "note" and p.fields["year"] >= 2010
    }
    assert {hit["passage_id"] for hit in hits} == expected
    done = run(place, QUERY, "--filter", "colour=red")
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert "'colour': it has no payload index here" in done.stderr
    assert run(place, QUERY, "--filter", "colour").exit_code == 1


def test_lines_of_a_pipe_are_queries(place: Place) -> None:
    done = run(place, "--json", "-k", "1", stdin="oven bread\n\n  river \n")
    assert [json.loads(line)["query"] for line in done.stdout.splitlines()] == [
        "oven bread",
        "river",
    ]
    assert run(place, stdin="").stdout == ""
    failed = run(place, "--json", "-k", "1", stdin="good\nbad\0\ngood\n")
    assert failed.exit_code == 1
    assert len(failed.stdout.splitlines()) == 1
    assert "U+0000" in failed.stderr


def test_a_budget_is_passed_on(place: Place) -> None:
    done = run(place, QUERY, "-k", "1", "--budget-ms", "0.001", "--explain")
    assert "skipped: rerank" in done.stdout
    assert "stages: dense, bm25\n" in done.stdout


def in_a_terminal(place: Place, *words: str, typed: str, **environment: str) -> str:
    """What a terminal shows while `typed` is typed line by line, ended by Ctrl-D."""
    program = "import sys; from two_tower.retriever.cli import app; app(sys.argv[1:])"
    lines = [*typed.splitlines(keepends=True), "\x04"]
    arguments = ("search", "pages", *words, *place.options)
    return run_in_terminal(program, *arguments, typed=lines, prompt=b"search> ", **environment)


def test_a_session_in_a_terminal(place: Place) -> None:
    shown = in_a_terminal(place, "-k", "2", typed=f"{QUERY}\n\nriver\n")
    assert "One query per line; Ctrl-D ends." in shown
    assert "\x1b[1;33mriver\x1b[0m" in shown
    assert ANSI.sub("", shown).count("  1. ") == 2


def test_no_color_is_honoured(place: Place) -> None:
    shown = in_a_terminal(place, typed=f"{QUERY}\n", NO_COLOR="1")
    assert "  1. " in shown
    assert not ANSI.search(shown)


def test_a_session_goes_on_after_an_error(place: Place) -> None:
    shown = in_a_terminal(place, "-k", "0", typed="one\ntwo\n")
    assert shown.count("\nError: k is 0") == 2
    assert "Traceback" not in shown


def test_a_passage_in_a_terminal_is_text_alone(place: Place) -> None:
    shown = in_a_terminal(place, "-k", "5", "--explain", typed="storm wiped screen\n")
    title = "storm␛]0;x␇ [red]alert[/red] <U+202E>gnorw"
    plain = ANSI.sub("", shown)
    assert f". {title}\n" in plain
    assert f"  {title[:30]}" in plain.partition("rank ")[2]
    assert "storm ␛[2Jwiped␇ the <b>screen</b> and [blink]more" in plain
    assert "http://x/[bold]<U+009B>2J" in plain
    # Nothing but colours, what the line editor writes, and line ends is left.
    assert not set(re.sub(r"\x1b\[\?2004[hl]\r?", "", plain)) & {"\x1b", "\x07", "\x9b", "\u202e"}
    assert max(map(len, plain.splitlines())) <= 80


def hit(rank: int, score: float, **changes: object) -> Hit:
    plain = Hit(rank, f"p{rank}", score, "Title", "some text", "", {"dense": Stage(0.5, 1)}, {})
    return replace(plain, **changes)


def test_a_passage_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable("a\x1b[2J\x07b\x9bc\n\td") == "a[2Jbc d"
    evil = hit(1, 1.0, title="t\x1b[0m", text="x\x1b[2Jy", url="http://\x1b]0;z\x07")
    print_result(SearchResult("q\x1b", [evil], {}), language="english", explain=True)
    shown = capsys.readouterr().out
    assert "x[2Jy" in shown
    assert "\x1b" not in shown
    assert "\x07" not in shown


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (8.0, "██████████"),
        (4.0, "█████     "),
        (4.5, "█████▋    "),
        (0.0, " " * 10),
        (-3, " " * 10),
    ],
)
def test_score_bars(score: float, expected: str) -> None:
    assert score_bar(score, [8.0, score]) == expected


def test_bars_where_nothing_scores() -> None:
    assert score_bar(-1.0, [-1.0, -2.0]) == " " * 10


def test_the_table_has_the_stages_in_their_order_and_keeps_to_the_width() -> None:
    late = hit(1, 1.0, title="A title that is long " * 3, stages={"bm25": Stage(8.0, 1)})
    both = hit(2, 0.5, stages={"dense": Stage(0.5, 1), "bm25": Stage(7.0, 2)})
    result = SearchResult("q", [late, both], {}, stages_run=("dense", "bm25"))
    lines = stage_lines(stage_rows(result, Look(width=50))).splitlines()
    assert lines[0].split() == ["rank", "score", "dense", "bm25", "title"]
    assert lines[1].startswith("   1  1.000         -  8.000 #1  A title")
    assert max(map(len, lines)) <= 50


def test_no_hit_and_one_without_title(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(SearchResult("q", [], {}), language="english", explain=True)
    assert capsys.readouterr().out == "q\n\nNo hit.\n\n\nstages: none\n0.0 ms: \n\n"
    untitled = show_hits(SearchResult("q", [hit(1, 1.0, title="")], {}), Look())
    assert "  1. passage p1\n" in untitled.plain


def test_matches_keep_their_colour_across_lines() -> None:
    segments = [Segment("one ", False), Segment("two three", True), Segment(" four", False)]
    lines = wrap(segments, width=9)
    assert [line.plain for line in lines] == ["one two", "three", "four"]
    marked = [[line.plain[span.start : span.end] for span in line.spans] for line in lines]
    assert marked == [["two"], ["three"], []]


def test_the_service_and_its_command_have_the_same_defaults() -> None:
    flags = {option.name: option.default for option in get_command(app).commands["serve"].params}
    config = ServiceConfig(name="pages", bundle=Path("bundle"))
    assert flags["threads"] == config.threads
    assert flags["waiting"] == config.waiting
    assert flags["timeout"] == config.timeout_s
