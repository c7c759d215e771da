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

from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine

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

    @contextmanager
    def connected(self) -> Iterator[Engine]:
        engine = connect(url=self.url, api_key=KEY)
        try:
            yield engine
        finally:
            engine.close()

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
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["result"]

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
        """Start nodes that have been members before, all at once."""
        for node in nodes:
            node.start(self._settings[node.name])
        for node in nodes:
            node.wait_until_ready()

    def form(self) -> None:
        """Start all for the first time."""
        for node in self.nodes:
            self.start(node)
        until(lambda: len(self.nodes[0].call("GET", "/cluster")["peers"]) == len(self.nodes))

    def lose(self, node: Node) -> None:
        """Kill a node and its disk, and have the others forget it."""
        peer = node.peer
        node.kill()
        shutil.rmtree(node.folder)
        survivor = self.living[0]

        def forgotten() -> bool:
            """While the survivors elect a leader, such a request is refused."""
            if str(peer) in survivor.call("GET", "/cluster")["peers"]:
                survivor.call("DELETE", f"/cluster/peer/{peer}?force=true")
            return str(peer) not in survivor.call("GET", "/cluster")["peers"]

        until(forgotten)

    def replace(self, lost: Node) -> None:
        """Start an empty node in the place of a lost one; it learns from one that lives."""
        lost.command = ["--bootstrap", self.living[0].uri, "--uri", lost.uri]
        self.start(lost)

    def replicate(self, collection: str, onto: Node, copies: int) -> None:
        """Copy to a node those shards that have fewer than `copies`."""
        by_shard: dict[int, list[int]] = {}
        for replica in self.replicas(collection):
            by_shard.setdefault(replica.shard, []).append(replica.peer)
        for shard, peers in by_shard.items():
            if len(peers) < copies:
                copy = {"shard_id": shard, "from_peer_id": peers[0], "to_peer_id": onto.peer}
                path = f"/collections/{collection}/cluster"
                self.living[0].call("POST", path, {"replicate_shard": copy})

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
        cluster.form()
        yield cluster
    finally:
        cluster.stop()
