"""Reaching an engine, and being told in one line why that failed."""

import http.server
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import GIVEN_URL, free_ports, running_server, unavailable
from qdrant_client import models as qm
from typer.testing import CliRunner

from two_tower.ingest.cli import app as ingest_app
from two_tower.models.errors import ConfigError
from two_tower.retriever.engine.address import EngineAddress, read_key
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.errors import EngineError, EngineLocked, EngineTooOld, EngineUnavailable

HOLD = """
import sys, time
from two_tower.retriever.engine.connect import connect
engine = connect(path=sys.argv[1])
print("open", flush=True)
time.sleep(60)
"""


def one_line(failure: pytest.ExceptionInfo[Exception]) -> str:
    message = str(failure.value)
    assert "\n" not in message
    return message


@contextmanager
def answering(body: bytes) -> Iterator[str]:
    """An HTTP server that answers every GET with `body`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_rule_for_choosing_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert EngineAddress.find(url=None, path=None).path == Path(".qdrant")
    monkeypatch.setenv("QDRANT_URL", "http://env:6333")
    monkeypatch.setenv("QDRANT_API_KEY", "from-env")
    assert EngineAddress.find(url=None, path=None).url == "http://env:6333"
    assert EngineAddress.find(url=None, path=None).api_key == "from-env"
    assert EngineAddress.find(url="http://given:1", path=None).url == "http://given:1"
    assert EngineAddress.find(url="http://given:1", path=None, api_key="k").api_key == "k"
    by_path = EngineAddress.find(url=None, path="here")
    assert (by_path.path, by_path.url, by_path.api_key) == (Path("here"), None, None)
    with pytest.raises(ConfigError, match="both URL http://a and path b"):
        EngineAddress.find(url="http://a", path="b")
    for bad in ("localhost:6333", "ftp://host", "http://", "http:///x"):
        with pytest.raises(ConfigError, match="is not a URL"):
            EngineAddress.find(url=bad, path=None)


def test_keys_come_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("QDRANT_API_KEY", "TWO_TOWER_SERVICE_KEY"):
        assert read_key(variable) is None
        monkeypatch.setenv(f"{variable}_FILE", str(tmp_path / "named"))
        with pytest.raises(ConfigError, match=f"{variable}_FILE .* cannot be read .No such file"):
            read_key(variable)
        (tmp_path / "named").write_text(" from-the-named-file\n")
        assert read_key(variable) == "from-the-named-file"
        monkeypatch.setenv(variable, "from-env")
        assert read_key(variable, shortest=8) == "from-env"
        with pytest.raises(ConfigError, match=f"{variable} holds no API key; expected at least 9"):
            read_key(variable, shortest=9)
        (tmp_path / "given").write_text("two words")
        with pytest.raises(ConfigError, match="given holds no API key; expected printable ASCII"):
            read_key(variable, file=tmp_path / "given")
        (tmp_path / "named").unlink()


def test_secrets_are_not_shown() -> None:
    address = EngineAddress.find(url="http://user:pass@host:1/x", path=None, api_key="secret-key")
    assert str(address) == "http://host:1/x"
    assert "secret-key" not in repr(address)


def test_a_server_that_is_down() -> None:
    port = free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    with pytest.raises(EngineUnavailable, match=f"no Qdrant answers at {url}") as failure:
        connect(url=url)
    assert "compose.yaml" in one_line(failure)


def test_a_server_that_is_too_old() -> None:
    with (
        answering(b'{"title":"qdrant","version":"1.10.0"}') as url,
        pytest.raises(
            EngineTooOld, match=rf"{url} runs Qdrant 1\.10\.0, expected 1\.16"
        ) as failure,
    ):
        connect(url=url)
    one_line(failure)


@pytest.mark.parametrize("body", [b"<html>\nhello</html>", b'{"title":"x","version":"?"}', b"[]"])
def test_something_that_is_not_qdrant(body: bytes) -> None:
    with answering(body) as url, pytest.raises(EngineUnavailable, match=url) as failure:
        connect(url=url)
    one_line(failure)


def test_keys_and_a_server_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if GIVEN_URL:
        unavailable("QDRANT_URL is given: no server of our own to stop")
    with running_server(tmp_path / "server", api_key="right-key") as server:
        for key in (None, "wrong-key"):
            with pytest.raises(EngineUnavailable, match="refused the API key") as failure:
                connect(url=server.url, api_key=key)
            assert "QDRANT_API_KEY" in one_line(failure)
            assert "wrong-key" not in str(failure.value)
        monkeypatch.setenv("QDRANT_URL", server.url)
        monkeypatch.setenv("QDRANT_API_KEY", "right-key")
        engine = connect()
        assert engine.get_collections().collections == []
    with pytest.raises(EngineUnavailable, match=f"no Qdrant answers at {server.url}") as failure:
        engine.get_collections()
    one_line(failure)
    engine.close()


def test_a_folder_open_in_another_process(tmp_path: Path) -> None:
    folder = tmp_path / "edge"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "open\n"
            with pytest.raises(EngineLocked, match=f"in use by process {holder.pid}") as failure:
                connect(path=folder)
            one_line(failure)
        finally:
            holder.kill()
    connect(path=folder).close()


def test_folders_that_are_something_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(EngineUnavailable, match="is a file"):
        connect(path=tmp_path / "file")
    with pytest.raises(EngineUnavailable, match="holds other files"):
        connect(path=tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_embedded_collections_outlive_the_process(tmp_path: Path) -> None:
    vectors = {"dense": qm.VectorParams(size=2, distance=qm.Distance.COSINE)}
    engine = connect(path=tmp_path)
    engine.create_collection("c", vectors_config=vectors, metadata={"a": 1})
    engine.upsert("c", [qm.PointStruct(id=1, vector={"dense": [1.0, 0.0]}, payload={"x": 1})])
    create = qm.CreateAlias(alias_name="alias", collection_name="c")
    engine.update_collection_aliases([qm.CreateAliasOperation(create_alias=create)])
    engine.close()

    engine = connect(path=tmp_path)
    assert engine.resolve("alias") == "c"
    assert engine.get_collection("c").config.metadata == {"a": 1}
    assert engine.retrieve("alias", [1])[0].payload == {"x": 1}
    engine.close()


def test_embedded_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    vectors = {"dense": qm.VectorParams(size=2, distance=qm.Distance.COSINE)}
    engine = connect(path=tmp_path / "edge")
    for bad in ("../out", "a/b", ".hidden", "", "x" * 201, "a\x00b"):
        with pytest.raises(EngineError, match="cannot name a collection"):
            engine.create_collection(bad, vectors_config=vectors)
        assert not engine.collection_exists(bad)
        assert not engine.delete_collection(bad)
    engine.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["edge"]


def test_a_folder_half_made_by_a_killed_process_is_taken(tmp_path: Path) -> None:
    (tmp_path / "edge").mkdir()
    connect(path=tmp_path / "edge").close()
    (tmp_path / "edge" / "collections").rmdir()
    connect(path=tmp_path / "edge").close()


def test_a_server_that_never_answers() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(EngineUnavailable, match=rf"{url} \(timed out\)") as failure:
            connect(url=url, timeout_s=1)
    one_line(failure)


def test_reading_commands_do_not_make_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["list"], ["verify", "x"], ["promote", "x"], ["drop", "x"]):
        result = CliRunner().invoke(ingest_app, words)
        assert result.exit_code == 1
        assert "there is no embedded engine at .qdrant" in result.stderr
        assert list(tmp_path.iterdir()) == []
