"""The cross-scorer: reads query and passage together, token against token.

It sees what two separate vectors cannot: which words match, how near each other, how early. It is
slow beside the towers, and so scores the best candidates alone.

A match matrix holds the cosine of every query token with every passage token, once for the token
vectors as they are and, with `recurrent`, once for the states of a bidirectional GRU. Each matrix
is summed up by kernels (soft counts of matches at several strengths: Xiong et al., "End-to-End
Neural Ad-hoc Ranking with Kernel Pooling" (K-NRM), SIGIR 2017) and by windows (the share of the
query that one stretch of the passage covers: Hui et al., "PACRR", EMNLP 2017, look for the same),
every query token weighed by its IDF times a learnt factor. Exact matches of tokens and of pairs,
their place, the lengths and the scores of the earlier stages go in beside them.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from two_tower.models.networks.cross_config import (
    ABSENT,
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
from two_tower.models.text.tokenizer import TokenRows
from two_tower.models.vectors import FloatArray


class Padded(NamedTuple):
    """Token rows side by side.

    Attributes:
        ids: (n, width) int64, 0 beyond a row's length.
        lengths: (n,) int64.
        inside: (n, width) bool, whether there is a token.
    """

    ids: Tensor
    lengths: Tensor
    inside: Tensor

    @classmethod
    def of(cls, rows: TokenRows, *, limit: int) -> "Padded":
        """Pad rows to the longest of them, each cut to `limit` tokens."""
        lengths = np.minimum(rows.lengths, limit)
        places = np.arange(lengths.max(initial=1))
        inside = places < lengths[:, None]
        at = np.minimum(rows.offsets[:-1, None] + places, len(rows.ids) - 1)
        ids = np.where(inside, rows.ids[at], 0)
        return cls(*map(torch.from_numpy, (ids, lengths, inside)))


class CrossScorer(nn.Module):
    """(queries, passages, earlier scores) -> how well each passage fits its query."""

    def __init__(self, vectors: Tensor, idf: Tensor, *, config: CrossConfig) -> None:
        """Make an untrained scorer.

        Args:
            vectors: (vocab, dim) float32 of the tokens; they stay as they are.
            idf: (vocab,) float32, their weights.
            config: the sizes.
        """
        super().__init__()
        self.config = config
        self.vectors: Tensor
        self.idf: Tensor
        self.register_buffer("vectors", functional.normalize(vectors, dim=1))
        self.register_buffer("idf", idf / idf.mean())
        self.corrections = nn.Parameter(torch.zeros(len(idf)))
        matrices = 1
        if config.recurrent:
            matrices = 2
            width = 2 * config.hidden
            self.project = nn.Linear(vectors.shape[1], width)
            self.forwards = nn.GRU(width, config.hidden, batch_first=True)
            self.backwards = nn.GRU(width, config.hidden, batch_first=True)
            self.meet_query = nn.Linear(width, MEETING)
            self.meet_passage = nn.Linear(width, MEETING)
            self.verdict = nn.Sequential(
                nn.Linear(3 * MEETING, MEETING), nn.ReLU(), nn.Linear(MEETING, VERDICTS)
            )
        per_matrix = len(KERNEL_CENTRES) + 2 * len(WINDOWS)
        count = matrices * per_matrix + 6 + STAGE_FEATURES + VERDICTS * (matrices - 1)
        self.scale = nn.BatchNorm1d(count)
        self.drop = nn.Dropout(config.dropout)
        self.linear = nn.Linear(count, 1)
        last = nn.Linear(MEETING, 1)
        nn.init.zeros_(last.weight)
        self.curved = nn.Sequential(nn.Linear(count, MEETING), nn.ReLU(), last)

    def forward(self, queries: Padded, passages: Padded, stages: Tensor) -> Tensor:
        """Return (n, m) logits.

        Args:
            queries: n texts.
            passages: n * m texts, the m of the first query first.
            stages: (n * m, 4) from `stage_features`.
        """
        n, m = len(queries.ids), len(passages.ids) // len(queries.ids)
        # The share of each token in its query, (n, query width). index_select and not []: its
        # gradient adds up in one order, see networks.tokens.
        corrections = self.corrections.index_select(0, queries.ids.ravel()).view(queries.ids.shape)
        factor = torch.exp(corrections.clamp(-LARGEST_CORRECTION, LARGEST_CORRECTION))
        weights = self.idf[queries.ids] * factor * queries.inside
        weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-6)

        # Each query once per passage, as the passages are: (n * m, …), called pairs from here on.
        repeated = Padded(*(part.repeat_interleave(m, dim=0) for part in queries))
        pair_weights = weights.repeat_interleave(m, dim=0)
        padding = ~(repeated.inside[:, :, None] & passages.inside[:, None, :])

        # Columns (pairs, any number) of what is known about each pair.
        features = [*self._exact(repeated, passages, padding=padding, weights=pair_weights), stages]
        vectors = self.vectors[queries.ids], self.vectors[passages.ids]
        features += _match(*vectors, padding=padding, weights=pair_weights)[1]
        if self.config.recurrent:
            states = self._states(queries), self._states(passages)
            matrix, columns = _match(*states, padding=padding, weights=pair_weights)
            features += columns
            # What the query asks against what stands where it matches: (pairs, MEETING) each.
            strength = ATTENTION_SHARPNESS * matrix.amax(dim=1)  # (pairs, passage width)
            share = strength.masked_fill(~passages.inside, -torch.inf).softmax(dim=1)
            match = functional.relu(self.meet_passage((share[..., None] * states[1]).sum(dim=1)))
            asked = functional.relu(self.meet_query((weights[..., None] * states[0]).sum(dim=1)))
            asked = asked.repeat_interleave(m, dim=0)
            features.append(self.verdict(torch.cat([match, asked, match * asked], dim=1)))

        scaled = self.drop(self.scale(torch.cat(features, dim=1)))  # (pairs, features)
        logits: Tensor = self.linear(scaled) + self.curved(scaled)
        return logits.view(n, m)

    def logits(
        self, queries: TokenRows, passages: TokenRows, *, bm25: FloatArray, cosine: FloatArray
    ) -> Tensor:
        """Return (n, m) of n queries and n * m passages, with the stages' scores (n * m,)."""
        asked = Padded.of(queries, limit=self.config.query_tokens)
        candidates = Padded.of(passages, limit=self.config.passage_tokens)
        logits: Tensor = self(asked, candidates, stage_features(bm25, cosine))
        return logits

    def _exact(
        self, queries: Padded, passages: Padded, *, padding: Tensor, weights: Tensor
    ) -> list[Tensor]:
        """Return six columns: shares of tokens and of pairs found, first place, lengths, rarity."""
        same = (queries.ids[:, :, None] == passages.ids[:, None, :]) & ~padding
        pairs = (same[:, :-1, :-1] & same[:, 1:, 1:]).any(dim=2)
        places = torch.arange(passages.ids.shape[1])
        nowhere = passages.lengths[:, None]
        first = torch.where(same.any(dim=1), places, nowhere).amin(dim=1)
        rarest = (self.idf[queries.ids] * queries.inside).amax(dim=1)
        columns = [
            (same.any(dim=2) * weights).sum(dim=1),
            (pairs * (weights[:, :-1] + weights[:, 1:])).sum(dim=1),
            torch.log1p(first.float()),
            torch.log(passages.lengths.float()),
            torch.log(queries.lengths.float()),
            rarest,
        ]
        return [column[:, None] for column in columns]

    def _states(self, tokens: Padded) -> Tensor:
        """Return (n, width, 2 hidden), L2-normalised; beyond a row's length they mean nothing.

        Outside training rows are packed, which gives the same in a quarter less time.
        """
        ids, lengths, _ = tokens
        if self.training:
            inputs = self.project(self.vectors[ids])
            ahead = self.forwards(inputs)[0]
            # Each row is turned round within its own length, so that padding comes last both ways.
            places = torch.arange(ids.shape[1]).expand_as(ids)
            last = lengths[:, None] - 1
            turned = torch.where(places <= last, last - places, places)[..., None]
            back = self.backwards(torch.gather(inputs, 1, turned.expand_as(inputs)))[0]
            states = torch.cat([ahead, torch.gather(back, 1, turned.expand_as(back))], dim=-1)
        else:
            packed = pack_padded_sequence(ids, lengths, batch_first=True, enforce_sorted=False)
            inputs = self.project(self.vectors[packed.data])  # (tokens, 2 hidden)
            start = inputs.new_zeros(2, len(ids), self.config.hidden)
            weights: list[Tensor] = [*self.forwards.parameters(), *self.backwards.parameters()]
            flags = (True, 1, 0.0, False, True)  # biases, layers, dropout, training, bidirectional
            flat = torch.gru(inputs, packed.batch_sizes, start, weights, *flags)[0]
            packed = packed._replace(data=flat)
            states, _ = pad_packed_sequence(packed, batch_first=True, total_length=ids.shape[1])
        return functional.normalize(states, dim=-1)


def _match(
    queries: Tensor, passages: Tensor, *, padding: Tensor, weights: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Return cosines (pairs, query width, passage width) and the columns that sum them up.

    Args:
        queries: (n, query width, dim), L2-normalised.
        passages: (pairs, passage width, dim), L2-normalised.
        padding: (pairs, query width, passage width), where there is nothing to match.
        weights: (pairs, query width), what each token is worth.

    Returns:
        The matrix; kernel sums, then the best and the first window of each size.
    """
    n, width, dim = queries.shape
    # (n, m * passage width, dim): one product per query, however many passages it has
    joined = passages.reshape(n, -1, dim)
    cosines = queries @ joined.transpose(1, 2)
    split = cosines.view(n, width, -1, passages.shape[1]).transpose(1, 2)
    matrix = split.reshape(padding.shape).masked_fill(padding, ABSENT)
    columns = []
    for centre in KERNEL_CENTRES:
        spread = EXACT_WIDTH if centre == 1.0 else KERNEL_WIDTH
        soft = torch.exp((matrix - centre).square() / (-2 * spread**2)).sum(dim=2)
        columns.append((torch.log1p(soft) * weights).sum(dim=1, keepdim=True))
    positive = matrix.clamp_min(0)
    for size in WINDOWS:
        fitting = min(size, matrix.shape[2])
        best = functional.max_pool1d(positive, fitting, stride=size // 4, ceil_mode=True)
        covered = (best * weights[..., None]).sum(dim=1)  # (pairs, windows)
        columns += [covered.amax(dim=1, keepdim=True), covered[:, :1]]
    return matrix, columns


def stage_features(bm25: FloatArray, cosine: FloatArray) -> Tensor:
    """Return (n, 4) float32 of the scores (n,) that BM25 and the towers gave."""
    lexical, tower = torch.from_numpy(bm25), torch.from_numpy(cosine)
    columns = [lexical / 10, tower, torch.log1p(lexical.clamp_min(0)), tower.square()]
    return torch.stack(columns, dim=-1)


def scorer_arrays(scorer: nn.Module) -> dict[str, FloatArray]:
    """Return copies of all parameters and buffers that decide a score, by name."""
    return {
        name: value.detach().cpu().numpy().astype(np.float32)
        for name, value in scorer.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
