"""Vectors from an embeddings service that answers as OpenAI's does.

The key comes from `TWO_TOWER_API_KEY` alone. OPENAI_API_KEY is not read: a bundle names the service
that reads its documents, and a bundle from a stranger would be sent the key of OpenAI.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import numpy as np

from two_tower.models.bundle.probes import LOWEST_COSINE, PROBES, lowest_cosine
from two_tower.models.bundle.vector_cache import cache_folder, cached_vectors
from two_tower.models.errors import ConfigError, EndpointError
from two_tower.models.vectors import FloatArray, normalized

KEY_VARIABLE = "TWO_TOWER_API_KEY"

TEXTS_PER_REQUEST = 32  # the smallest limit in use, that of text-embeddings-inference
REQUESTS_AT_ONCE = 4
LONGEST_CHARS = 8000  # services refuse texts above about 8,000 tokens
BLANK = "-"  # stands for a blank text, which services refuse

ANSWER_S, CONNECT_S = 120.0, 10.0
PATIENCE_S = 180.0  # how long one request is tried
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
PASSING = (408, 429, 500, 502, 503, 504)

LONGEST_REASON = 200

EXPECTED = 'expected OpenAI\'s form: {"data": [{"index": 0, "embedding": [0.1, …]}, …]}'


class EndpointReader:
    """A model behind `/v1/embeddings`, which reads queries and passages alike.

    Attributes:
        url: where texts are posted.
        model: its name there.
        dim: width of the vectors.
        fingerprint: of the model's name and width. The URL is no part of it, and services are not
            exact to the bit: compare `probes.PROBES` to learn whether the model is the same.
    """

    def __init__(self, url: str, model: str) -> None:
        """Ask the service for ten vectors.

        Args:
            url: `https://host`, `https://host/v1` or the whole `…/embeddings`.
            model: the model's name there.

        Raises:
            ConfigError: the URL cannot be one.
            EndpointError: no server is there, it refuses the key or the model, or another model of
                that name filled the cache.
        """
        self.url = _embeddings_url(url)
        self.model = model
        self.dim = 0
        self._has_answered = False
        probes = self._encode(PROBES)
        self.dim = probes.shape[1]
        self.fingerprint = hashlib.sha256(f"endpoint\n{model}\n{self.dim}".encode()).hexdigest()
        self._check_cache(probes)

    def _check_cache(self, probes: FloatArray) -> None:
        """Refuse a model whose name in the cache belongs to another one."""
        name = f"{self.fingerprint[:32]}-probes"
        stored = cached_vectors(lambda _: probes, PROBES, encoder=name, label="probes")
        if not (lowest := lowest_cosine(stored, probes)) >= LOWEST_COSINE:
            raise EndpointError(
                f"{self.url} gives other vectors for {self.model!r} than those of that name in "
                f"{cache_folder()} (lowest cosine of ten texts {lowest:.4f}): is it another model? "
                "Give it another name, or set TWO_TOWER_CACHE to a new folder"
            )

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        """Return (n, dim) float32, L2-normalised.

        Raises:
            EndpointError: the service does not answer in time, or not with such vectors.
        """
        return self._encode(texts)

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """Return the same as `encode_passages`: the interface has one way to read a text."""
        return self._encode(texts)

    def _encode(self, texts: Sequence[str]) -> FloatArray:
        ready = [text[:LONGEST_CHARS] if text.strip() else BLANK for text in texts]
        parts = [ready[i : i + TEXTS_PER_REQUEST] for i in range(0, len(ready), TEXTS_PER_REQUEST)]
        if not parts:
            return np.zeros((0, self.dim), dtype=np.float32)
        key = os.environ.get(KEY_VARIABLE, "").strip()
        with (
            httpx.Client(
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            ) as client,
            ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool,
        ):
            try:
                vectors = list(pool.map(lambda part: self._vectors(client, part), parts))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return normalized(np.concatenate(vectors))

    def _vectors(self, client: httpx.Client, texts: Sequence[str]) -> FloatArray:
        answer = self._post(client, texts)
        if answer.status_code != httpx.codes.OK:
            raise EndpointError(self._refusal(answer))
        try:
            items = sorted(answer.json()["data"], key=lambda item: item.get("index", 0))
            with np.errstate(over="ignore"):  # what is too large becomes infinite, see below
                rows = [np.asarray(item["embedding"], dtype=np.float32) for item in items]
            widths = {row.shape for row in rows}
            (width,) = widths.pop() if len(widths) == 1 else (0,)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EndpointError(
                f"{self.url} gave no list of vectors ({_one_line(repr(error))}), {EXPECTED}"
            ) from None
        if len(rows) != len(texts):
            raise EndpointError(
                f"{self.url} gave {len(rows)} vectors for {len(texts)} texts, expected one each"
            )
        if not width or width != (self.dim or width):
            raise EndpointError(
                f"{self.url} gave vectors of {width or 'differing'} numbers, expected "
                f"{self.dim or 'one width for all'}: is {self.model!r} one model there?"
            )
        vectors = np.stack(rows)
        if not np.isfinite(vectors).all():
            raise EndpointError(f"{self.url} gave a number that is not finite; look at its log")
        return vectors

    def _post(self, client: httpx.Client, texts: Sequence[str]) -> httpx.Response:
        """Return the answer, once it is more than "not now"."""
        body = {"model": self.model, "input": list(texts), "encoding_format": "float"}
        start, wait = time.monotonic(), FIRST_WAIT_S
        while True:
            pause = wait
            try:
                answer = client.post(self.url, json=body)
                self._has_answered = True
                if answer.status_code not in PASSING:
                    return answer
                pause = _retry_after(answer) or wait
                failure = self._refusal(answer)
            except httpx.HTTPError as error:
                failure = f"{self.url} does not answer ({_one_line(str(error)) or repr(error)})"
                if not self._has_answered:
                    raise EndpointError(f"{failure}; start the server or correct the URL") from None
            pause = min(pause, LONGEST_WAIT_S)
            if time.monotonic() + pause - start > PATIENCE_S:
                raise EndpointError(
                    f"{failure}, and so for {time.monotonic() - start:.0f} s; run the same "
                    "command again later"
                )
            time.sleep(pause)
            wait *= 2

    def _refusal(self, answer: httpx.Response) -> str:
        code = answer.status_code
        if code in (401, 403):
            key = "another key" if os.environ.get(KEY_VARIABLE, "").strip() else "a key"
            return f"{self.url} wants {key} (HTTP {code}); set {KEY_VARIABLE}"
        reason = _reason(answer)
        if code == 429:
            return f"{self.url} limits the rate ({reason})"
        if code == 404:
            return f"{self.url} knows no such path or no model {self.model!r} (HTTP 404: {reason})"
        return f"{self.url} refuses with HTTP {code} ({reason})"


def _embeddings_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"the endpoint is {url!r}, expected a URL such as http://localhost:8000")
    if parsed.userinfo or parsed.query:
        raise ConfigError(
            f"the URL of the endpoint at {parsed.host} holds a key or a query, expected neither: "
            f"a bundle keeps it; set {KEY_VARIABLE}"
        )
    path = parsed.path.rstrip("/")
    if not path.endswith("/embeddings"):
        path = f"{path or '/v1'}/embeddings"
    return str(parsed.copy_with(path=path))


def _retry_after(answer: httpx.Response) -> float | None:
    """Return the seconds that a service asks to wait, None where it does not say."""
    text = answer.headers.get("retry-after", "")
    if text.isdecimal():
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0)
    except ValueError:
        return None


def _reason(answer: httpx.Response) -> str:
    """Return what the service says; a key that it repeats is left out."""
    try:
        said: Any = answer.json()
        for name in ("error", "message"):
            said = said.get(name, said) if isinstance(said, dict) else said
    except ValueError:
        said = answer.text
    key = os.environ.get(KEY_VARIABLE, "").strip()
    text = str(said).replace(key, "…") if key else str(said)
    return _one_line(text) or "no reason"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:LONGEST_REASON]
