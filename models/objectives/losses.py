"""Losses: pure functions of the two towers' vectors. Row i of queries and passages is a pair.

Passages beyond the n positives are hard negatives: further columns for every query.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from two_tower.models.errors import TrainingError


class Encoded(NamedTuple):
    """A batch in vectors: n queries, their n positives and m hard negatives of each.

    Attributes:
        queries: (n, dim) float32, L2-normalised.
        passages: (n * (1 + m), dim) float32, L2-normalised: the positives first, then hard
            negative j of query i at row n + i * m + j.
        masked: (n, n * (1 + m)) bool, the cells other than a query's own positive where the
            passage answers the query as well: they are left out, not punished.
        margins: (n, m) float32, as in `Batch`.
        similarities: (n, n * (1 + m)) float32, as in `Batch`.
        targets: (n, dim) float32, as in `Batch`.
    """

    queries: Tensor
    passages: Tensor
    masked: Tensor
    margins: Tensor | None = None
    similarities: Tensor | None = None
    targets: Tensor | None = None


Loss = Callable[[Encoded], Tensor]
"""A batch in vectors -> scalar."""


def in_batch_softmax(encoded: Encoded, *, temperature: float, symmetric: bool = True) -> Tensor:
    """Cross-entropy of finding one's own passage among the batch's, hard negatives included.

    L = mean_i -log( exp(q_i.p_i / T) / sum_j exp(q_i.p_j / T) ); the symmetric form averages it
    with the same over the columns of the positives (each positive finds its query). One-way:
    Henderson et al., "Efficient Natural Language Response Suggestion for Smart Reply", 2017,
    arXiv:1705.00652. Symmetric: Radford et al., "CLIP", 2021, arXiv:2103.00020. Hard negatives
    as columns: Karpukhin et al., "Dense Passage Retrieval", 2020, arXiv:2004.04906.

    A smaller temperature T looks harder at the nearest negatives.
    """
    scores = encoded.queries @ encoded.passages.T / temperature  # (n, n * (1 + m))
    scores = scores.masked_fill(encoded.masked, -torch.inf)
    count = len(scores)
    target = torch.arange(count, device=scores.device)
    loss = functional.cross_entropy(scores, target)
    if not symmetric:
        return loss
    return (loss + functional.cross_entropy(scores[:, :count].T, target)) / 2


def cosine_triplet(encoded: Encoded, *, margin: float, hardest: bool = False) -> Tensor:
    """Hinge on the gap between the positive's and one negative's cosine.

    L = mean_i max(0, margin - cos(q_i, p_i) + cos(q_i, n_i)). n_i comes from all columns: the
    best-scoring negative that is still below the positive (semi-hard), else the worst-scoring
    one; with `hardest` the best-scoring of all. A row without any negative adds 0.
    Schroff et al., "FaceNet", 2015, arXiv:1503.03832.
    """
    scores = encoded.queries @ encoded.passages.T
    positive = scores.diagonal()
    own = torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)
    allowed = ~own & ~encoded.masked
    if hardest:
        negative = scores.masked_fill(~allowed, -torch.inf).amax(dim=1)  # (n,)
    else:
        below = allowed & (scores < positive[:, None])
        best_below = scores.masked_fill(~below, -torch.inf).amax(dim=1)
        worst = scores.masked_fill(~allowed, torch.inf).amin(dim=1)
        negative = torch.where(below.any(dim=1), best_below, worst)
    hinge = functional.relu(margin - positive + negative)
    return torch.where(allowed.any(dim=1), hinge, 0.0).mean()


def margin_mse(encoded: Encoded, *, temperature: float) -> Tensor:
    """Squared difference between the student's and the teacher's margins.

    L = mean_ij ( (q_i.p_i - q_i.n_ij) / T - (t(q_i, p_i) - t(q_i, n_ij)) )^2 over the hard
    negatives n_ij whose teacher scores t are known. Hofstätter et al., "Improving Efficient
    Neural Ranking Models with Cross-Architecture Knowledge Distillation", 2020,
    arXiv:2010.02666; the temperature T is ours: the paper's dot products are unbounded, cosines
    are not.

    Raises:
        TrainingError: there are no margins.
    """
    if encoded.margins is None:
        raise TrainingError(
            "there are no teacher scores to learn margins from; mine with --teacher and train "
            "with --negatives FILE and labelled.hard_negatives of 1 or more"
        )
    count, per_query = encoded.margins.shape
    positives = encoded.passages[:count]
    negatives = encoded.passages[count:].view(count, per_query, -1)  # (n, m, dim)
    own = (encoded.queries * positives).sum(dim=1, keepdim=True)
    others = (encoded.queries[:, None] * negatives).sum(dim=2)
    known = encoded.margins.isfinite()
    error = (own - others) / temperature - encoded.margins.nan_to_num()
    return (error.square() * known).sum() / known.sum().clamp(min=1)


def matryoshka_loss(loss: Loss, dims: Sequence[int]) -> Loss:
    """Return the mean of `loss` over the full vectors and their first `dims` numbers.

    Truncated vectors are normalised again, so that each length is good on its own.
    Kusupati et al., "Matryoshka Representation Learning", 2022, arXiv:2205.13147.
    """

    def total(encoded: Encoded) -> Tensor:
        losses = [loss(encoded)]
        for dim in dims:
            queries = functional.normalize(encoded.queries[:, :dim], dim=1)
            passages = functional.normalize(encoded.passages[:, :dim], dim=1)
            losses.append(loss(encoded._replace(queries=queries, passages=passages)))
        return torch.stack(losses).mean()

    return total if dims else loss


def mean_pairwise_cosine(vectors: Tensor) -> float:
    """Return the mean cosine of different rows of (n, dim) L2-normalised; 0 for one row.

    sum over i != j of v_i.v_j = |sum_i v_i|^2 - n.
    """
    n = len(vectors)
    if n < 2:
        return 0.0
    total = vectors.double().sum(dim=0)
    return float((total @ total - n) / (n * (n - 1)))
