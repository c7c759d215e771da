import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import make_passages
from services import NAME, Answer, Qdrant, Service, load, running_qdrant, running_service, until

from two_tower.models.errors import ConfigError
from two_tower.retriever.engine.address import read_key
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.service.config import KEY_VARIABLE, SHORTEST_KEY, ServiceConfig

BODY = {"query": "storm on the river bank", "k": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("failures")


@pytest.fixture(scope="module")
def qdrant(folder: Path, tiny_bundle: Path) -> Iterator[Qdrant]:
    with running_qdrant(folder / "qdrant") as running:
        load(folder, tiny_bundle, make_passages(60), url=running.url)
        yield running


@contextmanager
def paused(qdrant: Qdrant) -> Iterator[None]:
    qdrant.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        qdrant.send_signal(signal.SIGCONT)


def works(service: Service) -> bool:
    return service.post("/search", BODY).status == 200


def found(service: Service) -> list[str]:
    return [hit["passage_id"] for hit in service.post("/search", BODY).json["hits"]]


def test_it_outlives_the_engine(qdrant: Qdrant, folder: Path, tiny_bundle: Path) -> None:
    with running_service(folder, tiny_bundle, "--url", qdrant.url) as service:
        before = found(service)
        for _ in range(2):
            qdrant.kill()
            for answer in (service.post("/search", BODY), service.get("/health")):
                assert (answer.status, answer.code) == (503, "engine_unavailable")
                assert "the vector engine does not answer" in answer.json["error"]["message"]
                assert answer.headers["Retry-After"]
                assert qdrant.url not in answer.text
            qdrant.start()
            until(lambda: works(service))
            assert service.get("/health").json["status"] == "ready"
            assert found(service) == before
        assert "Traceback" not in service.log.read_text()


def test_it_may_start_before_the_engine(qdrant: Qdrant, folder: Path, tiny_bundle: Path) -> None:
    qdrant.kill()
    with running_service(folder, tiny_bundle, "--url", qdrant.url) as service:
        assert service.get("/health").code == "engine_unavailable"
        assert service.get("/").status == 200
        qdrant.start()
        until(lambda: works(service))


def test_past_its_limit_it_says_so_and_recovers(
    qdrant: Qdrant, folder: Path, tiny_bundle: Path
) -> None:
    flags = ("--url", qdrant.url, "--threads", "1", "--waiting", "2", "--timeout", "2")
    with (
        running_service(folder, tiny_bundle, *flags) as service,
        ThreadPoolExecutor(8) as clients,
    ):
        assert works(service)
        with paused(qdrant):
            answers = [clients.submit(service.post, "/search", BODY) for _ in range(8)]
            done = [answer.result() for answer in answers]
            assert service.get("/health").code == "engine_unavailable"
        assert sorted(answer.status for answer in done) == [429] * 5 + [504] * 3
        for answer in done:
            assert answer.code == ("overloaded" if answer.status == 429 else "timeout")
            assert answer.headers["Retry-After"] == ("1" if answer.status == 429 else None)
        until(lambda: works(service))
        assert [service.post("/search", BODY).status for _ in range(5)] == [200] * 5


def test_it_answers_what_is_under_way_before_it_ends(
    qdrant: Qdrant, folder: Path, tiny_bundle: Path
) -> None:
    with (
        running_service(folder, tiny_bundle, "--url", qdrant.url) as service,
        ThreadPoolExecutor(1) as client,
    ):
        assert works(service)
        with paused(qdrant):
            answer: Future[Answer] = client.submit(service.post, "/search", BODY)
            assert not wait([answer], timeout=0.5).done
            service.process.terminate()
            assert not wait([answer], timeout=0.5).done
        assert answer.result().status == 200
        assert service.process.wait(timeout=15) in (0, -signal.SIGTERM)
        assert "Traceback" not in service.log.read_text()


def test_interrupting_it_is_not_a_failure(folder: Path, tiny_bundle: Path) -> None:
    load(folder, tiny_bundle, make_passages(10), path=folder / "edge")
    with running_service(folder, tiny_bundle, "--path", folder / "edge") as service:
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(timeout=15) == 0
    assert service.log.read_text().splitlines()[-1].startswith("Serving")
    connect(path=folder / "edge").close()  # the folder is free again


def test_a_collection_that_goes_and_comes_back(
    qdrant: Qdrant, folder: Path, tiny_bundle: Path
) -> None:
    with running_service(folder, tiny_bundle, "--url", qdrant.url) as service:
        assert works(service)
        engine = connect(url=qdrant.url)
        engine.delete_collection(engine.resolve(NAME))
        engine.close()
        for answer in (service.post("/search", BODY), service.get("/health")):
            assert (answer.status, answer.code) == (503, "collection_missing")
        load(folder, tiny_bundle, make_passages(60), url=qdrant.url)
        until(lambda: works(service))
        assert service.get("/health").json["is_current"] is True


def test_without_the_extra_it_names_it(tiny_bundle: Path) -> None:
    program = (
        "import sys; sys.modules['fastapi'] = None; from two_tower.retriever.cli import app; "
        f"app(['serve', 'x', '--bundle', {str(tiny_bundle)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: retriever serve needs fastapi, which is not installed; "
        "run: pip install 'two-tower-search[serve]'\n"
    )


def test_keys_come_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key_of(file: Path | None = None) -> str | None:
        return read_key(KEY_VARIABLE, file=file, shortest=SHORTEST_KEY)

    monkeypatch.delenv("TWO_TOWER_SERVICE_KEY", raising=False)
    assert key_of() is None
    monkeypatch.setenv("TWO_TOWER_SERVICE_KEY", "from-the-environment")
    assert key_of() == "from-the-environment"
    (tmp_path / "key").write_text(" from-a-file\n")
    assert key_of(tmp_path / "key") == "from-a-file"
    for bad in ("", "short", "with a space", "nön-ascii-key"):
        (tmp_path / "key").write_text(bad)
        with pytest.raises(ConfigError, match="expected at least 8 printable ASCII"):
            key_of(tmp_path / "key")
    with pytest.raises(ConfigError, match="cannot be read"):
        key_of(tmp_path)


@pytest.mark.parametrize("limit", ["threads", "timeout_s"])
def test_limits_are_more_than_nothing(limit: str) -> None:
    with pytest.raises(ConfigError, match=f"{limit} is 0, expected above 0"):
        ServiceConfig(name="x", bundle=Path("y"), **{limit: 0})
    with pytest.raises(ConfigError, match="waiting is -1, expected 0 or more"):
        ServiceConfig(name="x", bundle=Path("y"), waiting=-1)
