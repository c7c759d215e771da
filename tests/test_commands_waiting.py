"""What commands show while they work and at their end: in a terminal, in a pipe, with --quiet."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from terminals import run_in_terminal

ROWS = 160

STEPS = {
    "prepare": "ingest prepare rows.csv --out data --dev-fraction 0.4",
    "train": "models train data --out bundle --config c.yaml",
    "show": "models show bundle",
    "mine": "models mine data --out negatives.parquet",
    "sweep": "models sweep data --out sweep --space space.yaml --config c.yaml",
    "dry": "ingest load data --bundle bundle --collection c --limit 50 --dry-run",
    "load": "ingest load data --bundle bundle --collection c",
    "verify": "ingest verify c --data data",
    "list": "ingest list",
    "info": "retriever info c",
    "fields": "retriever fields c",
    "search": "retriever search c thing7 --explain",
    "evaluate": "retriever evaluate c data --out report --systems bm25,tfidf,dense,rerank",
    "calibrate": "retriever calibrate c data",
    "cut": "retriever calibrate c",
    "tune": "retriever tune c data --out tuned --sweeps candidates,pca --queries 20",
    "snapshot": "ingest snapshot c --out saved",
    "restore": "ingest restore saved/* --collection d",
    "promote": "ingest promote d",
    "copy": "ingest copy c --to-path other",
    "add": "ingest add c more.csv",
    "delete": "ingest delete c thing7",
    "drop": "ingest drop d --yes",
}

LONG = ("prepare", "train", "mine", "load", "verify", "evaluate", "calibrate")
LONG += ("cut", "tune", "snapshot", "restore", "copy")

TABLES = ("show", "sweep", "list", "info", "fields", "search", "evaluate", "tune", "prepare")

TAB_SEPARATED = ("sweep", "fields")  # for programs: in one piece

WITHOUT_NEXT = ("search",)

MARK = "=== "

WALK = """
import glob, json, os, sys
from typer.main import get_command
from two_tower.ingest.cli import app as ingest
from two_tower.models import progress
from two_tower.models.cli import app as models
from two_tower.retriever.cli import app as retriever
folder, more, every, steps = sys.argv[1:]
os.chdir(folder)
progress.LINE_EVERY_S = float(every)
apps = {"ingest": ingest, "models": models, "retriever": retriever}
for name, line in json.loads(steps).items():
    first, *words = [*line.split(), *more.split()]
    words = [found for word in words for found in (glob.glob(word) if "*" in word else [word])]
    for stream in (sys.stdout, sys.stderr) if not sys.stdout.isatty() else (sys.stdout,):
        print(f"=== {name}", file=stream, flush=True)
    get_command(apps[first]).main(words, standalone_mode=False)
    sys.stdout.flush()
"""

CONFIG = """
tokenizer: {vocab_size: 400}
pretrain: {epochs: 1}
labelled: {epochs: 1}
word2vec: {epochs: 1}
tower: {dim: 16}
pca_dims: [8]
"""


class Shown(NamedTuple):
    """What each step printed, by its name: on stdout (and stderr, in a terminal), on stderr."""

    stdout: dict[str, str]
    stderr: dict[str, str]


def arguments(folder: Path, *, more: str = "", every: float = 30.0) -> list[str]:
    folder.mkdir()
    head = "query,title,passage,passage_id,brand,colour\n"
    rows = [
        f"what is thing{n} of number{n % 13},Thing {n},the thing{n} is a number{n % 13} of things "
        f"and words{n % 7} that stand in line {n % 5} of the list,thing{n},brand{n % 3},red\n"
        for n in range(ROWS)
    ]
    (folder / "rows.csv").write_text(head + "".join(rows))
    (folder / "more.csv").write_text("passage_id,passage\nnew,a new thing that nobody knows\n")
    (folder / "c.yaml").write_text(CONFIG)
    (folder / "space.yaml").write_text("tower.dim: [8, 12]\n")
    return [str(folder), more, str(every), json.dumps(STEPS)]


def by_step(text: str) -> dict[str, str]:
    parts = re.split(rf"^{MARK}(\w+)\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def in_a_pipe(words: list[str]) -> Shown:
    done = subprocess.run(
        [sys.executable, "-c", WALK, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Shown(by_step(done.stdout), by_step(done.stderr))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("waiting")


@pytest.fixture(scope="module")
def terminal(folder: Path) -> dict[str, str]:
    shown = run_in_terminal(WALK, *arguments(folder / "terminal"), NO_COLOR="1", width=80)
    return by_step(shown)


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Shown:
    return in_a_pipe(arguments(folder / "pipe", every=0.0))


@pytest.fixture(scope="module")
def quiet(folder: Path) -> Shown:
    return in_a_pipe(arguments(folder / "quiet", more="--quiet", every=0.0))


def lines(shown: str) -> list[str]:
    """The lines that a terminal has in the end; a bar is overwritten by what follows it."""
    rows = [line.split("\r")[-1].rstrip() for line in shown.split("\n")]
    return [row for row in rows if not row.endswith("\x1b[A")]  # a bar within a bar goes up again


@pytest.mark.parametrize("step", LONG)
def test_long_work_shows_how_far_it_is(
    step: str, terminal: dict[str, str], pipe: Shown, quiet: Shown
) -> None:
    assert re.search(r"\d+/\d+ \[\d\d:\d\d<", terminal[step]), terminal[step]
    told = r"^[^:\n]+(: [^:\n]+)?: [\d,]+ of [\d,]+, [\d.,e+-]+/s, [\dhmins ]+ left$"
    assert re.search(told, pipe.stderr[step], flags=re.MULTILINE), pipe.stderr[step]


@pytest.mark.parametrize("step", STEPS)
def test_each_command_names_the_next_one(step: str, terminal: dict[str, str], pipe: Shown) -> None:
    for last in (lines(terminal[step].rstrip("\n"))[-1], lines(pipe.stderr[step].rstrip("\n"))[-1]):
        assert step in WITHOUT_NEXT or re.match("Next: (ingest|models|retriever) ", last), last
        assert "--quiet" not in last


@pytest.mark.parametrize("step", STEPS)
def test_quiet_leaves_warnings(step: str, pipe: Shown, quiet: Shown) -> None:
    rest = [line for line in quiet.stderr[step].splitlines() if not line.startswith("Warning: ")]
    assert rest == []
    assert bool(quiet.stdout[step]) is bool(pipe.stdout[step])


@pytest.mark.parametrize("step", TABLES)
def test_tables_fit(step: str, terminal: dict[str, str], pipe: Shown) -> None:
    printed = pipe.stdout[step].splitlines()
    if step not in TAB_SEPARATED:
        assert [line for line in printed if len(line) > 100] == []
        said = pipe.stderr[step].splitlines()  # in words, which a terminal breaks by itself
        shown = [line for line in lines(terminal[step]) if not line.startswith("Warning: ")]
        assert [line for line in shown if len(line) > 80 and line not in said] == []
