"""Losses: pure functions of the two towers' vectors. Row i of queries and passages is a pair.

`masked` (n, n) bool marks off-diagonal cells where passage j answers query i as well; they are
left out, not punished.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(queries, passages, masked) -> scalar."""


def in_batch_softmax(
    queries: Tensor,
    passages: Tensor,
    *,
    temperature: float,
    masked: Tensor | None = None,
    symmetric: bool = True,
) -> Tensor:
    """Cross-entropy of finding one's own passage among the batch's.

    L = mean_i -log( exp(q_i.p_i / T) / sum_j exp(q_i.p_j / T) ); the symmetric form averages it
    with the same over columns (each passage finds its query). One-way: Henderson et al.,
    "Efficient Natural Language Response Suggestion for Smart Reply", 2017, arXiv:1705.00652.
    Symmetric: Radford et al., "CLIP", 2021, arXiv:2103.00020.

    Args:
        queries: (n, dim) float32, L2-normalised.
        passages: (n, dim) float32, L2-normalised.
        temperature: T above; smaller looks harder at the nearest negatives.
        masked: (n, n) bool, see the module.
        symmetric: add the columns' half.
    """
    scores = queries @ passages.T / temperature
    if masked is not None:
        scores = scores.masked_fill(masked, -torch.inf)
    target = torch.arange(len(scores), device=scores.device)
    loss = functional.cross_entropy(scores, target)
    if not symmetric:
        return loss
    return (loss + functional.cross_entropy(scores.T, target)) / 2


def cosine_triplet(
    queries: Tensor,
    passages: Tensor,
    *,
    margin: float,
    masked: Tensor | None = None,
    hardest: bool = False,
) -> Tensor:
    """Hinge on the gap between the positive's and one in-batch negative's cosine.

    L = mean_i max(0, margin - cos(q_i, p_i) + cos(q_i, n_i)). n_i is the best-scoring negative
    that is still below the positive (semi-hard), else the worst-scoring one; with `hardest` the
    best-scoring of all. A row without any negative adds 0.
    Schroff et al., "FaceNet", 2015, arXiv:1503.03832.

    Args:
        queries: (n, dim) float32, L2-normalised.
        passages: (n, dim) float32, L2-normalised.
        margin: the gap to reach, in cosine.
        masked: (n, n) bool, see the module.
        hardest: take the best-scoring negative even above the positive.
    """
    scores = queries @ passages.T
    positive = scores.diagonal()
    allowed = ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    if masked is not None:
        allowed &= ~masked
    negative = _chosen_negatives(scores, positive, allowed=allowed, hardest=hardest)
    hinge = functional.relu(margin - positive + negative)
    return torch.where(allowed.any(dim=1), hinge, 0.0).mean()


def _chosen_negatives(
    scores: Tensor, positive: Tensor, *, allowed: Tensor, hardest: bool
) -> Tensor:
    if hardest:
        return scores.masked_fill(~allowed, -torch.inf).amax(dim=1)
    below = allowed & (scores < positive[:, None])
    best_below = scores.masked_fill(~below, -torch.inf).amax(dim=1)
    worst = scores.masked_fill(~allowed, torch.inf).amin(dim=1)
    return torch.where(below.any(dim=1), best_below, worst)


def softmax_loss(*, temperature: float, symmetric: bool = True) -> Loss:
    """Return the in-batch softmax with its parameters set."""
    return lambda queries, passages, masked: in_batch_softmax(
        queries, passages, temperature=temperature, masked=masked, symmetric=symmetric
    )


def matryoshka_loss(loss: Loss, dims: Sequence[int]) -> Loss:
    """Return the mean of `loss` over the full vectors and their first `dims` numbers.

    Truncated vectors are normalised again, so that each length is good on its own.
    Kusupati et al., "Matryoshka Representation Learning", 2022, arXiv:2205.13147.
    """

    def total(queries: Tensor, passages: Tensor, masked: Tensor) -> Tensor:
        losses = [loss(queries, passages, masked)]
        for dim in dims:
            short_queries = functional.normalize(queries[:, :dim], dim=1)
            short_passages = functional.normalize(passages[:, :dim], dim=1)
            losses.append(loss(short_queries, short_passages, masked))
        return torch.stack(losses).mean()

    return total if dims else loss


def mean_pairwise_cosine(vectors: Tensor) -> float:
    """Mean cosine over all pairs of different rows of (n, dim) L2-normalised; 0 for one row.

    sum over i != j of v_i.v_j = |sum_i v_i|^2 - n.
    """
    n = len(vectors)
    if n < 2:
        return 0.0
    total = vectors.double().sum(dim=0)
    return float((total @ total - n) / (n * (n - 1)))
