"""The parts of the loop that need no service: click model, team draft, sequential test, the log."""

import json
import math
import random
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from two_tower.models.errors import DataError
from two_tower.retriever.behaviour.click_model import ClickModel
from two_tower.retriever.behaviour.comparison import compare, sequential_p
from two_tower.retriever.behaviour.interleaving import OTHER, OWN, team_draft, winner
from two_tower.retriever.behaviour.log import BehaviourLog
from two_tower.retriever.behaviour.reading import log_files, read_events, read_searches
from two_tower.retriever.cli import app

HITS = ("a", "b", "c", "d")
SEED = b"seed"


def model_of(*searches: set[str], people: Sequence[str] = ()) -> ClickModel:
    model = ClickModel()
    for number, clicked in enumerate(searches):
        model.add(HITS, clicked, person=people[number] if people else str(number))
    return model


@pytest.mark.parametrize(
    ("searches", "answers"),
    [
        ([], []),
        ([set(), set(), set()], []),  # nobody clicked: nobody says anything
        ([{"c"}], []),  # too little support
        ([{"c"}, {"c"}], ["c"]),  # read to c by all, and ended there
        ([{"a", "c"}, {"a", "c"}, {"a", "c"}, {"a"}], ["c"]),  # a ended one: too few
        ([{"a", "c"}, {"a", "c"}, {"a"}], []),  # and two of three read to c: too few
        ([{"a"}, {"a"}, {"a"}, {"d"}, {"d"}], ["a"]),  # 2 of 5 read to d: too few
        ([{"a"}, {"a"}, *[{"b"}] * 9], ["b"]),  # a ended 2 of 11, under a fifth
        ([{"a"}, {"a"}, {"b"}, {"b"}, {"b"}, {"b"}, {"b"}], ["b", "a"]),  # b 5/5; a 2/7
    ],
)
def test_who_read_and_looked_no_further(searches: list[set[str]], answers: list[str]) -> None:
    assert model_of(*searches).answers() == answers


def test_one_person_is_one_voice() -> None:
    assert model_of({"b"}, {"b"}, {"b"}, people=["x", "x", "x"]).answers() == []
    assert model_of({"b"}, {"b"}, people=["x", "y"]).answers() == ["b"]


def test_what_is_said_needs_no_support_and_overrules_clicks() -> None:
    model = model_of({"b"}, {"b"})
    model.say("d", is_answer=True)
    model.say("b", is_answer=False)
    assert model.answers() == ["d"]


def test_a_place_costs_an_answer_no_label() -> None:
    """Users as `click-loop` has them: of what is labelled nearly all is right, at every place."""
    rng, right, labelled = random.Random(0), dict.fromkeys(HITS, 0), 0
    for answer in HITS * 100:
        model = ClickModel()
        for person in range(6):
            clicked = set()
            for hit in HITS:
                if rng.random() < (0.95 if hit == answer else 0.05):
                    clicked.add(hit)
                    if rng.random() < (0.9 if hit == answer else 0.2):
                        break
            model.add(HITS, clicked, person=str(person))
        labelled += len(model.answers())
        right[answer] += answer in model.answers()
    assert min(right.values()) >= 90
    assert sum(right.values()) >= 0.95 * labelled


def test_the_team_draft_keeps_both_orders_and_is_fair() -> None:
    own, other = ["a", "b", "c", "d"], ["c", "a", "e", "f"]
    firsts = {OWN: 0, OTHER: 0}
    for number in range(400):
        draft = team_draft(own, other, k=4, seed=str(number).encode())
        assert len(set(draft.ids)) == len(draft.ids) == len(draft.teams) == 4
        for team, ranking in ((OWN, own), (OTHER, other)):
            theirs = [p for p, t in zip(draft.ids, draft.teams, strict=True) if t == team]
            assert theirs == sorted(theirs, key=ranking.index)
            assert len(theirs) == 2
        firsts[draft.teams[0]] += 1
    assert 160 < firsts[OWN] < 240  # a fair coin: 200, standard deviation 10
    assert team_draft(own, own, k=4, seed=SEED).ids == own
    assert team_draft(own, [], k=4, seed=SEED).ids == own
    assert team_draft([], [], k=4, seed=SEED).ids == []


def test_a_click_goes_to_who_put_the_passage_there() -> None:
    teams = [OWN, OTHER, OTHER, OWN]
    assert winner(HITS, teams, {"b"}) == OTHER
    assert winner(HITS, teams, {"a", "b", "d"}) == OWN
    assert winner(HITS, teams, {"a", "b"}) is None
    assert winner(HITS, teams, set()) is None


def test_the_ratio_is_the_integral() -> None:
    """The p-value of 9 wins in a row, by a sum over the prior in place of the Beta function."""
    steps = [(i + 0.5) / 20_000 for i in range(20_000)]
    prior = [(p * (1 - p)) ** 9 for p in steps]
    mean = sum(w * p**9 for w, p in zip(prior, steps, strict=True)) / sum(prior)
    assert sequential_p([True] * 9) == pytest.approx(0.5**9 / mean, rel=1e-4)
    assert sequential_p([]) == 1.0
    assert sequential_p([True, False] * 50) > 0.5


def test_looking_after_every_search_gives_few_false_alarms() -> None:
    rng = random.Random(0)
    alarms = sum(sequential_p(rng.random() < 0.5 for _ in range(300)) < 0.05 for _ in range(400))
    assert alarms <= 20 + 2 * math.sqrt(19)  # 5%, and twice its spread
    found = sum(sequential_p(rng.random() < 0.65 for _ in range(300)) < 0.05 for _ in range(50))
    assert found >= 45


def lines(path: Path, rows: Sequence[Mapping[str, Any]], end: str = "\n") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)) + end)
    return path


def search_row(number: int, teams: Sequence[str] | None = None, **more: Any) -> dict[str, Any]:
    about = {"experiment": {"own": "old", "other": "new", "teams": teams}} if teams else {}
    return {
        "query_id": f"q{number}",
        "user_query": f"query {number}",
        "client_id": f"user {number}",
        "timestamp": f"2026-01-01T00:00:{number:06d}",
        "query_response_hit_ids": list(HITS),
        "query_attributes": about,
        **more,
    }


def click_row(number: int, passage_id: str, action: str = "click") -> dict[str, Any]:
    return {
        "query_id": f"q{number}",
        "action_name": action,
        "event_attributes": {"object": {"object_id": passage_id}},
    }


TEAMS = (OWN, OTHER, OTHER, OWN)


def test_compare_says_who_wins(tmp_path: Path) -> None:
    rows = [search_row(number, TEAMS) for number in range(40)]
    lines(tmp_path / "queries.jsonl", [search_row(99), *rows])
    clicks = [click_row(n, "b") for n in range(30)] + [click_row(n, "a") for n in range(30, 34)]
    both = [click_row(34, "a"), click_row(34, "b", "answers")]
    lines(tmp_path / "events.jsonl", [*clicks, *both, click_row(99, "b")])
    outcome = compare(tmp_path)
    assert (outcome.searches, outcome.clicked) == (40, 35)
    assert (outcome.wins, outcome.losses, outcome.ties) == (30, 4, 1)
    assert outcome.p == sequential_p([True] * 30 + [False] * 4) < 0.05
    assert outcome.needed == 0
    done = CliRunner().invoke(app, ["compare", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "new is better: it wins 88% of 34 decided searches" in " ".join(done.output.split())


def test_compare_says_how_many_are_needed(tmp_path: Path) -> None:
    """As many more as asked for, at the same rate, do make it sure; half of them do not."""
    pattern = [True] * 3 + [False] * 2

    def outcome(searches: int) -> Any:
        lines(tmp_path / "queries.jsonl", [search_row(n, TEAMS) for n in range(searches)])
        clicks = [click_row(n, "b" if pattern[n % 5] else "a") for n in range(searches)]
        lines(tmp_path / "events.jsonl", clicks)
        return compare(tmp_path)

    needed = outcome(50).needed
    assert 0 < needed < 2000
    assert outcome(50 + needed + 10).needed == 0
    assert outcome(50 + needed // 2).needed > 0


def test_the_same_search_again_counts_once_and_the_last_experiment_alone(tmp_path: Path) -> None:
    old = {"query_attributes": {"experiment": {"own": "x", "other": "y", "teams": list(TEAMS)}}}
    again = search_row(1, TEAMS, client_id="user 2", user_query="query 2")
    rows = [search_row(0, **old), again, search_row(2, TEAMS), search_row(3, TEAMS)]
    lines(tmp_path / "queries.jsonl", rows)
    lines(tmp_path / "events.jsonl", [click_row(n, "b") for n in range(3)])
    outcome = compare(tmp_path)
    assert (outcome.own, outcome.other, outcome.older) == ("old", "new", 1)
    assert (outcome.searches, outcome.wins) == (2, 1)


def test_compare_without_anything_to_compare(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no log of searches"):
        compare(tmp_path)
    lines(tmp_path / "queries.jsonl", [search_row(1)])
    with pytest.raises(DataError, match="no interleaved search; run: retriever serve NAME --log"):
        compare(tmp_path)


def written(folder: Path, kind: str) -> list[dict[str, Any]]:
    files = sorted(folder.glob(f"{kind}-*.jsonl"))
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def test_the_log_is_whole_lines_and_begins_anew_where_a_file_is_gone(tmp_path: Path) -> None:
    counts: dict[str, int] = {}

    def count(outcome: str, number: int) -> None:
        counts[outcome] = counts.get(outcome, 0) + number

    log = BehaviourLog(tmp_path / "log", days=3, count=count)
    for number in range(50):
        log.put("queries", {"query_id": str(number), "nothing": None, "odd": "\ud800"})
    log.close()
    rows = written(tmp_path / "log", "queries")
    assert [row["query_id"] for row in rows] == [str(number) for number in range(50)]
    assert all(set(row) == {"query_id", "timestamp", "odd"} for row in rows)
    assert counts == {"written": 50}


def test_old_days_are_deleted_and_strangers_stay(tmp_path: Path) -> None:
    today = datetime.now(UTC).date()
    names = [f"events-{today - timedelta(days=days)}-0123abcd-0001.jsonl" for days in (2, 3, 4)]
    for name in (*names, "events-1999-01-01.jsonl", "notes.txt"):
        (tmp_path / name).write_text("{}\n")
    log = BehaviourLog(tmp_path, days=3)
    log.put("queries", {})
    log.close()
    left = {path.name for path in tmp_path.iterdir()}
    assert left >= {*names[:2], "events-1999-01-01.jsonl", "notes.txt"}
    assert names[2] not in left


def test_ids_are_known_again_by_their_folder_alone(tmp_path: Path) -> None:
    one, twin = (BehaviourLog(tmp_path / "log", days=1) for _ in range(2))
    stranger = BehaviourLog(tmp_path / "other", days=1)
    query_id = one.new_query_id()
    assert one.is_own(query_id)
    assert twin.is_own(query_id)
    assert not stranger.is_own(query_id)
    assert not any(map(one.is_own, ("", "q1", "00000000-0000-0000-0000-000000000000", "é" * 9)))
    assert one.pseudonym("jane@example.org") == twin.pseudonym("jane@example.org")
    assert stranger.pseudonym("jane@example.org") != one.pseudonym("jane@example.org")
    assert one.pseudonym(None) is None
    assert (tmp_path / "log" / "salt").stat().st_mode & 0o077 == 0
    for log in (one, twin, stranger):
        log.close()


FULL = """
import json, logging, sys, time
from pathlib import Path
from two_tower.retriever.behaviour.log import BehaviourLog
logging.basicConfig(level=logging.INFO, format="%(message)s")
lost = []
log = BehaviourLog(Path(sys.argv[1]), days=1, count=lambda what, n: lost.append((what, n)))
for number in range(20):
    log.put("queries", {"query_id": str(number), "user_query": "jane@example.org" * 40})
    time.sleep(.01)
log.close()
print(sum(n for what, n in lost if what == "lost"))
"""


def test_a_full_disk_loses_records_says_so_once_and_cuts_at_most_a_line(tmp_path: Path) -> None:
    """A limit on the size of a file is what a full disk is: a part is written, then nothing."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)),
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 20
    assert done.stderr.count("searches go on") == 1
    assert "jane" not in done.stderr
    told: list[str] = []
    files = sorted(tmp_path.glob("*.jsonl"))
    assert not list(read_searches(files, lambda reason, *_: told.append(reason)))
    assert set(told) == {"line: cut off"}


@pytest.mark.parametrize(
    ("end", "reasons"),
    [
        ("\n", []),
        ("", []),
        ('\n{"query_id": "q9", "user_qu', ["line: cut off"]),
        ("\nno json\n[1]\n", ["line: no JSON object"] * 2),
        ('\n{"user_query": 7, "query_id": "q9"}\n', ["search: no query, id or hits"]),
    ],
)
def test_a_line_that_cannot_be_read_is_told_and_the_others_are_read(
    tmp_path: Path, end: str, reasons: list[str]
) -> None:
    lines(tmp_path / "queries.jsonl", [search_row(1), search_row(2)], end)
    told: list[str] = []
    files = log_files(tmp_path)
    found = list(read_searches(files, lambda reason, *_: told.append(reason)))
    assert [search.query_id for search in found] == ["q1", "q2"]
    assert told == reasons
    assert read_events(files, lambda *_: None) == []
