"""A server's key: where it comes from, that nothing shows or keeps it, what a lesser one may."""

import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import GIVEN_URL, Server, free_ports, make_bundle, running_server, unavailable
from judged import write_judged
from services import running_service
from typer.testing import CliRunner

from two_tower.ingest.cli import app as ingest_app
from two_tower.models.errors import ConfigError
from two_tower.retriever.cli import app as retriever_app
from two_tower.retriever.engine.address import EngineAddress
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.errors import EngineUnavailable, KeyRefused

KEY = "the-full-key-9f3c"
READ_ONLY = "the-reading-key-51aa"
SECRETS = (KEY, READ_ONLY)
NAME = "guarded"


class Place(NamedTuple):
    """A server with both keys, and a collection in it."""

    folder: Path
    server: Server
    data: Path
    bundle: Path

    @property
    def url(self) -> list[str]:
        return ["--url", self.server.url]

    @property
    def load(self) -> list[str]:
        words = ["load", self.data, "--bundle", self.bundle, "--collection", NAME]
        return [*map(str, words), *self.url]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    if GIVEN_URL:
        unavailable("QDRANT_URL is given: these keys are for a server of our own")
    folder = tmp_path_factory.mktemp("keys")
    data = write_judged(folder / "DATA").path
    bundle = make_bundle(folder / "bundle")
    keys = {"SERVICE__READ_ONLY_API_KEY": READ_ONLY, "LOG_LEVEL": "INFO"}
    with running_server(folder / "server", api_key=KEY, **keys) as server:
        place = Place(folder, server, data, bundle)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("QDRANT_API_KEY", KEY)
            done = CliRunner().invoke(ingest_app, place.load)
            assert done.exit_code == 0, done.stderr
        yield place


def assert_no_secret(*texts: str) -> None:
    for text in texts:
        assert not [secret for secret in SECRETS if secret in text]


def test_a_key_from_the_environment_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    monkeypatch.setenv("QDRANT_API_KEY_FILE", str(file))
    assert EngineAddress.find(url="http://x", path=None).api_key == KEY
    monkeypatch.setenv("QDRANT_API_KEY", "nearer")
    assert EngineAddress.find(url="http://x", path=None).api_key == "nearer"
    assert EngineAddress.find(url="http://x", path=None, api_key="given").api_key == "given"


@pytest.mark.parametrize(
    "content", [b"", b" \n", b"two words", b"two\nlines", "kéy".encode(), b"\xff"]
)
def test_a_key_that_is_none_is_refused_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    monkeypatch.setenv("QDRANT_API_KEY_FILE", str(file))
    with pytest.raises(ConfigError, match="QDRANT_API_KEY_FILE") as failure:
        EngineAddress.find(url="http://x", path=None)
    for word in ("two", "lines", "y\n"):
        assert word not in str(failure.value)


def test_a_key_file_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDRANT_API_KEY_FILE", str(tmp_path / "none"))
    done = CliRunner().invoke(ingest_app, ["list", "--url", "http://127.0.0.1:1"])
    assert done.exit_code == 1
    assert f"QDRANT_API_KEY_FILE {tmp_path / 'none'} cannot be read (No such file" in done.stderr


def test_no_command_shows_or_keeps_the_key(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_text(KEY)
    monkeypatch.setenv("QDRANT_API_KEY_FILE", str(tmp_path / "key"))
    closed = f"http://127.0.0.1:{free_ports(1)[0]}"
    bundle = ["--bundle", str(place.bundle)]
    full = ["--data", str(place.data), *bundle]
    report = ["--out", str(tmp_path / "report"), "--systems", "dense,hybrid"]
    good = [
        (ingest_app, [*place.load, "--prune"]),
        (ingest_app, ["list", "--json", *place.url]),
        (ingest_app, ["verify", NAME, *full, "--repair", *place.url]),
        (retriever_app, ["search", NAME, "river bank", "--explain", *bundle, *place.url]),
        (retriever_app, ["evaluate", NAME, str(place.data), *bundle, *report, *place.url]),
    ]
    bad = [
        (ingest_app, ["verify", "nothing", *place.url]),
        (ingest_app, ["list", "--url", closed]),
        (ingest_app, ["promote", "nothing", *place.url]),
        (retriever_app, ["search", "nothing", "x", *bundle, *place.url]),
    ]
    for number, (app, words) in enumerate(good + bad):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == (0 if number < len(good) else 1), done.stderr
        assert_no_secret(done.stdout, done.stderr)
    with_password = closed.replace("//", f"//user:{KEY}@")
    code = (
        "import logging; logging.basicConfig(level=0); from two_tower.ingest.cli import app; app()"
    )
    command = [sys.executable, "-X", "dev", "-W", "ignore", "-c", code, "list", "--url"]
    ended = subprocess.run([*command, with_password], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert closed in ended.stderr
    assert_no_secret(ended.stdout, ended.stderr)
    (tmp_path / "key").unlink()
    for file in [*tmp_path.rglob("*"), *place.folder.rglob("*")]:
        if file.is_file() and "storage" not in file.parts:
            assert not [s for s in SECRETS if s.encode() in file.read_bytes()], file


def test_no_error_or_repr_has_the_key(place: Place) -> None:
    with pytest.raises(KeyRefused) as refused:
        connect(url=place.server.url, api_key=READ_ONLY + KEY)
    with pytest.raises(EngineUnavailable) as down:
        connect(url=f"http://127.0.0.1:{free_ports(1)[0]}", api_key=KEY)
    engine = connect(url=place.server.url, api_key=KEY)
    address = EngineAddress.find(url=place.server.url, path=None, api_key=KEY)
    shown = [repr(engine), str(engine), repr(address), str(address)]
    for failure in (refused, down):
        shown += ["".join(traceback.format_exception(failure.value))]
    engine.close()
    assert_no_secret(*shown)


def test_a_read_only_key_is_enough_to_search_evaluate_and_serve(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", READ_ONLY)
    bundle = ["--bundle", str(place.bundle)]
    run = CliRunner().invoke
    found = run(retriever_app, ["search", NAME, "river bank", *bundle, *place.url])
    assert found.exit_code == 0, found.stderr
    assert "number" in found.stdout
    words = ["evaluate", NAME, str(place.data), "--out", str(tmp_path / "report")]
    judged = run(retriever_app, [*words, "--systems", "dense,hybrid", *bundle, *place.url])
    assert judged.exit_code == 0, judged.stderr
    full = ["--data", str(place.data), *bundle]
    assert run(ingest_app, ["verify", NAME, *full, *place.url]).exit_code == 0
    with running_service(
        tmp_path, place.bundle, *place.url, name=NAME, QDRANT_API_KEY=READ_ONLY
    ) as service:
        answer = service.post("/search", {"query": "river bank", "k": 3})
        assert answer.status == 200
    assert_no_secret(service.log.read_text(), answer.text)


def test_a_read_only_key_writes_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", READ_ONLY)
    for words in (place.load, ["drop", NAME, "--yes", *place.url]):
        done = CliRunner().invoke(ingest_app, words)
        assert done.exit_code == 1
        line = done.stderr.splitlines()[-1]
        assert f"{place.server.url} refused the API key for this (HTTP 403)" in line
        assert "a read-only key may only read" in line
        assert_no_secret(done.stderr)
    monkeypatch.setenv("QDRANT_API_KEY", KEY)
    assert f"{NAME} " in CliRunner().invoke(ingest_app, ["list", *place.url]).stdout


def test_a_wrong_key_is_one_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", "not-it")
    for app, words in (
        (ingest_app, place.load),
        (ingest_app, ["list", *place.url]),
        (retriever_app, ["search", NAME, "x", "--bundle", str(place.bundle), *place.url]),
    ):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 1
        (line,) = done.stderr.splitlines()
        assert "refused the API key, or was given none (HTTP 401)" in line
        assert "not-it" not in line
