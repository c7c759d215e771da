"""How long an engine lives: shared in a process, closed, dropped, forked, pickled."""

import copy
import gc
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Server, make_passages, server_engine, write_data

from two_tower.ingest.loading import loader
from two_tower.ingest.versions import versions as collections
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.data import Dataset
from two_tower.retriever import Retriever
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.errors import EngineClosed, EngineLocked

PASSAGES = make_passages(60)
QUERY = "storm on the river bank"
IS_FREE = """
import sys
from two_tower.retriever.engine.connect import connect
connect(path=sys.argv[1], create=False).close()
"""

Open = Callable[..., Retriever]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    """An embedded engine with the collections `one` and `two`."""
    folder = tmp_path_factory.mktemp("life")
    bundle, data = ModelBundle.load(tiny_bundle), write_data(folder / "DATA", PASSAGES)
    engine = connect(path=folder / "edge")
    for name in ("one", "two"):
        report = loader.load(engine, data, bundle, name=name)
        collections.promote(engine, name, report.collection)
    engine.close()
    return folder / "edge"


@pytest.fixture
def edge_folder(tmp_path: Path, loaded: Path) -> Path:
    return shutil.copytree(loaded, tmp_path / "edge")


@pytest.fixture
def open_edge(edge_folder: Path, tiny_bundle: Path) -> Iterator[Open]:
    opened = []

    def opens(name: str = "one") -> Retriever:
        opened.append(Retriever.open(name, bundle=tiny_bundle, path=edge_folder))
        return opened[-1]

    yield opens
    for retriever in opened:
        retriever.close()


def is_free(folder: Path) -> bool:
    """Say whether another process can open the folder."""
    done = subprocess.run([sys.executable, "-c", IS_FREE, folder], capture_output=True, text=True)
    assert done.returncode == 0 or "EngineLocked" in done.stderr, done.stderr
    return done.returncode == 0


def test_a_process_shares_one_engine_and_the_last_to_close_frees_it(
    open_edge: Open, edge_folder: Path, tmp_path: Path
) -> None:
    first, again, other = open_edge(), open_edge(), open_edge("two")
    (tmp_path / "link").symlink_to(edge_folder)
    linked = connect(path=tmp_path / "link")
    expected = first.search(QUERY)
    assert again.search(QUERY) == expected
    of_two = other.search(QUERY)
    assert [hit.passage_id for hit in of_two] == [hit.passage_id for hit in expected]
    for retriever in (first, again, first):
        retriever.close()
    assert other.search(QUERY) == of_two
    assert not is_free(edge_folder)
    other.close()
    assert linked.count("one").count == 60
    assert not is_free(edge_folder)
    linked.close()
    assert is_free(edge_folder)


def test_what_one_writes_the_other_finds(
    open_edge: Open, edge_folder: Path, tiny_bundle: Path, make_data: Callable[..., Dataset]
) -> None:
    retriever = open_edge()
    engine = connect(path=edge_folder)
    more = make_data([*PASSAGES, *make_passages(70)[60:]], name="MORE")
    loader.load(engine, more, ModelBundle.load(tiny_bundle), name="one")
    engine.close()
    assert retriever.engine.count("one").count == 70
    assert retriever.count(["p65"]) == 1


@pytest.mark.parametrize("how", ["del", "notebook cell", "cycle"])
def test_a_dropped_retriever_lets_the_folder_go(
    how: str, edge_folder: Path, tiny_bundle: Path
) -> None:
    retriever = Retriever.open("one", bundle=tiny_bundle, path=edge_folder)
    expected = retriever.search(QUERY)
    if how == "notebook cell":  # run again: the name is bound while the old one is still open
        retriever = Retriever.open("one", bundle=tiny_bundle, path=edge_folder)
        assert retriever.search(QUERY) == expected
    if how == "cycle":
        cycle = [retriever]
        cycle.append(cycle)  # type: ignore[arg-type]
        del cycle
    assert not is_free(edge_folder)
    del retriever
    gc.collect()
    assert is_free(edge_folder)


def test_a_folder_that_was_removed_and_made_again_is_another_one(
    open_edge: Open, edge_folder: Path
) -> None:
    old = open_edge()
    moved = edge_folder.rename(edge_folder.with_name("moved"))
    new = connect(path=edge_folder)
    assert not new.collection_exists("one")
    new.close()
    shutil.rmtree(edge_folder)
    moved.rename(edge_folder)
    assert old.engine.count("one").count == 60


@pytest.mark.parametrize("twin", ["itself", "with_settings", "with_rewriter", "copy"])
def test_a_search_after_close_says_so(open_edge: Open, twin: str) -> None:
    retriever = open_edge()
    calls = {
        "itself": lambda: retriever,
        "with_settings": lambda: retriever.with_settings(retriever.settings),
        "with_rewriter": lambda: retriever.with_rewriter(None),
        "copy": lambda: copy.copy(retriever),
    }
    searching = calls[twin]()
    assert " passages, bundle " in repr(retriever)
    retriever.close()
    assert repr(retriever).endswith(": closed>")
    for call in (
        lambda: searching.search(QUERY),
        lambda: searching.search_many([QUERY] * 40),
        lambda: searching.similar("p1"),
        lambda: searching.count(["p1"]),
        lambda: list(searching.passages()),
    ):
        with pytest.raises(EngineClosed, match="was closed; open it again") as failure:
            call()
        assert "\n" not in str(failure.value)


def test_a_closed_connection_to_a_server_says_so(server: Server) -> None:
    engine = server.connect()
    engine.close()
    engine.close()
    with pytest.raises(EngineClosed, match="was closed; open it again"):
        engine.get_aliases()


def test_a_relative_folder_stays_the_same_where_the_process_goes_elsewhere(
    edge_folder: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(edge_folder.parent)
    retriever = Retriever.open("one", bundle=tiny_bundle, path=edge_folder.name)
    expected = retriever.search(QUERY)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert retriever.search(QUERY) == expected
    assert retriever.engine.collection_exists("two")
    assert [alias.alias_name for alias in retriever.engine.get_aliases().aliases] == ["one", "two"]
    with Retriever.open("two", bundle=tiny_bundle, path=edge_folder) as other:
        assert other.engine.collection_exists(retriever.collection)
    retriever.close()
    assert is_free(edge_folder)
    assert not any(Path.cwd().iterdir())


def in_a_fork(job: Callable[[], object]) -> str:
    """Return what a forked child says: the job's result, or its error."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            answer = str(job())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    deadline = time.monotonic() + 20
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            pytest.fail("the child hangs")
        time.sleep(0.02)
    with os.fdopen(reading) as answer:
        return answer.read()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork_is_refused_in_one_line_and_harms_nothing(
    open_edge: Open, edge_folder: Path, tiny_bundle: Path
) -> None:
    retriever = open_edge()
    expected = retriever.search(QUERY)
    said = in_a_fork(lambda: retriever.search(QUERY))
    assert said.startswith("EngineClosed: ")
    assert "of which this is a fork" in said
    assert "\n" not in said
    assert in_a_fork(retriever.close) == "None"
    said = in_a_fork(lambda: Retriever.open("one", bundle=tiny_bundle, path=edge_folder))
    assert said.startswith(f"EngineLocked: {edge_folder} is in use by process {os.getpid()}")
    assert retriever.search(QUERY) == expected
    assert not is_free(edge_folder)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork_does_not_keep_the_folder_of_its_parent(open_edge: Open, edge_folder: Path) -> None:
    retriever = open_edge()
    pid = os.fork()
    if not pid:
        time.sleep(60)
        os._exit(0)
    try:
        retriever.close()
        assert is_free(edge_folder)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork_of_a_servers_client_connects_by_itself(
    server: Server, name: str, tiny_bundle: Path, make_data: Callable[..., Dataset]
) -> None:
    with server_engine(server, name) as engine:
        report = loader.load(engine, make_data(PASSAGES), ModelBundle.load(tiny_bundle), name=name)
        retriever = Retriever.open(
            report.collection, bundle=tiny_bundle, url=server.url, api_key=server.api_key
        )

        def ids() -> list[str]:
            return [hit.passage_id for hit in retriever.search(QUERY)]

        expected = str(ids())
        ended = threading.Event()
        failures: list[object] = []

        def keep_searching() -> None:
            while not ended.is_set():
                if str(ids()) != expected:
                    failures.append("another answer")

        thread = threading.Thread(target=keep_searching)
        thread.start()
        try:
            for _ in range(3):
                assert in_a_fork(ids) == expected
        finally:
            ended.set()
            thread.join()
        assert not failures
        retriever.close()


def test_pickling_is_refused_in_one_line(open_edge: Open) -> None:
    retriever = open_edge()
    for job in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="open it there") as failure:
            job(retriever)
        assert "\n" not in str(failure.value)


def search_elsewhere(folder: Path, bundle: Path) -> list[str]:
    with Retriever.open("one", bundle=bundle, path=folder) as retriever:
        return [hit.passage_id for hit in retriever.search(QUERY)]


def test_a_spawned_process_opens_by_itself(
    edge_folder: Path, tiny_bundle: Path, open_edge: Open
) -> None:
    retriever = open_edge()
    expected = [hit.passage_id for hit in retriever.search(QUERY)]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        with pytest.raises(EngineLocked):
            pool.apply(search_elsewhere, (edge_folder, tiny_bundle))
        retriever.close()
        assert pool.apply(search_elsewhere, (edge_folder, tiny_bundle)) == expected


def test_a_process_that_ends_without_closing_loses_nothing(edge_folder: Path) -> None:
    program = (
        "import sys\n"
        "from two_tower.retriever.engine.connect import connect\n"
        "from qdrant_client import models as qm\n"
        "e = connect(path=sys.argv[1])\n"
        "c = e.resolve('one')\n"
        "e.delete(c, [r.id for r in e.scroll(c, limit=5)[0]], wait=False)\n"
    )
    subprocess.run([sys.executable, "-c", program, edge_folder], check=True)
    engine = connect(path=edge_folder)
    assert engine.count("one").count == 55
    engine.close()
