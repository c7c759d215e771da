"""The cross-scorer once training is over: what `networks.cross_scorer` computes, with numpy alone.

Texts stand end to end and are never padded, but for the windows.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from two_tower.models.bundle.files import check_shapes
from two_tower.models.bundle.recurrence import (
    PARAMETERS,
    SIDE_BY_SIDE,
    Recurrence,
    distinct,
    read_order,
    recurrence_shapes,
)
from two_tower.models.networks.cross_config import (
    ATTENTION_SHARPNESS,
    EXACT_WIDTH,
    KERNEL_CENTRES,
    KERNEL_WIDTH,
    LARGEST_CORRECTION,
    MEETING,
    STAGE_FEATURES,
    VERDICTS,
    WINDOWS,
    CrossConfig,
)
from two_tower.models.text.tokenizer import TokenRows, concat_rows
from two_tower.models.vectors import FloatArray, IntArray

MATCH_COLUMNS = len(KERNEL_CENTRES) + 2 * len(WINDOWS)

DIRECTIONS = ("forwards", "backwards")

BATCH_NORM_EPSILON = 1e-5
"""What torch adds to a variance."""


class CrossReader:
    """(queries, passages, earlier scores) -> how well each passage fits its query."""

    def __init__(
        self, arrays: Mapping[str, FloatArray], config: CrossConfig, *, vocab_size: int
    ) -> None:
        """Keep the arrays of a trained scorer, as `networks.cross_scorer.scorer_arrays` gave them.

        Raises:
            BundleError: an array is missing, too many or of another shape.
        """
        vectors = arrays.get("vectors")
        # Narrower than the configuration says where the towers were.
        dim = vectors.shape[1] if vectors is not None and vectors.ndim == 2 else config.dim
        shapes = expected_shapes(config, vocab_size=vocab_size, dim=dim)
        check_shapes(arrays, shapes, problem="the cross-scorer does not fit its configuration")
        self.config = config
        self._arrays = arrays
        corrections = np.clip(arrays["corrections"], -LARGEST_CORRECTION, LARGEST_CORRECTION)
        self._worth = arrays["idf"] * np.exp(corrections)  # (vocab,)
        self._spread = np.sqrt(arrays["scale.running_var"] + np.float32(BATCH_NORM_EPSILON))
        if config.recurrent:
            directions = [
                {name: arrays[f"{direction}.{name}"] for name in PARAMETERS}
                for direction in DIRECTIONS
            ]
            self._network = Recurrence("gru", directions)

    def score(
        self,
        queries: TokenRows,
        passages: TokenRows,
        *,
        counts: Sequence[int],
        bm25: FloatArray,
        cosine: FloatArray,
    ) -> FloatArray:
        """Return (n,) float32 logits of the candidates of some queries.

        Args:
            queries: m rows.
            passages: n rows, those of the first query first.
            counts: (m,) how many of them are each query's; n >= 1 in all.
            bm25: (n,) what BM25 gave them, 0 where no term matches.
            cosine: (n,) what the towers gave them.
        """
        queries = cut(queries, limit=self.config.query_tokens)
        passages = cut(passages, limit=self.config.passage_tokens)
        stages = np.stack(
            [bm25 / np.float32(10), cosine, np.log1p(np.maximum(bm25, 0)), np.square(cosine)]
        )
        ends = np.cumsum([0, *counts])
        logits = [
            self._score(
                queries.part(first, last),
                passages.part(ends[first], ends[last]),
                counts[first:last],
                stages[:, ends[first] : ends[last]],
            )
            for first, last in _together(counts)
        ]
        return np.concatenate(logits)

    def _score(
        self, queries: TokenRows, passages: TokenRows, counts: Sequence[int], stages: FloatArray
    ) -> FloatArray:
        """Return (n,) logits; the network reads all texts side by side."""
        asked, read = queries.offsets, passages.offsets
        if self.config.recurrent:
            states = self._states(concat_rows([queries, passages]))
            query_states, passage_states = np.split(states, asked[-1:])
        features, row = [], 0
        for number, count in enumerate(counts):
            if not count:
                continue
            query = queries.ids[asked[number] : asked[number + 1]]
            own = passages.part(row, row + count)
            weights = self._worth[query]
            weights = weights / max(weights.sum(), np.float32(1e-6))  # (query tokens,)
            columns = self._exact(query, own, weights)
            columns += list(stages[:, row : row + count])
            columns += match_columns(self._cosines(query, own.ids), own, weights)
            if self.config.recurrent:
                wants = query_states[asked[number] : asked[number + 1]]
                has = passage_states[read[row] : read[row + count]]
                cosines = wants @ has.T  # (query tokens, tokens)
                columns += match_columns(cosines, own, weights)
                columns += self._verdict(wants, has, cosines, own, weights)
            features.append(np.stack(columns, axis=1))
            row += count
        return self._logits(np.concatenate(features))

    def _cosines(self, query: IntArray, tokens: IntArray) -> FloatArray:
        """Return (query tokens, tokens): how near the vectors of two tokens are."""
        occurring, places = distinct(tokens, count=len(self._worth))
        vectors = self._arrays["vectors"]
        cosines: FloatArray = (vectors[query] @ vectors[occurring].T).take(places, axis=1)
        return cosines

    def _exact(self, query: IntArray, passages: TokenRows, weights: FloatArray) -> list[FloatArray]:
        """Return six columns: shares of tokens and of pairs found, first place, lengths, rarity."""
        starts, lengths = passages.offsets[:-1], passages.lengths
        same = query[:, None] == passages.ids  # (query tokens, tokens)
        pairs = same[:-1, :-1] & same[1:, 1:]
        pairs[:, starts[1:] - 1] = False  # of two passages
        pairs = np.pad(pairs, ((0, 0), (0, 1)))
        places = np.arange(len(passages.ids)) - np.repeat(starts, lengths)
        nowhere = np.repeat(lengths, lengths)
        first = np.minimum.reduceat(np.where(same.any(axis=0), places, nowhere), starts)
        count = len(lengths)
        return [
            weights @ np.logical_or.reduceat(same, starts, axis=1).astype(np.float32),
            (weights[:-1] + weights[1:])
            @ np.logical_or.reduceat(pairs, starts, axis=1).astype(np.float32),
            np.log1p(first.astype(np.float32)),
            np.log(lengths.astype(np.float32)),
            np.full(count, np.log(np.float32(len(query)))),
            np.full(count, self._arrays["idf"][query].max()),
        ]

    def _states(self, texts: TokenRows) -> FloatArray:
        """Return (total, 2 hidden) states in context, L2-normalised."""
        occurring, tokens = distinct(texts.ids, count=len(self._worth))
        vectors = self._arrays["vectors"][occurring]  # (distinct tokens, dim)
        table = self._network.table(self._linear("project", vectors))
        joined = np.empty((len(tokens), 2, self.config.hidden), np.float32)
        for steps in read_order(texts.lengths, directions=2):
            states = np.empty((2, steps.places.shape[1], self.config.hidden), np.float32)
            at = 0
            for count, state in self._network.read(table, tokens, steps):
                states[:, at : at + count] = state
                at += count
            for direction, places in enumerate(steps.places):
                joined[places, direction] = states[direction]
        flat = joined.reshape(len(tokens), -1)
        flat /= np.maximum(np.sqrt(np.einsum("ij,ij->i", flat, flat)), 1e-12)[:, None]
        return flat

    def _verdict(
        self,
        wants: FloatArray,
        has: FloatArray,
        cosines: FloatArray,
        passages: TokenRows,
        weights: FloatArray,
    ) -> list[FloatArray]:
        """Return the columns of what the query asks against what stands where it matches.

        `wants` are the states of the query's tokens, `has` those of the passages'.
        """
        starts = passages.offsets[:-1]
        share = np.exp(np.float32(ATTENTION_SHARPNESS) * cosines.max(axis=0))  # (tokens,)
        met = np.add.reduceat(share[:, None] * has, starts, axis=0)
        met /= np.add.reduceat(share, starts)[:, None]
        match = np.maximum(self._linear("meet_passage", met), 0)
        asked = np.maximum(self._linear("meet_query", weights @ wants), 0)
        asked = np.broadcast_to(asked, match.shape)
        joined = np.concatenate([match, asked, match * asked], axis=1)
        return list(self._layers("verdict", joined).T)

    def _logits(self, features: FloatArray) -> FloatArray:
        """Return (n,) logits of (n, features)."""
        scaled = (features - self._arrays["scale.running_mean"]) / self._spread
        scaled = scaled * self._arrays["scale.weight"] + self._arrays["scale.bias"]
        logits: FloatArray = self._linear("linear", scaled) + self._layers("curved", scaled)
        return logits[:, 0]

    def _linear(self, name: str, inputs: FloatArray) -> FloatArray:
        result: FloatArray = inputs @ self._arrays[f"{name}.weight"].T
        result += self._arrays[f"{name}.bias"]
        return result

    def _layers(self, name: str, inputs: FloatArray) -> FloatArray:
        return self._linear(f"{name}.2", np.maximum(self._linear(f"{name}.0", inputs), 0))


def _together(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield where groups of queries begin and end: as many texts as are read side by side.

    One without candidates has nothing to read, and is never a group of its own.
    """
    first = texts = 0
    for last, count in enumerate(counts):
        added = 1 + count if count else 0
        if added and texts and texts + added > SIDE_BY_SIDE:
            yield first, last
            first, texts = last, 0
        texts += added
    yield first, len(counts)


def cut(rows: TokenRows, *, limit: int) -> TokenRows:
    """Return all rows with their first `limit` tokens."""
    places = np.arange(len(rows.ids)) - np.repeat(rows.offsets[:-1], rows.lengths)
    return rows.where(places < limit)


def match_columns(
    cosines: FloatArray, passages: TokenRows, weights: FloatArray
) -> list[FloatArray]:
    """Return kernel sums, then the best and the first window of each size, each (n,) float32.

    Args:
        cosines: (query tokens, tokens of all passages).
        passages: n rows.
        weights: (query tokens,), what each is worth.
    """
    starts = passages.offsets[:-1]
    columns = []
    soft = np.empty_like(cosines)
    for centre in KERNEL_CENTRES:
        spread = EXACT_WIDTH if centre == 1.0 else KERNEL_WIDTH
        np.subtract(cosines, np.float32(centre), out=soft)
        np.square(soft, out=soft)
        soft *= np.float32(1 / (-2 * spread**2))
        np.exp(soft, out=soft)
        columns.append(weights @ np.log1p(np.add.reduceat(soft, starts, axis=1)))

    # A window moves by a quarter of its size, so it is four blocks; 0 beyond a passage's end.
    lengths = passages.lengths
    block = max(WINDOWS) // 4
    width = max(max(WINDOWS), -(-int(lengths.max()) // block) * block)
    row = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(row)) - starts[row]
    positive = np.zeros((len(cosines), width * len(lengths)), np.float32)
    positive[:, place * len(lengths) + row] = np.maximum(cosines, 0)
    for size in WINDOWS:
        blocks = positive.reshape(len(cosines), -1, size // 4, len(lengths)).max(axis=2)
        pairs = np.maximum(blocks[:, :-1], blocks[:, 1:])
        best = np.maximum(pairs[:, :-2], pairs[:, 2:])  # (query tokens, windows, n)
        covered = np.tensordot(weights, best, axes=1)  # (windows, n)
        columns += [covered.max(axis=0), covered[0]]
    return columns


def expected_shapes(
    config: CrossConfig, *, vocab_size: int, dim: int
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array, by name."""
    hidden, width = config.hidden, 2 * config.hidden
    shapes: dict[str, tuple[int, ...]] = {"vectors": (vocab_size, dim)}
    shapes |= dict.fromkeys(("idf", "corrections"), (vocab_size,))
    linears: dict[str, tuple[int, int]] = {}  # name -> (outputs, inputs)
    count = 6 + STAGE_FEATURES + MATCH_COLUMNS
    if config.recurrent:
        count += MATCH_COLUMNS + VERDICTS
        for direction in DIRECTIONS:
            of_network = recurrence_shapes("gru", width=width, hidden=hidden)
            shapes |= {f"{direction}.{name}": shape for name, shape in of_network.items()}
        linears |= {"project": (width, dim)}
        linears |= dict.fromkeys(("meet_query", "meet_passage"), (MEETING, width))
        linears |= {"verdict.0": (MEETING, 3 * MEETING), "verdict.2": (VERDICTS, MEETING)}
    linears |= {"linear": (1, count), "curved.0": (MEETING, count), "curved.2": (1, MEETING)}
    for name in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"scale.{name}"] = (count,)
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes
