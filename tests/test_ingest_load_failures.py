"""A full disk, a server out of memory or with limits, a load that ended before its promotion.

Each is told in one line, loses nothing, and is mended by the same command once the cause is gone.
"""

import re
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Node
from conftest import HashEncoder, Server, make_passages, qdrant_binary, write_data
from qdrant_client import QdrantClient
from qdrant_client import models as qm
from typer.testing import CliRunner

from two_tower.ingest.cli import app
from two_tower.ingest.loading import loader
from two_tower.ingest.loading.verify import verify
from two_tower.ingest.versions.versions import promote
from two_tower.models.data import Dataset
from two_tower.retriever.engine import edge_folder
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.errors import EngineError

MakeData = Callable[..., Dataset]
COUNT = 3000
AGAIN = "run the same command again"
INGEST = [sys.executable, "-c", "from two_tower.ingest.cli import app; app()"]
RETRIEVER = [sys.executable, "-c", "from two_tower.retriever.cli import app; app()"]
SMALL_LOG = {"QDRANT__STORAGE__WAL__WAL_CAPACITY_MB": "1"}  # another file after each MB written
LONGEST_FILE = 2**19
TMPFS = "mount -t tmpfs -o size={size} none {folder}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("fail") / "DATA", make_passages(COUNT)).path


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A folder to mount a small disk on, where the system lets a user do that."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = TMPFS.format(size="1m", folder=folder)
    if (
        not shutil.which("unshare")
        or subprocess.run(["unshare", "-Urm", "sh", "-c", mount], capture_output=True).returncode
    ):
        # Also in CI: what may not grow, or is nearly full, is tested below on any system.
        pytest.skip("this system lets no user mount a disk of their own (unshare -Urm)")
    return folder


def one_line(output: str) -> str:
    (line,) = [line for line in output.splitlines() if line.startswith("Error: ")]
    return line


def test_the_disk_is_full_on_the_embedded_engine(
    small_disk: Path, data: Path, tiny_bundle: Path
) -> None:
    words = ["load", data, "--bundle", tiny_bundle, "--collection", "c"]
    load = shlex.join([*INGEST, *map(str, words), "--path", f"{small_disk}/edge"])
    script = (
        f"{TMPFS.format(size='76m', folder=small_disk)}; {load}; echo ended $?; "
        f"mount -o remount,size=300m {small_disk}; exec {load}"
    )
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script], capture_output=True, text=True, check=True
    )
    full, mended = done.stdout.split("ended 1\n")
    assert full == ""
    assert f"expected 64 or more; free some space and {AGAIN}" in one_line(done.stderr)
    unchanged = re.search(r"([\d,]+) unchanged", mended)
    assert unchanged
    assert int(unchanged[1].replace(",", "")) > 0, "the disk was full before the first point"
    assert f"verified {COUNT:,} points" in mended


@pytest.mark.parametrize(("size", "is_refused"), [("90m", True), ("300m", False)])
def test_a_disk_in_memory_has_room_to_open_a_collection_or_says_so(
    small_disk: Path, data: Path, tiny_bundle: Path, size: str, is_refused: bool
) -> None:
    where = ["--bundle", str(tiny_bundle), "--path", f"{small_disk}/edge"]
    load = shlex.join([*INGEST, "load", str(data), "--collection", "c", *where])
    search = shlex.join([*RETRIEVER, "search", "c", "river", "-k", "1", *where])
    script = (
        f"{TMPFS.format(size='300m', folder=small_disk)}; {load} >&2; "
        f"mount -o remount,size={size} {small_disk}; exec {search}"
    )
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == is_refused, done.stderr
    if is_refused:
        assert "MB more of" in one_line(done.stderr)
        assert "give it more, or put the folder on a disk" in done.stderr


def test_what_is_written_stays_when_the_disk_is_nearly_full(
    edge_engine: Engine,
    name: str,
    encoder: HashEncoder,
    make_data: MakeData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passages = make_passages(200)
    collection = loader.load(edge_engine, make_data(passages[:50]), encoder, name=name).collection
    whole = make_data(passages, name="WHOLE")
    with monkeypatch.context() as patch:
        patch.setattr(edge_folder, "LEAST_FREE", 10**18)
        with pytest.raises(EngineError, match=f"free some space and {AGAIN}"):
            loader.load(edge_engine, whole, encoder, name=name)
    assert edge_engine.count(collection).count == 50
    assert loader.load(edge_engine, whole, encoder, name=name).unchanged == 50
    assert verify(edge_engine, collection, whole, encoder).points == 200


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node("one", tmp_path / "server", [])
    yield node
    if node.alive:
        node.kill()


def test_the_disk_is_full_on_the_server(
    small_disk: Path,
    node: Node,
    data: Path,
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_a_small_disk = small_disk.with_name("qdrant")
    on_a_small_disk.write_text(
        f"#!/bin/sh\nexec unshare -Urm sh -c '{TMPFS.format(size='90m', folder=small_disk)} && "
        f'exec {qdrant_binary()} "$@"\' qdrant "$@"\n'
    )
    on_a_small_disk.chmod(0o755)
    monkeypatch.setenv("QDRANT_BINARY", str(on_a_small_disk))
    node.folder = small_disk
    node.start({})
    node.wait_until_ready()
    load = ["load", str(data), "--bundle", str(tiny_bundle), "--collection", "c", "--url", node.url]
    done = CliRunner().invoke(app, [*load, "--retry-for", "1"])
    assert done.exit_code == 1
    error = one_line(done.stderr)
    assert "No space left on device" in error
    assert AGAIN in error

    inside = ["nsenter", "-t", str(node.process and node.process.pid), "-U", "-m"]
    remount = ["mount", "-o", "remount,size=900m", str(small_disk)]
    subprocess.run([*inside, "--preserve-credentials", *remount], check=True)
    mended = CliRunner().invoke(app, load)
    assert f"verified {COUNT:,} points" in mended.stdout, mended.stderr


def test_the_servers_files_may_not_grow(
    tmp_path: Path, node: Node, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk, but on any system: the kernel refuses what would make a file longer."""
    data = write_data(tmp_path / "DATA", make_passages(2 * COUNT)).path
    told_not_killed = tmp_path / "qdrant"
    told_not_killed.write_text(f"#!/bin/sh\ntrap '' XFSZ\nexec {qdrant_binary()} \"$@\"\n")
    told_not_killed.chmod(0o755)
    monkeypatch.setenv("QDRANT_BINARY", str(told_not_killed))
    node.start(SMALL_LOG)
    node.wait_until_ready()
    load = ["load", str(data), "--bundle", str(tiny_bundle), "--collection", "c", "--url", node.url]
    assert CliRunner().invoke(app, [*load, "--limit", "300"]).exit_code == 0
    assert node.process
    resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (LONGEST_FILE, LONGEST_FILE))
    done = CliRunner().invoke(app, [*load, "--retry-for", "1"])
    assert done.exit_code == 1, done.stdout
    error = one_line(done.stderr)
    assert "Can't write WAL" in error
    assert AGAIN in error
    node.kill()
    node.start(SMALL_LOG)
    node.wait_until_ready()
    mended = CliRunner().invoke(app, load)
    assert f"verified {2 * COUNT:,} points" in mended.stdout, mended.stderr
    assert " 0 unchanged" not in mended.stdout


def test_the_server_runs_out_of_memory(node: Node, data: Path, tiny_bundle: Path) -> None:
    node.start({})
    node.wait_until_ready()
    load = ["load", str(data), "--bundle", str(tiny_bundle), "--collection", "c", "--url", node.url]
    first = CliRunner().invoke(app, [*load, "--limit", "100"])
    assert first.exit_code == 0
    assert node.process
    pages = int(Path(f"/proc/{node.process.pid}/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 2**20
    resource.prlimit(node.process.pid, resource.RLIMIT_AS, (limit, limit))
    done = CliRunner().invoke(app, [*load, "--retry-for", "1"])
    assert done.exit_code == 1, done.stdout
    assert AGAIN in one_line(done.stderr)
    if node.alive:
        node.kill()
    node.start({})
    node.wait_until_ready()
    mended = CliRunner().invoke(app, load)
    assert f"verified {COUNT:,} points" in mended.stdout, mended.stderr
    assert " 0 unchanged" not in mended.stdout


def test_a_server_with_a_limit_says_which(
    rest_engine: Engine, server: Server, name: str, encoder: HashEncoder, make_data: MakeData
) -> None:
    data = make_data(make_passages(300))
    few = make_data(make_passages(20), name="FEW")
    collection = loader.load(rest_engine, few, encoder, name=name).collection
    client = QdrantClient(url=server.url, api_key=server.api_key, check_compatibility=False)
    for most in (100, 10_000):
        strict = qm.StrictModeConfig(enabled=True, upsert_max_batchsize=most)
        client.update_collection(collection, strict_mode_config=strict)
        if most == 100:
            with pytest.raises(EngineError, match=f"256 > 100.*0 passages were written: {AGAIN}"):
                loader.load(rest_engine, data, encoder, name=name)
            assert rest_engine.count(collection).count == 20
    client.close()
    assert loader.load(rest_engine, data, encoder, name=name).unchanged == 20
    assert verify(rest_engine, collection, data, encoder).points == 300


def test_a_load_that_ended_before_its_promotion_is_promoted_by_the_next(
    engine: Engine, name: str, make_data: MakeData
) -> None:
    data = make_data(make_passages(50))
    old, new = HashEncoder(seed=1), HashEncoder(seed=2)
    first = loader.load(engine, data, old, name=name).collection
    promote(engine, name, first)
    loader.load(engine, data, new, name=name)  # and here it is killed
    assert engine.resolve(name) == first
    again = loader.load(engine, data, new, name=name)
    assert again.unchanged == 50
    assert promote(engine, name, again.collection) == engine.resolve(name) != first
