"""A trained model on disk: text in, vectors out; no pickle and no torch.

    BUNDLE/config.json          what else decides a vector: tower kind, dims, truncation, prefixes
    BUNDLE/tokenizer.model      SentencePiece
    BUNDLE/towers.safetensors   query.vectors, query.weights, … (and passage.* where separate)
    BUNDLE/pca.safetensors      mean, components
    BUNDLE/card.json            where it came from: data, commit, seed, versions, metrics

`bundle.files` says which files other kinds of tower have, and which extra ones there may be. The
card is written last, so that its presence means complete. The fingerprint is a hash of the files
that decide a vector: all but the card and the extras.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as save_arrays

from two_tower.models.bundle.cross_encoder import CrossEncoderScorer
from two_tower.models.bundle.cross_scoring import CrossReader
from two_tower.models.bundle.documents import Documents, graph_fingerprint, passages_of
from two_tower.models.bundle.encoders import TextTokens, TokenEncoder, open_encoder
from two_tower.models.bundle.files import (
    BUNDLE_FORMAT,
    CARD,
    CONFIG,
    CROSS_SCORER,
    DOCUMENTS,
    ENDPOINT,
    FUSION,
    LATE,
    PCA,
    TOKENIZER,
    TOWERS,
    check_target,
    deciding_files,
    digests,
    fingerprint,
    parse_arrays,
    parse_config,
    read_card,
    read_deciding,
    read_extras,
)
from two_tower.models.bundle.fusion import Fusion
from two_tower.models.bundle.late import LateConfig, LateInteraction
from two_tower.models.bundle.reduction import Reduction
from two_tower.models.config import from_mapping
from two_tower.models.errors import BundleError
from two_tower.models.files import new_folder, write_bytes, write_json
from two_tower.models.networks.cross_config import CrossConfig
from two_tower.models.text.tokenizer import RowTokenizer, Tokenizer
from two_tower.models.text.transformer_tokenizer import CROSS_GRAPH, CROSS_TEXT, GRAPH
from two_tower.models.threads import one_blas_thread
from two_tower.models.vector_cache import cached_rows, cached_vectors
from two_tower.models.vectors import ByteArray, FloatArray

MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What files raise whose parts are right, and do not fit each other."""


class ModelBundle:
    """Encoders of queries and passages, and a PCA.

    An empty or blank text is read as the unknown token: its vector is valid, and the same for
    all such texts.

    Attributes:
        config: the content of config.json.
        card: the content of card.json.
        fingerprint: 64 hex digits; equal fingerprints mean equal vectors.
        extras: name -> content of the files that decide no vector.
        fusion: how the scores of the stages are put together, None where that was not learnt.
        asks_endpoint: whether a model behind a URL reads queries and passages.
        documents: the encoder of the documents where the bundle has none of its own, else None.
        late: makes the bytes of late interaction; None where the bundle has none.
        folder: where it lies; None for one that was neither loaded nor saved.
    """

    folder: Path | None = None
    _device: str | None = None

    def __init__(
        self,
        files: Mapping[str, bytes],
        card: Mapping[str, Any],
        *,
        extras: Mapping[str, bytes] | None = None,
        threads: int = 0,
        is_checked: bool = False,
    ) -> None:
        """Open a bundle by the content of its files.

        Args:
            files: name -> content of the deciding files; config.json says which there must be.
            card: what else to know about the bundle.
            extras: name -> content of the files that decide no vector.
            threads: cores for encoding batches (0: all).
            is_checked: whether the card's hashes are known to be those of the files.

        Raises:
            BundleError: a file is broken, or they do not fit each other.
        """
        self.config = parse_config(files[CONFIG])
        self._files = {name: files[name] for name in deciding_files(self.config)}
        self.asks_endpoint = self.config["tower"]["kind"] == ENDPOINT
        self._threads = threads
        self.extras = dict(extras or {})
        self.fingerprint = card["fingerprint"] if is_checked else fingerprint(self._files)
        self.card = {**card, "fingerprint": self.fingerprint}
        if self.extras and not is_checked:
            self.card["extras"] = digests(self.extras)
        self.fusion = Fusion.of_bytes(self.extras[FUSION]) if FUSION in self.extras else None
        self._encoder = open_encoder(self.config, self._files)
        self.documents = self._open_documents()
        self.late = self._open_late()
        self._prefixes = {"query": "", "passage": "", **self.config.get("prefixes", {})}
        self._reduction = Reduction.of_arrays(
            parse_arrays(PCA, files[PCA]), self.config["pca_dims"]
        )
        if len(self._reduction.mean) != self.dim:
            raise BundleError(
                f"{PCA} is for {len(self._reduction.mean)} dims, the towers have {self.dim}; "
                "train the bundle again"
            )

    def _open_documents(self) -> Documents | None:
        """Return the encoder that reads the documents where the bundle has none of its own."""
        if DOCUMENTS not in self._files:
            return None
        arrays = parse_arrays(DOCUMENTS, self._files[DOCUMENTS])
        card = self.card if self.asks_endpoint else None
        documents = Documents.of_parts(self.config["documents"], arrays, card=card)
        if documents.dim != self.dim:
            raise BundleError(
                f"{DOCUMENTS} is for {documents.dim} dims, the query tower has {self.dim}; "
                "train the bundle again"
            )
        return documents

    def _open_late(self) -> LateInteraction | None:
        if LATE not in self._files:
            return None
        config = from_mapping(LateConfig, self.config["late"], where="late.")
        late = LateInteraction(parse_arrays(LATE, self._files[LATE]), pool=config.pool)
        tokenizer = self._encoder.tokenizer
        if late.has_table != self.has_documents or late.vocab_size != tokenizer.vocab_size:
            raise BundleError(f"{LATE} does not fit the query tower; train the bundle again")
        return late

    def with_late(self, config: LateConfig, arrays: Mapping[str, FloatArray]) -> "ModelBundle":
        """Return this bundle with late interaction (see `LateInteraction`): another fingerprint."""
        described = {**self.config, "late": {"pool": config.pool}}
        files = {**self._files, LATE: save_arrays(dict(arrays)), CONFIG: _json(described)}
        return ModelBundle(files, self.card, extras=self.extras, threads=self._threads)

    @classmethod
    def of_files(
        cls,
        config: Mapping[str, Any],
        files: Mapping[str, bytes],
        *,
        reduction: Reduction,
        card: Mapping[str, Any],
    ) -> "ModelBundle":
        """Make a bundle of trained parts.

        Args:
            config: the content of config.json.
            files: the deciding files of this kind of tower: its tokenizer and its parameters.
            reduction: the PCA.
            card: the content of card.json.
        """
        common = {CONFIG: _json(config), PCA: save_arrays(reduction.arrays())}
        return cls({**files, **common}, card)

    @classmethod
    def load(cls, path: str | Path, *, threads: int = 0) -> "ModelBundle":
        """Read a bundle folder.

        Args:
            path: the folder.
            threads: cores for encoding batches (0: all).

        Raises:
            BundleError: the folder is missing, unfinished, changed or broken.
        """
        path = Path(path)
        card = read_card(path)
        files, extras = read_deciding(path, card), read_extras(path, card)
        try:
            bundle = cls(files, card, extras=extras, threads=threads, is_checked=True)
        except MALFORMED as error:
            reason = " ".join(repr(error).split())[:200]
            raise BundleError(f"{path} is broken ({reason}); train the bundle again") from None
        bundle.folder = path.resolve()
        return bundle

    def with_extras(self, extras: Mapping[str, bytes]) -> "ModelBundle":
        """Return this bundle with exactly these extra files; its vectors stay the same."""
        card = {key: value for key, value in self.card.items() if key != "extras"}
        return ModelBundle(self._files, card, extras=extras, threads=self._threads)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the folder in one step.

        Args:
            path: the folder to make.
            force: replace a complete bundle.

        Raises:
            BundleError: the path holds a bundle and `force` is off, or something else.
        """
        path = Path(path)
        check_target(path, force=force)
        try:
            with new_folder(path) as work:
                for name, content in {**self._files, **self.extras}.items():
                    write_bytes(work / name, content)
                write_json(work / CARD, {"format": BUNDLE_FORMAT, **self.card})
        except OSError as error:
            raise BundleError(f"{path} cannot be written ({error.strerror})") from None
        self.folder = path.resolve()

    @property
    def files(self) -> Mapping[str, bytes]:
        """Name -> content of the files that decide a vector."""
        return self._files

    @property
    def dim(self) -> int:
        """Width of the full vectors."""
        return self._encoder.dim

    def read_on(self, device: str) -> None:
        """Have torch compute the transformers on a device from now on; see `devices.put_on`."""
        self._device = device
        if GRAPH in self._files:
            self._encoder = open_encoder(self.config, self._files, device=device)
        if self.documents:
            self.documents.device = device

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self._encoder.tokenizer.vocab_size

    @property
    def row_tokenizer(self) -> RowTokenizer:
        """What cuts queries into tokens."""
        return self._encoder.tokenizer

    @property
    def pca_dims(self) -> tuple[int, ...]:
        """Widths of the reduced vectors, largest first."""
        return self._reduction.dims

    @property
    def tokenizer(self) -> Tokenizer:
        """The SentencePiece tokenizer.

        Raises:
            BundleError: this kind of tower has none.
        """
        if isinstance(self._encoder.tokenizer, Tokenizer):
            return self._encoder.tokenizer
        raise self._lacks(TOKENIZER)

    def towers(self) -> dict[str, FloatArray]:
        """Return the towers' parameters, as `networks.towers.TwoTower.arrays` does.

        Raises:
            BundleError: this kind of tower keeps them elsewhere.
        """
        if TOWERS in self._files:
            return parse_arrays(TOWERS, self._files[TOWERS])
        raise self._lacks(TOWERS)

    def _lacks(self, name: str) -> BundleError:
        kind = self.config["tower"]["kind"]
        return BundleError(
            f"a bundle of kind {kind} has no {name}; use one of kind mean, gru or lstm"
        )

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, for `Passage.content` of n passages.

        What a transformer read once comes from the cache, see `vector_cache`.

        Raises:
            BundleError: the encoder of the documents is another one than in training, or unknown.
            ConfigError: it is not installed.
        """
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        texts = self._prefixed("passage", texts)
        if self.documents is not None:
            return self.documents.encode(texts)
        if GRAPH in self._files:
            encode = partial(self._encoder.encode_passages, threads=self._threads)
            name = passages_of(graph_fingerprint(self._files))
            return cached_vectors(encode, texts, encoder=name, label="encoding passages")
        return self._encoder.encode_passages(texts, threads=self._threads)

    def encode_queries(self, texts: Sequence[str], *, limit_s: float | None = None) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, for n queries.

        An endpoint has `limit_s` for what is not in the cache; as long as for passages if None.

        Raises:
            BundleError, EndpointError: it is another model than in training, or late.
        """
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        texts = self._prefixed("query", texts)
        if self.asks_endpoint and self.documents is not None:
            return self.documents.encode_queries(texts, limit_s=limit_s)
        return self._encoder.encode_queries(texts, threads=self._threads)

    def late_arrays(self) -> dict[str, FloatArray]:
        """Return what was learnt for late interaction, as `LateInteraction` takes it.

        Raises:
            BundleError: the bundle has none.
        """
        if LATE in self._files:
            return parse_arrays(LATE, self._files[LATE])
        raise self._lacks(LATE)

    @property
    def late_dim(self) -> int:
        """Width of each vector of late interaction; 0 for none."""
        return self.late.dim if self.late else 0

    def encode_passages_late(self, texts: Sequence[str]) -> tuple[FloatArray, list[ByteArray]]:
        """Return what `encode_passages` does, cached too, and (m, late_dim) uint8 of each passage.

        Raises:
            BundleError: the encoder of the documents is another one than in training, or unknown.
            ConfigError: it is not installed.
        """
        assert self.late is not None, "asked of bundles with late interaction"
        if not texts:
            return self.encode_passages(texts), []
        name = f"{self.fingerprint[:32]}-late"
        rows = cached_rows(self._late_rows, texts, encoder=name, label="encoding passages")
        vectors = np.stack([row[: self.dim] for row in rows])
        late = [np.ascontiguousarray(row[self.dim :]).view(np.uint8) for row in rows]
        return vectors, [each.reshape(-1, self.late_dim) for each in late]

    def _late_rows(self, texts: Sequence[str]) -> list[FloatArray]:
        """Return the vector of each passage and, behind it, its bytes, four in a float."""
        assert self.late is not None
        read = self.passage_tokens(texts)
        late = [self.late.passage(each).reshape(-1).view(np.float32) for each in read.tokens]
        return [np.concatenate(pair) for pair in zip(read.vectors, late, strict=True)]

    def passage_tokens(self, texts: Sequence[str]) -> TextTokens:
        """Return the vectors of passages, at least one, and of their tokens.

        Raises:
            BundleError: a transformer reads the documents neither here nor by name.
            ConfigError: it is not installed.
        """
        texts = self._prefixed("passage", texts)
        if self.documents is not None:
            return self.documents.encode_with_tokens(texts)
        encoder = self._token_encoder
        return encoder.passages_with_tokens(texts, threads=self._threads)

    def encode_queries_late(self, texts: Sequence[str]) -> tuple[FloatArray, list[ByteArray]]:
        """Return what `encode_queries` does, and the (m, late_dim) uint8 of each query."""
        assert self.late is not None, "asked of bundles with late interaction"
        if not texts:
            return self.encode_queries(texts), []
        read = self.query_tokens(texts)
        if self.late.has_table:
            return read.vectors, [self.late.query(ids) for ids in read.ids]
        pairs = zip(read.ids, read.tokens, strict=True)
        return read.vectors, [self.late.query(*pair) for pair in pairs]

    def query_tokens(self, texts: Sequence[str]) -> TextTokens:
        """Return the vectors of queries, at least one, and of their tokens, if there are such."""
        texts = self._prefixed("query", texts)
        if not self.has_documents:
            return self._token_encoder.queries_with_tokens(texts, threads=self._threads)
        rows = self._encoder.tokenizer.encode_queries(texts, threads=self._threads)
        vectors = self._encoder.query.encode(rows, threads=self._threads)
        return TextTokens(vectors, np.split(rows.ids, rows.offsets[1:-1]), [])

    @property
    def shares_tokens(self) -> bool:
        """Whether queries are cut into the tokens of the encoder that reads the documents."""
        return bool(self.config["tokenizer"].get("vocabulary") == "documents")

    @property
    def has_documents(self) -> bool:
        """Whether another encoder reads the documents."""
        return self.documents is not None

    @cached_property
    def _token_encoder(self) -> TokenEncoder:
        """Return the bundle's own transformer, which gives token vectors too."""
        if GRAPH not in self._files:
            raise self._lacks(GRAPH)
        return TokenEncoder(self._files, device=self._device)

    @property
    def has_cross_scorer(self) -> bool:
        """Whether candidates can be read together with their query."""
        return self.fusion is not None and bool({CROSS_SCORER, CROSS_GRAPH} & self.extras.keys())

    @property
    def cross_candidates(self) -> int:
        """How many candidates the cross-scorer reads unless a search says otherwise."""
        return self._cross_config.reads

    @cached_property
    def _cross_config(self) -> CrossConfig:
        if self.fusion is None or not self.has_cross_scorer:
            raise BundleError(f"this bundle has no {CROSS_SCORER}; train with cross.epochs above 0")
        return self.fusion.cross_config()

    @cached_property
    def _cross_scorer(self) -> CrossReader:
        config = self._cross_config
        arrays = parse_arrays(CROSS_SCORER, self._extra(CROSS_SCORER))
        return CrossReader(arrays, config, vocab_size=self.vocab_size)

    @cached_property
    def cross_encoder(self) -> CrossEncoderScorer:
        """The cross-encoder of a bundle that has one.

        Raises:
            BundleError: it has none, or a broken one.
        """
        limits = self._cross_config.limits
        return CrossEncoderScorer(self._extra(CROSS_GRAPH), self._extra(CROSS_TEXT), limits)

    def _extra(self, name: str) -> bytes:
        if name not in self.extras:
            raise BundleError(f"this bundle has no {name}, which its {FUSION} names; train again")
        return self.extras[name]

    def cross_scores(
        self,
        queries: Sequence[str],
        passages: Sequence[Sequence[str]],
        *,
        bm25: Sequence[FloatArray],
        cosine: Sequence[FloatArray],
    ) -> list[FloatArray]:
        """Return (n,) float32 for each query: the logits of its n candidates, comparable in it.

        The first call opens the scorer. Whatever kind it is, this is the only way to it. Of each
        query's `passages` (`Passage.content`), (n,) float32 `bm25` are scores, 0 where no term
        matches, and `cosine` those of the towers.

        Raises:
            BundleError: the bundle has no cross-scorer, or a broken one.
        """
        counts = list(map(len, passages))
        texts = list(chain.from_iterable(passages))
        if not texts:
            return [np.zeros(0, dtype=np.float32) for _ in counts]
        if self._cross_config.model is not None:
            asked = chain.from_iterable(map(repeat, queries, counts))
            logits = self.cross_encoder.score(list(asked), texts, threads=self._threads)
        else:
            tokenizer, threads = self._encoder.tokenizer, self._threads
            with one_blas_thread():
                logits = self._cross_scorer.score(
                    tokenizer.encode_queries(self._prefixed("query", queries), threads=threads),
                    tokenizer.encode_passages(self._prefixed("passage", texts), threads=threads),
                    counts=counts,
                    bm25=np.concatenate(bm25),
                    cosine=np.concatenate(cosine),
                )
        return np.split(logits, np.cumsum(counts)[:-1])

    def reduce(self, vectors: FloatArray) -> dict[int, FloatArray]:
        """Project (n, dim) vectors to {d: (n, d) float32, L2-normalised} for d in `pca_dims`.

        Raises:
            ValueError: the vectors are of another width.
        """
        return self._reduction.apply(vectors)

    def _prefixed(self, side: str, texts: Sequence[str]) -> Sequence[str]:
        prefix = self._prefixes[side]
        return [prefix + text for text in texts] if prefix else texts


def _json(config: Mapping[str, Any]) -> bytes:
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
