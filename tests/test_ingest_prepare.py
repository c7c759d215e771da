import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from two_tower.ingest.cli import app
from two_tower.ingest.commands.prepare import summary
from two_tower.models.data import Dataset, Passage


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["prepare", *map(str, arguments)])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [{"query": f"question {n}?", "text": f"answer {n % 20}"} for n in range(40)]
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join([*lines, "{broken", '{"query": "", "text": "x"}']) + "\n")
    return path


def test_prepare_says_what_it_did(table: Path, tmp_path: Path) -> None:
    done = run(table, "--out", tmp_path / "data")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    data = Dataset.open(tmp_path / "data")
    dev = len(data.qrels("dev"))
    assert 0 < dev < 20
    assert lines[0].startswith("columns       query: q")
    assert lines[1:-1] == [
        "passages      21",
        "queries       40 (0 without judgement)",
        f"judgements    dev {dev} (of {dev} labelled queries)",
        f"judgements    train {40 - dev} (of {40 - dev} labelled queries)",
        "merged        20 passages, 0 judgements",
        "rejected      1",
        "              1 row: not JSON",
    ]
    assert lines[-1].startswith(f"DATA          {tmp_path / 'data'} in ")
    pairs = summary(data.manifest["counts"])
    assert lines[1:-1] == [f"{name:<14}{value}" for name, value in pairs]
    assert data.manifest["source"]["name"] == str(table)


def test_dev_fraction_and_force(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    done = run(table, "--out", out, "--dev-fraction", "0")
    assert done.exit_code == 0
    assert "Warning: no labelled query but in split train; a larger --dev-fraction" in done.stderr
    assert Dataset.open(out).splits == ["train"]
    again = run(table, "--out", out)
    assert again.exit_code == 1
    assert again.stderr == f"Error: {out} already holds DATA; replace it with --force\n"
    assert run(table, "--out", out, "--force").exit_code == 0
    assert Dataset.open(out).splits == ["dev", "train"]


def test_columns_by_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("ask,say,head,link,pi,qi,rel,part\na?,a,A,http://a,1,2,3,test\n")
    flags = {"query": "ask", "passage": "say", "title": "head", "url": "link"}
    flags |= {"passage-id": "pi", "query-id": "qi", "relevance": "rel", "split": "part"}
    arguments = [part for role, name in flags.items() for part in (f"--{role}-column", name)]
    assert run(path, "--out", tmp_path / "data", *arguments).exit_code == 0
    data = Dataset.open(tmp_path / "data")
    assert list(data.passages()) == [Passage("1", "a", "A", "http://a")]
    assert [tuple(q) for q in data.qrels("test")] == [("2", "1", 3, "test")]


def test_a_bare_corpus_succeeds_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "alone"}\n')
    done = run(path, "--out", tmp_path / "data")
    assert done.exit_code == 0
    assert "judgements    none" in done.stdout
    assert done.stderr.startswith("Warning: no labelled query")


def test_failures_are_one_line_and_leave_nothing(table: Path, tmp_path: Path) -> None:
    cases = {
        "no file or folder": [tmp_path / "missing"],
        "found: query, text": [table, "--passage-column", "body"],
        "--limit does not apply": [table, "--limit", "3"],
    }
    for message, arguments in cases.items():
        done = run(*arguments, "--out", tmp_path / "data")
        assert done.exit_code == 1
        assert done.stderr.startswith("Error: ")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    assert run(table).exit_code == 2
    assert run(table, "--out", tmp_path / "data", "--dev-fraction", "2").exit_code == 2


def test_memory_stays_bounded(shared_data: Path, tmp_path: Path) -> None:
    """The largest corpus at hand: 94,590 passages under 600 MB, all libraries included."""
    program = (
        "import sys; from two_tower.ingest.cli import app; "
        "app(sys.argv[1:], standalone_mode=False);"
        # Not ru_maxrss: across exec it keeps the peak of the test process.
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    source, out = shared_data / "msmarco-95k", tmp_path / "data"
    command = [sys.executable, "-c", program, "prepare", str(source), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "passages      94,590" in done.stdout
    assert "judgements    dev 1,794 (of 1,794 labelled queries)" in done.stdout
    assert int(done.stdout.splitlines()[-1]) < 600_000
