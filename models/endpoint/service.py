"""A service on another machine or port that answers as OpenAI's does.

The key comes from `TWO_TOWER_API_KEY` alone. OPENAI_API_KEY is not read: a bundle names the service
that reads its documents, and a bundle from a stranger would be sent the key of OpenAI.
"""

import os
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from two_tower.models.errors import ConfigError, EndpointError

KEY_VARIABLE = "TWO_TOWER_API_KEY"

PATHS = ("chat/completions", "completions", "embeddings")

ANSWER_S, CONNECT_S = 120.0, 10.0
PATIENCE_S = 180.0  # how long one request is tried
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
PASSING = (408, 429, 500, 502, 503, 504)

LONGEST_REASON = 200

LARGEST_ANSWER = 64 * 2**20
"""Bytes, unpacked; 32 vectors of 4,096 numbers take 3 MB."""

CODINGS = ("identity", "gzip", "deflate")
"""How an answer may be packed, and once: 64 kB that arrive together unpack to 64 MB at most."""

NO_JSON = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading an answer of another form raises."""


class Service:
    """One model behind one URL.

    Attributes:
        base: the URL that paths such as `embeddings` follow.
        model: the model's name there.
    """

    def __init__(self, url: str, model: str) -> None:
        """Check the URL; nothing is asked.

        Args:
            url: `https://host`, `https://host/v1` or the whole, as `…/v1/embeddings`.
            model: the model's name there.

        Raises:
            ConfigError: the URL cannot be one, or holds a key.
        """
        self.base = base_url(url)
        self.model = model
        self._has_answered = False

    def client(self) -> httpx.Client:
        """Return a new connection pool, for the caller to close."""
        key = _key()
        packed = {"Accept-Encoding": ", ".join(CODINGS[1:])}
        return httpx.Client(headers=packed | ({"Authorization": f"Bearer {key}"} if key else {}))

    def post(
        self,
        client: httpx.Client,
        path: str,
        body: Mapping[str, Any],
        *,
        timeout_s: float | None = None,
    ) -> httpx.Response:
        """Return the answer, once it is more than "not now"; it may be a refusal.

        Args:
            client: from `client()`; threads may share it.
            path: below `base`.
            body: without the model, which is added.
            timeout_s: for everything, the waits between tries included; None is patient.

        Raises:
            EndpointError: no server is there, it does not answer in time, or without end.
        """
        url = f"{self.base}/{path}"
        start, wait = time.monotonic(), FIRST_WAIT_S
        patience_s = PATIENCE_S if timeout_s is None else timeout_s
        while True:
            pause = wait
            left = ANSWER_S
            if timeout_s is not None:
                left = max(start + patience_s - time.monotonic(), 0.001)
            try:
                answer = _post(client, url, {"model": self.model, **body}, left)
                self._has_answered = True
                if answer.status_code not in PASSING:
                    return answer
                pause = _retry_after(answer) or wait
                failure = self.refusal(answer)
            except httpx.HTTPError as error:
                failure = f"{url} does not answer ({one_line(str(error)) or repr(error)})"
                if not self._has_answered:
                    raise EndpointError(f"{failure}; start the server or correct the URL") from None
            pause = min(pause, LONGEST_WAIT_S)
            if time.monotonic() + pause - start > patience_s:
                raise EndpointError(
                    f"{failure}, and so for {time.monotonic() - start:.0f} s; run the same "
                    "command again later"
                )
            time.sleep(pause)
            wait *= 2

    def refusal(self, answer: httpx.Response) -> str:
        """Return in one line why the service refuses; the key is no part of it."""
        code, url = answer.status_code, answer.url
        if code in (401, 403):
            key = "another key" if _key() else "a key"
            return f"{url} wants {key} (HTTP {code}); set {KEY_VARIABLE}"
        reason = _reason(answer)
        if code == 429:
            return f"{url} limits the rate ({reason})"
        if code == 404:
            return f"{url} knows no such path or no model {self.model!r} (HTTP 404: {reason})"
        return f"{url} refuses with HTTP {code} ({reason})"


def _post(
    client: httpx.Client, url: str, body: Mapping[str, Any], timeout_s: float
) -> httpx.Response:
    """Return an answer that is complete in time, and not too large.

    Raises:
        EndpointError: it is too large, or packed in another way than was asked for.
        httpx.HTTPError: there is none in time.
    """
    end = time.monotonic() + timeout_s
    limit = httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_S))
    content = bytearray()
    with client.stream("POST", url, json=body, timeout=limit) as answer:
        coding = answer.headers.get("content-encoding", CODINGS[0]).strip().lower()
        if coding not in CODINGS:
            raise EndpointError(
                f"{url} packs its answer as {coding!r:.40}, expected {', '.join(CODINGS)}"
            )
        for part in answer.iter_bytes():
            content += part
            if len(content) > LARGEST_ANSWER:
                raise EndpointError(
                    f"{url} answers with more than {LARGEST_ANSWER // 2**20} MB; is it the URL of "
                    "a service as OpenAI's?"
                )
            if time.monotonic() > end:
                raise httpx.ReadTimeout(f"the answer does not end in {timeout_s:.1f} s")
    headers = {k: v for k, v in answer.headers.items() if k in ("content-type", "retry-after")}
    return httpx.Response(
        answer.status_code, headers=headers, content=bytes(content), request=answer.request
    )


def base_url(url: str) -> str:
    """Return the URL that paths follow.

    Raises:
        ConfigError: the URL cannot be one, or holds a key.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"the endpoint is {url!r}, expected a URL such as http://localhost:8000")
    if parsed.userinfo or parsed.query:
        raise ConfigError(
            f"the URL of the endpoint at {parsed.host} holds a key or a query, expected neither: "
            f"it is recorded; set {KEY_VARIABLE}"
        )
    path = parsed.path.rstrip("/")
    for ending in PATHS:
        if path.endswith(f"/{ending}"):
            path = path.removesuffix(f"/{ending}")
            break
    else:
        path = path or "/v1"
    return str(parsed.copy_with(path=path or "/")).rstrip("/")


def one_line(text: str) -> str:
    """Return the beginning of a text, without line breaks."""
    return " ".join(text.split())[:LONGEST_REASON]


def _key() -> str:
    return os.environ.get(KEY_VARIABLE, "").strip()


def _retry_after(answer: httpx.Response) -> float | None:
    """Return the seconds that a service asks to wait, None where it does not say."""
    text = answer.headers.get("retry-after", "")
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0)
    except (ValueError, OverflowError):
        return None


def _reason(answer: httpx.Response) -> str:
    """Return what the service says; a key that it repeats is left out."""
    try:
        said: Any = answer.json()
        for name in ("error", "message"):
            said = said.get(name, said) if isinstance(said, dict) else said
    except NO_JSON:
        said = answer.text
    key = _key()
    text = str(said).replace(key, "…") if key else str(said)
    return one_line(text) or "no reason"
