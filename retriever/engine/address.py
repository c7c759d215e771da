"""Where the engine is, its key and whom to trust: from options, environment or file.

A key never stands on a command line, where others could read it:

- QDRANT_API_KEY: the key itself;
- QDRANT_API_KEY_FILE: a file that holds it, where the former is not set;
- QDRANT_CA_CERT: a PEM file; a server must show a certificate of this authority.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from two_tower.models.errors import ConfigError

if TYPE_CHECKING:
    import ssl

DEFAULT_PATH = ".qdrant"


@dataclass(frozen=True)
class EngineAddress:
    """Where the engine is: exactly one of `url` and `path` is set."""

    url: str | None = None
    path: Path | None = None
    api_key: str | None = field(default=None, repr=False)

    @classmethod
    def find(
        cls, *, url: str | None, path: str | Path | None, api_key: str | None = None
    ) -> "EngineAddress":
        """Apply the project's one rule for choosing an engine.

        An explicit `url` or `path` wins; then `QDRANT_URL`; then the folder `.qdrant`. A server's
        key is `api_key`, else what `read_key` finds.

        Raises:
            ConfigError: both are given, the URL is not one, or the key cannot be one.
        """
        if url and path:
            raise ConfigError(f"found both URL {url} and path {path}; expected one of them")
        if not path:
            url = url or os.environ.get("QDRANT_URL")
        if not url:
            return cls(path=Path(path or DEFAULT_PATH))
        if not re.fullmatch(r"https?://[^/\s]+.*", url):
            raise ConfigError(f"{url!r} is not a URL; expected e.g. http://localhost:6333")
        return cls(url=url, api_key=_checked(api_key, "api_key") if api_key else read_key())

    def __str__(self) -> str:
        """Return the URL without credentials, or the path."""
        if self.url is None:
            return str(self.path)
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def read_key(
    variable: str = "QDRANT_API_KEY", *, file: Path | None = None, shortest: int = 1
) -> str | None:
    """Return a key from a file, else from the environment; None where neither names one.

    Args:
        variable: that holds it; with `_FILE` after its name, that names a file which does.
        file: comes before the environment.
        shortest: characters that a key must have.

    Raises:
        ConfigError: the file cannot be read, or what it holds is no key.
    """
    origin = str(file)
    if file is None:
        if key := os.environ.get(variable):
            return _checked(key, variable, shortest)
        path = os.environ.get(f"{variable}_FILE")
        if not path:
            return None
        file, origin = Path(path), f"{variable}_FILE {path}"
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(f"{origin} cannot be read ({reason})") from None
    return _checked(key, origin, shortest)


def _checked(key: str, origin: str, shortest: int = 1) -> str:
    """Return the key; one that no header can carry is refused here, for others would print it."""
    if not re.fullmatch(r"[!-~]+", key) or len(key) < shortest:
        least = f"at least {shortest} " if shortest > 1 else ""
        raise ConfigError(
            f"{origin} holds no API key; expected {least}printable ASCII characters without spaces"
        )
    return key


def authorities() -> "ssl.SSLContext | None":
    """Return what trusts QDRANT_CA_CERT alone; None, for the usual authorities, where it is unset.

    Raises:
        ConfigError: the file is missing, or holds no certificate.
    """
    path = os.environ.get("QDRANT_CA_CERT")
    if not path:
        return None
    import ssl  # a server's alone

    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:  # ssl.SSLError is one
        reason = "no certificate in it" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigError(
            f"QDRANT_CA_CERT {path} cannot be used ({reason}); expected the PEM file of the "
            "authority that signed the server's certificate"
        ) from None
