"""An authority and certificates of our own, made by openssl."""

import subprocess
from pathlib import Path
from typing import NamedTuple

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Certificate(NamedTuple):
    """Where a server finds its certificate and key."""

    cert: Path
    key: Path

    @property
    def settings(self) -> dict[str, str | Path]:
        """What makes a Qdrant server show it."""
        return {"SERVICE__ENABLE_TLS": "true", "TLS__CERT": self.cert, "TLS__KEY": self.key}


def openssl(*words: str | Path, folder: Path) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


def make_authority(folder: Path) -> Path:
    """Return the certificate of a new authority; its key lies beside it."""
    folder.mkdir(parents=True)
    words = ["req", "-x509", *NEW_KEY, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2"]
    usage = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign")
    for extension in usage:
        words += ["-addext", extension]
    openssl(*words, "-subj", "/CN=authority of the tests", folder=folder)
    return folder / "ca.pem"


def sign(authority: Path, name: str, *, host: str = "IP:127.0.0.1", days: int = 2) -> Certificate:
    """Return a certificate for `host`; with negative `days` it has expired."""
    folder = authority.parent
    key, request, cert = (folder / f"{name}.{ending}" for ending in ("key", "csr", "pem"))
    openssl("req", "-new", *NEW_KEY, "-keyout", key, "-out", request, "-subj", "/CN=qdrant",
            folder=folder)  # fmt: skip
    (folder / "extensions").write_text(f"subjectAltName={host}\nauthorityKeyIdentifier=keyid\n")
    openssl("x509", "-req", "-in", request, "-CA", authority, "-CAkey", "ca.key", "-CAcreateserial",
            "-out", cert, "-days", str(days), "-extfile", "extensions", folder=folder)  # fmt: skip
    return Certificate(cert, key)
