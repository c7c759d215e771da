"""A failure of a command is one line, whatever failed; what it prints steers no terminal."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import make_passages, write_data
from terminals import run_in_terminal
from typer.testing import CliRunner

from two_tower.ingest.cli import app as ingest_app
from two_tower.ingest.generation.prompt import read_prompt as read_queries_prompt
from two_tower.ingest.judging.prompt import read_grade_prompt
from two_tower.ingest.versions.snapshots import open_archive
from two_tower.models.console import application
from two_tower.models.control_characters import UNSAFE, visible
from two_tower.models.errors import ConfigError, TrainingError, TwoTowerError
from two_tower.models.files import require_place
from two_tower.models.training.checkpoint import Checkpoint, Progress, RunFolder
from two_tower.models.yaml_file import read_yaml
from two_tower.retriever.cli import app as retriever_app
from two_tower.retriever.search.rewriting import read_prompt as read_rewriting_prompt
from two_tower.retriever.search.settings import read_settings


def panic() -> None:
    """Let the engine's analyzer panic, as Rust does: with what is no `Exception`."""
    error = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
    raise error("called `Option::unwrap()` on a `None` value")


FAILURES = {
    "KeyError": KeyError("x"),
    "long": ValueError("x\n" * 100_000),
    "deep": RecursionError("maximum recursion depth exceeded"),
    "memory": MemoryError(),
    "disk": OSError(28, "No space left on device", "/data/checkpoint"),
    "permission": PermissionError(13, "Permission denied", "/root/x"),
    "surrogate": ValueError("\ud800"),
}


@pytest.mark.parametrize("what", [*FAILURES, "panic"])
def test_whatever_fails_is_one_line(what: str) -> None:
    app = application("Test.")

    @app.command()
    def fail() -> None:
        if what == "panic":
            panic()
        raise FAILURES[what]

    @app.command()
    def other() -> None:
        pass

    done = CliRunner().invoke(app, ["fail"])
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert len(line) < 2100


def test_the_traceback_is_there_for_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWO_TOWER_TRACEBACK", "1")
    app = application("Test.")

    @app.command()
    def fail() -> None:
        raise KeyError("x")

    @app.command()
    def other() -> None:
        pass

    assert isinstance(CliRunner().invoke(app, ["fail"]).exception, KeyError)


START = "from two_tower.commands import ingest, models, retriever; {}()"


@pytest.mark.parametrize(
    ("command", "words"),
    [("ingest", ["--help"]), ("retriever", ["search", "--help"]), ("ingest", ["list", "--json"])],
)
def test_a_full_disk_behind_stdout_is_one_line(
    tmp_path: Path, command: str, words: list[str]
) -> None:
    where = ["--path", str(tmp_path / "edge")] if "--json" in words else []
    if where:
        edge_folder = tmp_path / "edge"
        edge_folder.mkdir()
        (edge_folder / "LOCK").touch()
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", START.format(command), *words, *where],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "No space left on device" in line


INTERRUPT = """
import os, signal, sys

def interrupt(frame, event, _):
    if event == "call" and frame.f_code.co_name == "{}":
        sys.setprofile(None)
        os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.setprofile(interrupt)
"""


@pytest.mark.parametrize("command", ["ingest", "models", "retriever"])
@pytest.mark.parametrize(
    "function",
    ["application", "get_command", "get_param_completion", "parse_args", "resolve_command"],
)
def test_ctrl_c_is_one_line_from_the_first_moment(command: str, function: str) -> None:
    """While it is imported, put together, given its words: each has another to catch it."""
    program = INTERRUPT.format(function) + START.format(command)
    done = subprocess.run(
        [sys.executable, "-c", program, "list"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 130, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("Stopped")


@contextmanager
def small_files(most_bytes: int) -> Iterator[None]:
    """No file may grow beyond a size: what a full disk looks like."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_at_a_checkpoint_is_one_line_and_keeps_the_one_before(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    progress = Progress(**dict.fromkeys(Progress._fields, 0))
    folder.save(Checkpoint(progress, {"a": np.ones(3, np.float32)}))
    with small_files(1000), pytest.raises(TrainingError, match="cannot be written"):
        folder.save(Checkpoint(progress, {"a": np.zeros(3000, np.float32)}))
    np.testing.assert_array_equal(folder.load().arrays["a"], np.ones(3, np.float32))
    assert [path.name for path in folder.path.iterdir()] == [folder._checkpoint.name]


PLACES = ["/proc/1/report", "file/report", "file", "/dev/null/report"]


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    data = write_data(tmp_path / "DATA", make_passages(3)).path
    with pytest.raises(ConfigError, match="cannot write a thing into"):
        require_place(Path(place), what="a thing")
    for command in ("evaluate", "tune"):
        words = [command, "c", data, "--bundle", tiny_bundle, "--out", place, "--path", "no"]
        done = CliRunner().invoke(retriever_app, list(map(str, words)))
        assert done.exit_code == 1
        assert "cannot write a report" in done.stderr  # and not that there is no engine
    prepared = CliRunner().invoke(ingest_app, ["prepare", "file", "--out", place])
    assert prepared.exit_code == 1
    assert len(prepared.stderr.splitlines()) == 1


def test_a_good_place_is_not_made_before_the_work(tmp_path: Path) -> None:
    require_place(tmp_path / "a" / "b", what="a thing")
    assert list(tmp_path.iterdir()) == []


def laughs(levels: int) -> str:
    lines = ['a0: &a0 ["ha", "ha", "ha", "ha", "ha", "ha", "ha", "ha", "ha", "ha"]']
    for level in range(1, levels):
        many = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} [{many}]")
    return "\n".join(lines)


BOMBS = {
    "laughs": laughs(9),
    "few laughs": laughs(7)[:308],
    "circle": "a: &a [*a]",
    "merge": "a: &a {b: 1}\nsearch: {<<: *a}",
    "deep list": "[" * 5000,
    "deep mapping": "{a: " * 5000,
    "deep blocks": "\n".join(" " * n + "a:" for n in range(900)),
    "digits": "search: {diversity: " + "9" * 5000 + "}",
    "date": "search: {diversity: 2020-99-99}",
    "large": "# " + "x" * 2**21,
    "long key": "x" * 500_000 + ": 1",
    "long value": "search: {fusion: " + "x" * 500_000 + "}",
    "wide value": "search: {fusion: [" + "[[[[1, 2], [3, 4]]]], " * 10_000 + "]}",
    "key of a list": "? [1, 2]\n: 3",
    "odd key": "search: {1: 2}",
    "escape": 'search: {"\\e]0;x\\a": 1}',
    "no text": "\x00\x01",
    "not finite": "search: {diversity: .nan}",
    "tag": "search: !!python/object/apply:os.system [true]",
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_hostile_settings_file_is_one_short_line(tmp_path: Path, what: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(BOMBS[what])
    with pytest.raises(ConfigError) as failure:
        read_settings(file)
    assert len(str(failure.value)) < 2000
    assert "\n" not in visible(str(failure.value))


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


READ: dict[str, Callable[[Path], object]] = {
    "settings": read_yaml,
    "a prompt of queries": lambda path: read_queries_prompt(str(path)),
    "a prompt of grades": read_grade_prompt,
    "a prompt of rewriting": lambda path: read_rewriting_prompt(str(path)),
    "an archive": lambda path: open_archive(path).__enter__(),
}


@pytest.mark.parametrize("what", READ)
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "large", "other bytes"])
def test_what_is_no_such_file_is_one_line_at_once(tmp_path: Path, what: str, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "pipe" and what == "settings":
        assert read_yaml(pipe(path)) == {}  # nobody fills it
        return
    if kind in ("folder", "pipe"):
        path.mkdir() if kind == "folder" else os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(b"a" * 2**24 if kind == "large" else b"\xff\xfe\0\x80")
    with pytest.raises(TwoTowerError) as failure:
        READ[what](path)
    assert "\n" not in str(failure.value)
    assert len(str(failure.value)) < 2000


def test_settings_from_a_pipe_that_somebody_fills(tmp_path: Path) -> None:
    words = f"sleep 0.3; echo 'search: {{rerank: false}}' > {pipe(tmp_path / 'x')}"
    with subprocess.Popen(["sh", "-c", words]), open(tmp_path / "x", "rb") as held:
        assert read_settings(Path(f"/dev/fd/{held.fileno()}")).rerank is False


def test_a_folder_is_no_settings_and_a_byte_order_mark_is_none_of_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)
    (tmp_path / "settings.yaml").write_bytes(b"\xef\xbb\xbfsearch: {rerank: false}\n")
    assert read_settings(tmp_path / "settings.yaml").rerank is False


STEERING = [
    "\x1b[2J",
    "\x9b2J",
    "\x07",
    "\r",
    "\x08",
    "\u202e",
    "\u2066",
    "\u200f",
    "\u061c",
    "\x7f",
]


@pytest.mark.parametrize("text", STEERING)
def test_nothing_that_steers_a_terminal_is_printed(tmp_path: Path, text: str) -> None:
    assert not UNSAFE.search(visible(f"a{text}b"))


def test_names_from_files_steer_no_terminal(tmp_path: Path) -> None:
    name = "".join(STEERING)
    (tmp_path / "rows.csv").write_text(f'query,passage,"{name}"\nq,some text,x\n', newline="")
    (tmp_path / "settings.yaml").write_text('"\\e[2J\\x9b1m\\u202e": 1\n')
    program = """
import sys
from two_tower.models.console import print_json, print_pairs, say
from two_tower.retriever.search.settings import read_settings
try:
    read_settings(sys.argv[1])
except Exception as error:
    say(f"Error: {error}")
print_pairs([(sys.argv[2], sys.argv[2])], width=9)
print_json('{"a": "' + sys.argv[2] + '"}')
"""
    words = (str(tmp_path / "settings.yaml"), name.replace("\r", ""))
    shown = run_in_terminal(program, *words, NO_COLOR="1")
    assert not UNSAFE.search(shown.replace("\n", ""))
