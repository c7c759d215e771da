"""TLS to a real server: whose certificate is trusted, and what a user reads where it is not."""

import shutil
from pathlib import Path

import pytest
from conftest import running_server, unavailable
from tls import make_authority, sign
from typer.testing import CliRunner

from two_tower.ingest.cli import app
from two_tower.models.errors import ConfigError
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.errors import CertificateRefused


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("openssl"):
        unavailable("openssl is not installed")
    return make_authority(tmp_path_factory.mktemp("tls") / "ca")


def test_a_certificate_of_ones_own_authority(
    tmp_path: Path, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = sign(authority, "good")
    with running_server(tmp_path, api_key="key", **certificate.settings) as server:
        with pytest.raises(CertificateRefused, match="unable to get local issuer") as failure:
            connect(url=server.url, api_key="key")
        assert "\n" not in str(failure.value)
        assert "QDRANT_CA_CERT=ca.pem" in str(failure.value)

        another = make_authority(tmp_path / "another")
        monkeypatch.setenv("QDRANT_CA_CERT", str(another))
        with pytest.raises(CertificateRefused):
            connect(url=server.url, api_key="key")

        monkeypatch.setenv("QDRANT_CA_CERT", str(authority))
        engine = connect(url=server.url, api_key="key")
        assert engine.get_collections().collections == []
        engine.close()


@pytest.mark.parametrize(
    ("host", "days", "reason"),
    [
        ("IP:127.0.0.1", -1, "certificate has expired"),
        ("DNS:elsewhere.example", 2, "IP address mismatch"),
    ],
    ids=["expired", "wrong-host"],
)
def test_a_certificate_that_is_no_good(
    tmp_path: Path, authority: Path, monkeypatch: pytest.MonkeyPatch, host: str, days: int,
    reason: str,
) -> None:  # fmt: skip
    certificate = sign(authority, tmp_path.name, host=host, days=days)
    monkeypatch.setenv("QDRANT_CA_CERT", str(authority))
    monkeypatch.setenv("QDRANT_API_KEY", "a-key-that-is-not-sent")
    with running_server(tmp_path, **certificate.settings) as server:
        done = CliRunner().invoke(app, ["list", "--url", server.url])
    assert done.exit_code == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"{server.url} shows a certificate that cannot be trusted" in line
    assert reason in line
    assert "a-key-that-is-not-sent" not in line


def test_an_authority_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDRANT_CA_CERT", str(tmp_path / "missing.pem"))
    with pytest.raises(ConfigError, match=r"missing\.pem cannot be used \(No such file"):
        connect(url="https://127.0.0.1:1")
    (tmp_path / "empty.pem").write_text("not a certificate")
    monkeypatch.setenv("QDRANT_CA_CERT", str(tmp_path / "empty.pem"))
    with pytest.raises(ConfigError, match="no certificate in it"):
        connect(url="https://127.0.0.1:1")
