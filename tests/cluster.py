"""Three real Qdrant nodes on loopback, started as deploy/cluster.yaml says."""

import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from conftest import ROOT, free_ports, qdrant_binary, wait_until_ready

from retriever.engine import Engine, connect

COMPOSE = ROOT / "deploy" / "cluster.yaml"
KEY = "cluster-key"
KEYS = {
    "QDRANT__SERVICE__API_KEY": KEY,
    "QDRANT__SERVICE__READ_ONLY_API_KEY": "cluster-read-only-key",
}


class Replica(NamedTuple):
    """One copy of a shard."""

    shard: int
    peer: int
    state: str


class Node:
    """One node: a process that can be killed and started again at the same addresses."""

    def __init__(self, name: str, folder: Path, command: list[str]) -> None:
        self.name = name
        self.folder = folder
        self.http_port, self.grpc_port, self.p2p_port = free_ports(3)
        self.command = command
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.p2p_port}"

    def start(self, settings: dict[str, str]) -> None:
        own = settings | {
            "QDRANT__SERVICE__HOST": "127.0.0.1",
            "QDRANT__SERVICE__HTTP_PORT": str(self.http_port),
            "QDRANT__SERVICE__GRPC_PORT": str(self.grpc_port),
            "QDRANT__CLUSTER__P2P__PORT": str(self.p2p_port),
            "QDRANT__STORAGE__STORAGE_PATH": str(self.folder / "storage"),
            "QDRANT__STORAGE__SNAPSHOTS_PATH": str(self.folder / "snapshots"),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [qdrant_binary(), "--config-path", ROOT / "qdrant.yaml", *self.command],
                env=os.environ | own,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_until_ready(self) -> None:
        assert self.process
        wait_until_ready(self.url, self.process, self.folder / "log")

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """Kill with SIGKILL: nothing is written on the way out."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Send a request that the client library has no method for; return its result."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"api-key": KEY, "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["result"]

    def connect(self, *, timeout_s: int = 30) -> Engine:
        return connect(url=self.url, api_key=KEY, timeout_s=timeout_s)

    @property
    def peer(self) -> int:
        return int(self.call("GET", "/cluster")["peer_id"])


class Cluster:
    """The nodes that deploy/cluster.yaml describes."""

    def __init__(self, folder: Path) -> None:
        services: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
        self._folder = folder
        self._settings = {
            name: {key: _value(key, text) for key, text in service["environment"].items()}
            for name, service in services.items()
        }
        self.nodes: list[Node] = [
            Node(name, folder / name, service["command"][1:]) for name, service in services.items()
        ]
        for node in self.nodes:
            node.command = [self._on_loopback(word) for word in node.command]

    def _on_loopback(self, word: str) -> str:
        for node in self.nodes:
            word = word.replace(f"http://{node.name}:6335", node.uri)
        return word

    def start(self, *nodes: Node) -> None:
        for node in nodes or self.nodes:
            node.start(self._settings[node.name])
            node.wait_until_ready()

    def replace(self, lost: Node) -> Node:
        """Start an empty node in the place of one whose disk is gone; the others know it not."""
        shutil.rmtree(lost.folder)
        survivor = next(node for node in self.nodes if node.alive)
        fresh = Node(lost.name, lost.folder, [])
        fresh.command = ["--bootstrap", survivor.uri, "--uri", fresh.uri]
        self.nodes[self.nodes.index(lost)] = fresh
        self.start(fresh)
        return fresh

    def stop(self) -> None:
        for node in self.nodes:
            if node.alive:
                node.kill()

    @property
    def living(self) -> list[Node]:
        return [node for node in self.nodes if node.alive]

    def leader(self) -> Node:
        """Return the node that leads the consensus, as soon as there is one that lives."""
        found: list[Node] = []

        def known() -> bool:
            leaders = {node.call("GET", "/cluster")["raft_info"]["leader"] for node in self.living}
            found[:] = [node for node in self.living if {node.peer} == leaders]
            return bool(found)

        until(known)
        return found[0]

    def follower(self) -> Node:
        leader = self.leader()
        return next(node for node in self.living if node is not leader)

    def replicas(self, collection: str, node: Node | None = None) -> list[Replica]:
        """Return every copy of every shard, as one node sees them."""
        node = node or self.living[0]
        found = node.call("GET", f"/collections/{collection}/cluster")
        local = [
            Replica(s["shard_id"], found["peer_id"], s["state"]) for s in found["local_shards"]
        ]
        remote = [Replica(s["shard_id"], s["peer_id"], s["state"]) for s in found["remote_shards"]]
        return local + remote

    def wait_until_whole(self, collection: str, copies: int, *, seconds: float = 60) -> None:
        """Wait until every node sees `copies` active copies of every shard."""

        def whole() -> bool:
            return all(
                self._is_whole(self.replicas(collection, node), copies) for node in self.living
            )

        until(whole, seconds=seconds)

    @staticmethod
    def _is_whole(replicas: list[Replica], copies: int) -> bool:
        active = [replica.shard for replica in replicas if replica.state == "Active"]
        return len(active) == len(replicas) == copies * len(set(active))


def _value(key: str, text: str) -> str:
    """Fill in what compose would take from the shell."""
    return KEYS[key] if re.fullmatch(r"\$\{.*\}", text) else text


def until(condition: Callable[[], bool], *, seconds: float = 30) -> None:
    """Wait until `condition()` is true; what it raises meanwhile counts as false."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError, KeyError):
            if condition():
                return
        time.sleep(0.1)
    raise AssertionError(f"it did not happen within {seconds} s")


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    cluster = Cluster(folder)
    try:
        cluster.start()
        until(lambda: len(cluster.nodes[0].call("GET", "/cluster")["peers"]) == len(cluster.nodes))
        yield cluster
    finally:
        cluster.stop()
