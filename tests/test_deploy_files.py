"""The files of deploy/ and qdrant.yaml: what they mean, and that real servers take them."""

import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import KEY, running_cluster
from conftest import ROOT, free_ports, qdrant_binary, running_server, wait_until_ready
from qdrant_client import models as qm
from tls import make_authority, sign

from two_tower.retriever.engine.connect import connect
from two_tower.retriever.errors import EngineError

DEPLOY = ROOT / "deploy"
IMAGE = "qdrant/qdrant:v1.16.3"
COMMENTED = re.compile(r"^( *)# ([a-z0-9_]+:(?: [^ ]+)?)$", re.MULTILINE)


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_configuration_is_safe_as_it_stands() -> None:
    config = read("qdrant.yaml")
    assert config["service"]["host"] == "127.0.0.1"
    assert config["telemetry_disabled"] is True
    assert not config["service"]["enable_cors"]
    assert not any("api_key" in key for key in config["service"])


def test_strict_mode_refuses_what_reads_everything(tmp_path: Path) -> None:
    vectors = {"dense": qm.VectorParams(size=2, distance=qm.Distance.COSINE)}
    kind = qm.FieldCondition(key="kind", match=qm.MatchValue(value="note"))
    with running_server(tmp_path) as server:
        engine = server.connect()
        engine.create_collection("c", vectors_config=vectors)
        for unindexed in (
            lambda: engine.scroll("c", scroll_filter=qm.Filter(must=[kind])),
            lambda: engine.delete("c", qm.Filter(must=[kind])),
        ):
            with pytest.raises(EngineError, match="Index required"):
                unindexed()
        with pytest.raises(EngineError, match="10001"):
            engine.scroll("c", limit=10_001)
        engine.close()


def test_what_is_commented_out_is_right_when_it_is_not(tmp_path: Path) -> None:
    authority = make_authority(tmp_path / "ca")
    certificate = sign(authority, "node")
    folder = tmp_path / "server"
    (folder / "tls").mkdir(parents=True)
    for source, name in zip((*certificate, authority), ("cert", "key", "ca"), strict=True):
        shutil.copy(source, folder / "tls" / f"{name}.pem")
    text, count = COMMENTED.subn(r"\1\2", (ROOT / "qdrant.yaml").read_text())
    assert count == 8
    (folder / "qdrant.yaml").write_text(text)
    http, grpc, p2p = free_ports(3)
    own = {
        "QDRANT__SERVICE__HTTP_PORT": str(http),
        "QDRANT__SERVICE__GRPC_PORT": str(grpc),
        "QDRANT__CLUSTER__P2P__PORT": str(p2p),
        "QDRANT__CLUSTER__ENABLED": "true",
        "QDRANT__SERVICE__API_KEY": KEY,
    }
    words = [qdrant_binary(), "--config-path", "qdrant.yaml", "--uri", f"https://127.0.0.1:{p2p}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, env=os.environ | own, cwd=folder, stdout=log, stderr=log)
    try:
        wait_until_ready(f"https://127.0.0.1:{http}", process, folder / "log")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("QDRANT_CA_CERT", str(authority))
            engine = connect(url=f"https://127.0.0.1:{http}", api_key=KEY)
            assert engine.get_collections().collections == []
            engine.close()
        assert "ERROR" not in (folder / "log").read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("name", "count"), [("compose.yaml", 1), ("cluster.yaml", 3)])
def test_compose_files(name: str, count: int) -> None:
    compose = read(f"deploy/{name}")
    assert len(compose["services"]) == count
    published = set()
    for node in compose["services"].values():
        assert node["image"] == IMAGE
        assert IMAGE.endswith(_fetched_version())
        for port in node["ports"]:
            address, outer, inner = port.split(":")
            assert address == "127.0.0.1"
            assert inner in ("6333", "6334")
            published.add(outer)
        environment = node["environment"]
        for key in ("QDRANT__SERVICE__API_KEY", "QDRANT__SERVICE__READ_ONLY_API_KEY"):
            assert key in environment
            assert environment[key] is None or environment[key].startswith("${" + key)
        targets = {volume.split(":")[1] for volume in node["volumes"]}
        assert environment["QDRANT__STORAGE__STORAGE_PATH"] in targets
        assert environment["QDRANT__STORAGE__SNAPSHOTS_PATH"] in targets
        assert "../qdrant.yaml:/qdrant/config/production.yaml:ro" in node["volumes"]
        named = {v.split(":")[0] for v in node["volumes"] if not v.startswith("..")}
        assert named <= set(compose["volumes"])
    assert len(published) == 2 * count


def _fetched_version() -> str:
    found = re.search(r"qdrant-linux-x64@([\d.]+)", (DEPLOY / "fetch_qdrant.sh").read_text())
    assert found
    return found[1]


def test_helm_values_say_what_the_configuration_says() -> None:
    values, config = read("deploy/helm.yaml"), read("qdrant.yaml")
    assert values["replicaCount"] == 3
    assert values["image"]["tag"] == f"v{_fetched_version()}"
    for key in ("apiKey", "readOnlyApiKey"):
        assert values[key]["valueFrom"]["secretKeyRef"]["name"] == "qdrant-keys"
    assert values["persistence"]["size"]
    assert values["resources"]["limits"]["memory"] == values["resources"]["requests"]["memory"]
    assert values["podDisruptionBudget"] == {"enabled": True, "maxUnavailable": 1}
    assert values["metrics"]["serviceMonitor"]["enabled"]
    ours = values["config"]
    assert ours["storage"]["collection"] == config["storage"]["collection"]
    assert ours["storage"]["optimizers"] == config["storage"]["optimizers"]
    assert ours["service"]["enable_cors"] == config["service"]["enable_cors"]
    assert ours["telemetry_disabled"] is True
    assert ours["cluster"]["enabled"]


def test_the_systemd_unit_is_valid_and_hardened(tmp_path: Path) -> None:
    unit = (DEPLOY / "qdrant.service").read_text()
    assert "--config-path /etc/qdrant/qdrant.yaml" in unit
    for line in ("DynamicUser=yes", "ProtectSystem=strict", "NoNewPrivileges=yes",
                 "CapabilityBoundingSet=", "EnvironmentFile=/etc/qdrant/keys"):  # fmt: skip
        assert line in unit.splitlines()
    assert "API_KEY=" not in re.sub(r"^#.*$", "", unit, flags=re.MULTILINE)
    if not shutil.which("systemd-analyze"):
        return
    here = tmp_path / "qdrant.service"
    here.write_text(unit.replace("/usr/local/bin/qdrant", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", here], capture_output=True, text=True)
    assert "qdrant.service" not in done.stderr
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", here], capture_output=True, text=True
    )
    if rated.returncode == 0:
        exposure = re.search(r"exposure level for .*: ([\d.]+)", rated.stdout)
        assert exposure
        assert float(exposure[1]) < 2.5


def metrics_of(text: str) -> set[str]:
    return set(re.findall(r"^([a-z_]+)[{ ]", text, flags=re.MULTILINE))


@pytest.fixture(scope="module")
def qdrant_metrics(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What a node of deploy/cluster.yaml says with a collection in it."""
    with running_cluster(tmp_path_factory.mktemp("metrics")) as cluster:
        node = cluster.nodes[0]
        with node.connected() as engine:
            vectors = {"dense": qm.VectorParams(size=2, distance=qm.Distance.COSINE)}
            engine.create_collection("c", vectors_config=vectors, replication_factor=2)
        request = urllib.request.Request(f"{node.url}/metrics")
        request.add_header("Authorization", "Bearer cluster-read-only-key")
        with urllib.request.urlopen(request, timeout=10) as answer:
            yield answer.read().decode()


@pytest.mark.cluster
def test_every_metric_that_an_alert_names_is_exported(qdrant_metrics: str) -> None:
    from two_tower.retriever.service.metrics import Metrics

    ours = Metrics()
    ours.requests.labels("/search", "200").inc()
    ours.seconds.labels("/search").observe(0.1)
    ours.skipped.labels("rerank").inc()
    exported = metrics_of(qdrant_metrics) | metrics_of(ours.text().decode()) | {"up"}
    rules = [rule for group in read("deploy/alerts.yaml")["groups"] for rule in group["rules"]]
    named = {
        word
        for rule in rules
        for word in re.findall(r"\b(?:up|[a-z]+_[a-z_]+)\b", re.sub(r"{[^}]*}", "", rule["expr"]))
    } - {"histogram_quantile"}
    assert named
    assert named <= exported
    for rule in rules:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
        assert re.fullmatch(r"\d+[mh]", rule["for"])


def test_prometheus_scrapes_what_is_served() -> None:
    config = read("deploy/prometheus.yaml")
    assert all((DEPLOY / name).is_file() for name in config["rule_files"])
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    named = set(re.findall(r'job="(\w+)"', (DEPLOY / "alerts.yaml").read_text()))
    assert named <= set(jobs)
    assert jobs["qdrant"]["static_configs"][0]["targets"] == ["127.0.0.1:6333"]
    assert "credentials_file" in jobs["qdrant"]["authorization"]
