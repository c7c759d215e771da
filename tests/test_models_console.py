import re
import subprocess
import sys
from pathlib import Path

import pytest
from terminals import run_in_terminal

from two_tower.models.control_characters import visible
from two_tower.models.progress import progress

ANSI = re.compile(r"\x1b\[[0-9;]*m")

TABLE = """
from two_tower.models.console import print_table
head = ["name", "size", "note"]
rows = [head, ["[red]a[/red]", "1.5", "x\\x1b[2J"], [":smile:", "10", "\\u202ez"]]
print_table(rows, lambda rows: "\\n".join(map("\\t".join, rows)), align="lrl")
"""

PAIRS = """
from two_tower.models.console import print_pairs, print_text, say
print_pairs([("one", "[b]1[/b]\\x07"), ("two", "words " * 9), ("three", "")], width=9)
print_text("[red]text[/red] :smile: \\x1b]0;t\\x07")
say("Error: \\x1b[2J")
"""


def run_in_a_pipe(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_a_table_in_a_terminal() -> None:
    shown = run_in_terminal(TABLE)
    assert [line.rstrip() for line in ANSI.sub("", shown).splitlines()] == [
        "name          size  note",
        "─" * 29,
        "[red]a[/red]   1.5  x␛[2J",
        ":smile:         10  <U+202E>z",
    ]
    assert "\x1b[1m" in shown  # the head is bold
    assert not ANSI.search(run_in_terminal(TABLE, NO_COLOR="1"))


def test_a_narrow_terminal_loses_no_column() -> None:
    lines = ANSI.sub("", run_in_terminal(TABLE, width=24)).splitlines()
    assert [line.rstrip() for line in lines] == [
        "name          size",
        "─" * 18,
        "[red]a[/red]   1.5",
        ":smile:         10",
        "",
        "name          note",
        "─" * 23,
        "[red]a[/red]  x␛[2J",
        ":smile:       <U+202E>z",
    ]


def test_a_table_in_a_pipe_is_as_it_was() -> None:
    assert run_in_a_pipe(TABLE).stdout == (
        "name\tsize\tnote\n[red]a[/red]\t1.5\tx\n:smile:\t10\t\u202ez\n"
    )


def test_names_and_values() -> None:
    shown = ANSI.sub("", run_in_terminal(PAIRS, width=40))
    assert [line.rstrip() for line in shown.splitlines()] == [
        "one    [b]1[/b]␇",
        "two    words words words words words",
        "       words words words words",
        "three",
        "[red]text[/red] :smile: ␛]0;t␇",
        "Error: ␛[2J",
    ]
    piped = run_in_a_pipe(PAIRS)
    assert piped.stdout.splitlines()[0] == "one      [b]1[/b]\x07"
    assert piped.stdout.splitlines()[2:] == ["three", "[red]text[/red] :smile: \x1b]0;t\x07"]
    assert piped.stderr == "Error: \n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ünïcode 漢字 \u200d", "plain ünïcode 漢字 \u200d"),
        ("\x00\t\n\x1b\x1f", "␀␉␊␛␟"),
        ("\x7f\x85\x9b", "<U+007F><U+0085><U+009B>"),
        ("\u202a\u202e\u2066\u2069", "<U+202A><U+202E><U+2066><U+2069>"),
        ("a\udc80", "a<U+DC80>"),
    ],
)
def test_visible(text: str, expected: str) -> None:
    assert visible(text) == expected


def test_a_bar_is_for_terminals(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(progress([1, 2], label="numbers")) == [1, 2]
    assert capfd.readouterr() == ("", "")
    program = "from two_tower.models.progress import progress; list(progress([1], label='a\\x1b['))"
    shown = run_in_terminal(program)
    assert "a␛[:   0%|" in shown


@pytest.mark.parametrize("words", [["show", "nowhere"], ["--help"], ["--version"]])
@pytest.mark.parametrize("stream", ["stdout", "both"])
def test_a_full_disk_behind_stdout_is_one_line(words: list[str], stream: str) -> None:
    command = [sys.executable, "-m", "two_tower.models.cli", *words]
    with Path("/dev/full").open("w") as full:
        to = full if stream == "both" else subprocess.PIPE
        done = subprocess.run(command, stdout=full, stderr=to, text=True, check=False)
    assert done.returncode == 1
    if stream == "stdout":
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("Error: ")
