"""Vectors from an embeddings service that answers as OpenAI's does."""

import hashlib
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np

from two_tower.models.cache import cache_folder
from two_tower.models.endpoint.probes import LOWEST_COSINE, PROBES, lowest_cosine
from two_tower.models.endpoint.service import NO_JSON, Service, one_line
from two_tower.models.errors import EndpointError
from two_tower.models.vector_cache import cached_vectors
from two_tower.models.vectors import FloatArray, normalized

PATH = "embeddings"

TEXTS_PER_REQUEST = 32  # the smallest limit in use, that of text-embeddings-inference
REQUESTS_AT_ONCE = 4
LONGEST_CHARS = 8000  # services refuse texts above about 8,000 tokens
BLANK = "-"  # stands for a blank text, which services refuse

EXPECTED = 'expected OpenAI\'s form: {"data": [{"index": 0, "embedding": [0.1, …]}, …]}'


class EndpointReader:
    """A model behind `/v1/embeddings`, which reads queries and passages alike.

    Attributes:
        url: where texts are posted.
        model: its name there.
        dim: width of the vectors.
        probes: (10, dim) float32, what it makes of `PROBES`.
        fingerprint: of the model's name and width. The URL is no part of it, and services are not
            exact to the bit: compare `probes.PROBES` to learn whether the model is the same.
    """

    def __init__(self, url: str, model: str, *, limit_s: float | None = None) -> None:
        """Ask the service for ten vectors.

        Args:
            url: `https://host`, `https://host/v1` or the whole `…/embeddings`.
            model: the model's name there.
            limit_s: how long this may take; without it as long as passages are waited for.

        Raises:
            ConfigError: the URL cannot be one.
            EndpointError: no server is there, it refuses the key or the model, or another model of
                that name filled the cache.
        """
        self._service = Service(url, model)
        self.url = f"{self._service.base}/{PATH}"
        self.model = model
        self.dim = 0
        self._client = self._service.client()
        weakref.finalize(self, self._client.close)
        self.probes = probes = self._encode(PROBES, limit_s)
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

    def encode_queries(self, texts: Sequence[str], *, limit_s: float | None = None) -> FloatArray:
        """Return the same as `encode_passages`: the interface has one way to read a text.

        `limit_s` is the time for all of it.
        """
        return self._encode(texts, limit_s)

    def _encode(self, texts: Sequence[str], limit_s: float | None = None) -> FloatArray:
        ready = [text[:LONGEST_CHARS] if text.strip() else BLANK for text in texts]
        parts = [ready[i : i + TEXTS_PER_REQUEST] for i in range(0, len(ready), TEXTS_PER_REQUEST)]
        if not parts:
            return np.zeros((0, self.dim), dtype=np.float32)
        if len(parts) == 1:
            return normalized(self._vectors(parts[0], limit_s))
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            try:
                vectors = list(pool.map(lambda part: self._vectors(part, limit_s), parts))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return normalized(np.concatenate(vectors))

    def _vectors(self, texts: Sequence[str], limit_s: float | None) -> FloatArray:
        body = {"input": list(texts), "encoding_format": "float"}
        answer = self._service.post(self._client, PATH, body, timeout_s=limit_s)
        if answer.status_code != httpx.codes.OK:
            raise EndpointError(self._service.refusal(answer))
        try:
            items = sorted(answer.json()["data"], key=lambda item: item.get("index", 0))
            with np.errstate(over="ignore"):  # what is too large becomes infinite, see below
                rows = [np.asarray(item["embedding"], dtype=np.float32) for item in items]
            widths = {row.shape for row in rows}
            (width,) = widths.pop() if len(widths) == 1 else (0,)
        except NO_JSON as error:
            raise EndpointError(
                f"{self.url} gave no list of vectors ({one_line(repr(error))}), {EXPECTED}"
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
