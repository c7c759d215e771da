"""What makes two texts the same, and how a text becomes valid UTF-8 without NULs."""

import hashlib
import re

_WHITESPACE = re.compile(r"\s+")


def clean(text: str) -> str:
    r"""Return `text` without NULs, lone surrogates and outer whitespace.

    A NUL is removed (half of it is UTF-16 read as UTF-8), a lone surrogate becomes U+FFFD because
    Parquet, JSON and the engine all ask for valid UTF-8. Everything else stays as it was, inner
    line breaks too.
    """
    if "\0" in text:
        text = text.replace("\0", "")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.strip()


def fingerprint(*parts: str) -> bytes:
    """Return 16 bytes that are equal for equal `parts`.

    Args:
        parts: cleaned strings (they hold no NUL, so it can stand between them).
    """
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest()


def content_id(prefix: str, *parts: str) -> str:
    """Return a stable id made of the content itself, for sources that have no ids."""
    return prefix + fingerprint(*parts).hex()[:20]


def one_line(text: str, *, limit: int = 200) -> str:
    """Return `text` on one line of at most `limit` characters, for messages."""
    flat = _WHITESPACE.sub(" ", text).strip()
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def order_key(name: str) -> int:
    """Return a 64-bit hash of `name`: a fixed random order that is the same on every machine."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
