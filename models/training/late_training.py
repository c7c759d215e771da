"""Training of late interaction: a projection of a frozen transformer's token vectors, and weights.

L = mean_i -log( exp(s(q_i, p_i) / T) / sum_j exp(s(q_i, p_j) / T) ) over the passages p_j of a
batch: an answer of each query and what BM25 finds for it beside that; s is the late score of
`bundle.late`, and T is learnt, as in Radford et al., "Learning Transferable Visual Models From
Natural Language Supervision", 2021. Where another encoder reads the documents, queries are read by
a table of token vectors, which begins with the means of the tokens in the passages.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.late import LateConfig, pooled, to_scores
from two_tower.models.examples.corpus import Notify
from two_tower.models.examples.pairs import Labelled
from two_tower.models.objectives.distillation import token_texts
from two_tower.models.progress import progress
from two_tower.models.text.bm25 import Bm25Index
from two_tower.models.training.loop import rate_factor
from two_tower.models.vectors import (
    ByteArray,
    Float64Array,
    FloatArray,
    IntArray,
    normalized,
)

BASIS = 128  # principal components of token vectors, which the projection is learnt over
BASIS_TEXTS = 512
READ_AT_ONCE = 512
DEPTH, NEGATIVES = 10, 2  # of so many that BM25 finds, so many are read beside an answer
BATCH = 32
RATE, TABLE_RATE, WEIGHT_RATE = 1e-3, 3e-3, 5e-3
SCALE = 20.0  # 1 / T at first
MASKED = -2.0  # below any cosine


class Tokens(NamedTuple):
    """Token vectors of n texts in the basis.

    Attributes:
        vectors: n of (tokens, BASIS) float16.
        ids: n of (tokens,), empty for passages.
    """

    vectors: list[FloatArray]
    ids: list[IntArray]


class Basis(NamedTuple):
    """The principal components of token vectors: mean (hidden,) and axes (hidden, BASIS)."""

    mean: FloatArray
    axes: FloatArray

    def apply(self, tokens: FloatArray) -> FloatArray:
        """Return (n, BASIS) float16 of token vectors (n, hidden)."""
        result: FloatArray = ((normalized(tokens) - self.mean) @ self.axes).astype(np.float16)
        return result


class TokenMeans:
    """The mean vector of each token over the passages that hold it."""

    def __init__(self) -> None:
        self._sums: dict[int, Float64Array] = {}
        self._counts: dict[int, int] = {}

    def add(self, ids: IntArray, vectors: FloatArray) -> None:
        """Count tokens (n,) with their vectors (n, BASIS)."""
        order = np.argsort(ids, kind="stable")
        tokens, starts = np.unique(ids[order], return_index=True)
        sums = np.add.reduceat(vectors[order].astype(np.float64), starts, axis=0)
        counts = np.diff([*starts, len(ids)])
        for token, total, count in zip(tokens.tolist(), sums, counts.tolist(), strict=True):
            self._sums[token] = self._sums.get(token, 0.0) + total
            self._counts[token] = self._counts.get(token, 0) + count

    def fill(self, table: FloatArray) -> IntArray:
        """Write the means into a table (vocab, BASIS); return which there are."""
        for token, total in self._sums.items():
            table[token] = total / self._counts[token]
        return np.array(sorted(self._sums), dtype=np.int64)


class Examples(NamedTuple):
    """What is learnt from: queries, each with its answer and with passages that are none.

    Attributes:
        queries: n of them, vectors empty where a table reads them.
        answers: (n,) places among the passages that were read.
        negatives: n lists of such places.
        passages: all that were read, pooled.
    """

    queries: Tokens
    answers: IntArray
    negatives: list[list[int]]
    passages: list[FloatArray]


@dataclass
class LateTrainer:
    """Learns the arrays of `LateInteraction` for a finished bundle.

    `texts` are all passages, `index` is BM25 over them, `train` the labelled queries.
    """

    bundle: ModelBundle
    texts: list[str]
    train: Labelled
    index: Bm25Index
    config: LateConfig
    seed: int
    notify: Notify

    def learn(self) -> dict[str, FloatArray] | None:
        """Return the arrays; None where too few queries are labelled to learn from."""
        rng = np.random.default_rng([self.seed, 3])
        chosen = rng.permutation(len(self.train.texts))[: self.config.queries]
        if not len(chosen):
            return None
        train = self.train.take(np.sort(chosen))
        answers, negatives = self._passages_of(train, rng)
        rows = np.unique(np.concatenate([answers, *negatives]))
        self.notify(f"late interaction reads {len(rows)} passages")
        basis, passages, means = self._read(rows)
        place = {int(row): i for i, row in enumerate(rows)}
        examples = Examples(
            self._queries(train.texts, basis),
            np.array([place[int(row)] for row in answers]),
            [[place[int(row)] for row in each] for each in negatives],
            passages,
        )
        return self._fit(basis, examples, means)

    def _passages_of(
        self, train: Labelled, rng: np.random.Generator
    ) -> tuple[IntArray, list[IntArray]]:
        """Return a row that answers each query, and rows that BM25 finds and nobody judged."""
        answers = train.relevant.indices[train.relevant.indptr[:-1]].astype(np.int64)
        ranked = self.index.search(train.texts, min(DEPTH, len(self.index))).rows
        negatives = []
        for number, row in enumerate(ranked):
            known = train.relevant.indices[slice(*train.relevant.indptr[number : number + 2])]
            others = row[(row >= 0) & ~np.isin(row, known)]
            negatives.append(rng.permutation(others)[:NEGATIVES])
        return answers, negatives

    def _read(self, rows: IntArray) -> tuple[Basis, list[FloatArray], TokenMeans]:
        """Let the transformer read passages.

        Returns:
            A basis, their token vectors pooled in it, and the means of equal tokens.
        """
        passages: list[FloatArray] = []
        sample = np.random.default_rng([self.seed, 4]).permutation(rows)[:BASIS_TEXTS]
        read = self.bundle.passage_tokens([self.texts[row] for row in sample])
        basis, means = fit_basis(np.concatenate(read.tokens)), TokenMeans()
        starts = range(0, len(rows), READ_AT_ONCE)
        for start in progress(starts, label="late interaction", total=len(starts)):
            part = rows[start : start + READ_AT_ONCE]
            read = self.bundle.passage_tokens([self.texts[row] for row in part])
            size = self.config.pool
            passages += [basis.apply(pooled(normalized(each), size=size)) for each in read.tokens]
            means.add(np.concatenate(read.ids), basis.apply(np.concatenate(read.tokens)))
        return basis, passages, means

    def _queries(self, texts: list[str], basis: Basis) -> Tokens:
        read = self.bundle.query_tokens(texts)
        return Tokens([basis.apply(each) for each in read.tokens], read.ids)

    def _fit(self, basis: Basis, examples: Examples, means: TokenMeans) -> dict[str, FloatArray]:
        counts = np.bincount(
            np.concatenate([np.unique(ids) for ids in examples.queries.ids]),
            minlength=self.bundle.vocab_size,
        )
        idf = np.log1p(len(examples.queries.ids) / (counts + 1.0))
        table = self._table(basis, means) if self.bundle.has_documents else None
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = LateModel(idf / idf.mean(), table, dim=self.config.dim)
            train(model, examples, epochs=self.config.epochs, seed=self.seed)
        return model.arrays(basis)

    def _table(self, basis: Basis, means: TokenMeans) -> FloatArray:
        """Return (vocab, BASIS): a token's mean in the passages, else what it is read as alone."""
        pieces = token_texts(self.bundle.row_tokenizer)
        table = np.zeros((len(pieces), basis.axes.shape[1]), dtype=np.float32)
        missing = np.arange(len(pieces))
        if self.bundle.shares_tokens:
            known = means.fill(table)
            missing = np.setdiff1d(missing, known)
        starts = range(0, len(missing), READ_AT_ONCE)
        for start in progress(starts, label="tokens", total=len(starts)):
            part = missing[start : start + READ_AT_ONCE]
            read = self.bundle.passage_tokens([pieces[i] for i in part])
            table[part] = [basis.apply(each).mean(axis=0) for each in read.tokens]
        return table


def fit_basis(tokens: FloatArray) -> Basis:
    """Return the principal components of token vectors (n, hidden)."""
    unit = normalized(tokens).astype(np.float64)
    mean = unit.mean(axis=0)
    axes = np.linalg.eigh((unit - mean).T @ (unit - mean)).eigenvectors[:, ::-1][:, :BASIS]
    return Basis(mean.astype(np.float32), np.ascontiguousarray(axes, dtype=np.float32))


class LateModel(nn.Module):
    """The late score of queries and passages, in the basis.

    It begins as the first principal components, and with the weights that it is given.
    """

    def __init__(self, weights: FloatArray, table: FloatArray | None, *, dim: int) -> None:
        """Take weights (vocab,) and a table (vocab, BASIS), or None where vectors are given."""
        super().__init__()
        width = BASIS if table is None else table.shape[1]
        self.projection = nn.Parameter(torch.eye(width, dim))
        self.offset = nn.Parameter(torch.zeros(dim))
        self.log_weights = nn.Parameter(torch.log(torch.from_numpy(weights).float()))
        self.log_scale = nn.Parameter(torch.log(torch.tensor(SCALE)))
        start = None if table is None else torch.from_numpy(table[:, :dim].copy())
        self.table = None if start is None else nn.Parameter(start)

    def groups(self) -> list[dict[str, object]]:
        """Return the optimizer's groups of parameters with their rates."""
        groups: list[dict[str, object]] = [
            {"params": [self.projection, self.offset, self.log_scale], "lr": RATE},
            {"params": [self.log_weights], "lr": WEIGHT_RATE},
        ]
        return groups + ([] if self.table is None else [{"params": [self.table], "lr": TABLE_RATE}])

    def project(self, vectors: Tensor) -> Tensor:
        """Return (..., dim), of length 1 and sum 0."""
        return unit(vectors @ self.projection + self.offset)

    def forward(
        self, ids: Tensor, vectors: Tensor | None, passages: Tensor, mask: Tensor
    ) -> Tensor:
        """Return (n, m) late scores over T.

        Args:
            ids: (n, t) of queries, -1 where one is shorter.
            vectors: (n, t, BASIS), None where the table reads them.
            passages: (m, s, BASIS).
            mask: (m, s) bool, which of them there are.
        """
        there = ids >= 0
        known = ids.clamp(min=0)
        if self.table is None:
            assert vectors is not None, "without a table"
            queries = self.project(vectors)
        else:
            queries = unit(functional.embedding(known, self.table))
        weights = functional.embedding(known, torch.exp(self.log_weights)[:, None])[..., 0] * there
        near = torch.einsum("ntd,msd->nmts", queries, self.project(passages))
        best = near.masked_fill(~mask[None, :, None], MASKED).amax(dim=-1)  # (n, m, t)
        scores = (best * weights[:, None]).sum(dim=-1) / weights.sum(dim=-1)[:, None]
        return scores * torch.exp(self.log_scale)

    def arrays(self, basis: Basis) -> dict[str, FloatArray]:
        """Return the arrays of `LateInteraction`, which projects token vectors themselves."""
        projection = basis.axes @ self.projection.detach().numpy()
        offset = self.offset.detach().numpy() - basis.mean @ projection
        arrays = {
            "projection": projection,
            "offset": offset,
            "weights": torch.exp(self.log_weights.detach()).numpy(),
        }
        if self.table is not None:
            arrays["table"] = self.table.detach().numpy()
        return {name: np.ascontiguousarray(a, dtype=np.float32) for name, a in arrays.items()}


def unit(vectors: Tensor) -> Tensor:
    """Return vectors of length 1 and sum 0."""
    return functional.normalize(vectors - vectors.mean(dim=-1, keepdim=True), dim=-1)


def train(model: LateModel, examples: Examples, *, epochs: int, seed: int) -> None:
    """Go through the examples."""
    optimizer = torch.optim.Adam(model.groups())
    rates = [group["lr"] for group in optimizer.param_groups]
    rng = np.random.default_rng([seed, 5])
    count = len(examples.answers)
    per_epoch = max(1, count // BATCH)
    for step in progress(range(epochs * per_epoch), label="late interaction"):
        if step % per_epoch == 0:
            order = rng.permutation(count)
        batch = order[step % per_epoch * BATCH :][:BATCH]
        places = [*examples.answers[batch], *(n for i in batch for n in examples.negatives[i])]
        passages, mask = padded([examples.passages[place] for place in places])
        vectors = None
        if examples.queries.vectors:
            vectors, _ = padded([examples.queries.vectors[i] for i in batch])
        ids = padded_ids([examples.queries.ids[i] for i in batch])
        scores = model(ids, vectors, passages, mask)  # (n, m)
        own = np.array(places) == examples.answers[batch][:, None]
        own[np.arange(len(batch)), np.arange(len(batch))] = False
        scores = scores.masked_fill(torch.from_numpy(own), -torch.inf)  # another's answer, and its
        loss = functional.cross_entropy(scores, torch.arange(len(batch)))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * rate_factor(step, epochs * per_epoch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def padded(vectors: list[FloatArray]) -> tuple[Tensor, Tensor]:
    """Return (n, longest, width) float32 and which of them there are."""
    lengths = np.array([len(each) for each in vectors])
    mask = np.arange(lengths.max()) < lengths[:, None]
    result = np.zeros((*mask.shape, vectors[0].shape[1]), dtype=np.float32)
    result[mask] = np.concatenate(vectors)
    return torch.from_numpy(result), torch.from_numpy(mask)


def padded_ids(ids: list[IntArray]) -> Tensor:
    """Return (n, longest) int64, -1 where a row is shorter."""
    lengths = np.array([len(each) for each in ids])
    mask = np.arange(lengths.max()) < lengths[:, None]
    result = np.full(mask.shape, -1, dtype=np.int64)
    result[mask] = np.concatenate(ids)
    return torch.from_numpy(result)


class LateScorer:
    """Late scores of queries and passages by a finished bundle; each passage is read once."""

    def __init__(self, bundle: ModelBundle, texts: list[str]) -> None:
        self._bundle = bundle
        self._texts = texts
        self._bytes: dict[int, ByteArray] = {}

    def scores(self, queries: list[str], rows: IntArray) -> FloatArray:
        """Return (n, k) float32 of n queries and their passages `rows` (n, k)."""
        missing = [row for row in np.unique(rows).tolist() if row not in self._bytes]
        starts = range(0, len(missing), READ_AT_ONCE)
        for start in progress(starts, label="late interaction", total=len(starts)):
            part = missing[start : start + READ_AT_ONCE]
            _, late = self._bundle.encode_passages_late([self._texts[row] for row in part])
            self._bytes |= dict(zip(part, late, strict=True))
        _, read = self._bundle.encode_queries_late(queries)
        result = np.zeros(rows.shape, dtype=np.float32)
        for place, (query, candidates) in enumerate(zip(read, rows.tolist(), strict=True)):
            result[place] = late_scores(query, [self._bytes[row] for row in candidates])
        return result


def late_scores(query: ByteArray, passages: list[ByteArray]) -> Float64Array:
    """Return (m,) late scores of the bytes of a query and of m passages, as an engine has them."""
    lengths = [len(each) for each in passages]
    products = query.astype(np.float32) @ np.concatenate(passages).astype(np.float32).T
    starts = np.cumsum([0, *lengths[:-1]])
    best = np.maximum.reduceat(products, starts, axis=1)  # (tokens, m)
    return to_scores(best.sum(axis=0, dtype=np.float64), query)
