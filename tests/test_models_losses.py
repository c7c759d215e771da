import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from two_tower.models.errors import TrainingError
from two_tower.models.objectives.losses import (
    Encoded,
    cosine_triplet,
    in_batch_softmax,
    margin_mse,
    matryoshka_loss,
    mean_pairwise_cosine,
)

E0 = (1.0, 0.0)
E1 = (0.0, 1.0)
DIAGONAL = (math.sqrt(0.5), math.sqrt(0.5))


def vectors(*rows: tuple[float, float]) -> Tensor:
    return torch.tensor(rows)


def mask(*cells: tuple[int, int], size: int) -> Tensor:
    result = torch.zeros(size, size, dtype=torch.bool)
    for i, j in cells:
        result[i, j] = True
    return result


def encoded(
    queries: Tensor, passages: Tensor, masked: Tensor | None = None, margins: Tensor | None = None
) -> Encoded:
    if masked is None:
        masked = torch.zeros(len(queries), len(passages), dtype=torch.bool)
    return Encoded(queries, passages, masked, margins)


def test_softmax_by_hand() -> None:
    # scores: [[1, 0], [r, r]] with r = cos 45 degrees
    loss = in_batch_softmax(encoded(vectors(E0, DIAGONAL), vectors(E0, E1)), temperature=0.5)
    r = math.sqrt(0.5)
    row0 = math.log(1 + math.exp((0 - 1) / 0.5))
    row1 = math.log(2)
    column0 = math.log(1 + math.exp((r - 1) / 0.5))
    column1 = math.log(1 + math.exp((0 - r) / 0.5))
    assert loss.item() == pytest.approx((row0 + row1) / 4 + (column0 + column1) / 4)


def test_one_way_softmax_by_hand() -> None:
    loss = in_batch_softmax(
        encoded(vectors(E0, DIAGONAL), vectors(E0, E1)), temperature=0.5, symmetric=False
    )
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-2)) + math.log(2)) / 2)


def test_masked_cells_are_left_out_of_the_softmax() -> None:
    pair = vectors(E0, DIAGONAL), vectors(E0, E1)
    # Without cell (1, 0), row 1 has no rival and column 0 has none either.
    r = math.sqrt(0.5)
    row0, column1 = math.log(1 + math.exp(-2)), math.log(1 + math.exp(-r / 0.5))
    loss = in_batch_softmax(encoded(*pair, mask((1, 0), size=2)), temperature=0.5)
    assert loss.item() == pytest.approx(row0 / 4 + column1 / 4)


def test_a_duplicated_pair_is_not_punished_when_masked() -> None:
    pair = vectors(E0, E0), vectors(E0, E0)
    assert in_batch_softmax(encoded(*pair), temperature=1.0).item() == pytest.approx(math.log(2))
    both = mask((0, 1), (1, 0), size=2)
    assert in_batch_softmax(encoded(*pair, both), temperature=1.0).item() == pytest.approx(0)


def test_softmax_agrees_with_a_naive_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, passages = (
        functional.normalize(torch.randn(6, 4, generator=generator), dim=1) for _ in range(2)
    )
    hidden = {(0, 3), (5, 1)}
    expected = 0.0
    for i in range(6):
        row = [float(queries[i] @ passages[j]) / 0.1 for j in range(6) if (i, j) not in hidden]
        column = [float(queries[j] @ passages[i]) / 0.1 for j in range(6) if (j, i) not in hidden]
        positive = float(queries[i] @ passages[i]) / 0.1
        expected += (math.log(sum(map(math.exp, row))) - positive) / 12
        expected += (math.log(sum(map(math.exp, column))) - positive) / 12
    loss = in_batch_softmax(encoded(queries, passages, mask(*hidden, size=6)), temperature=0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def at_angles(*degrees: float) -> Tensor:
    return vectors(*((math.cos(math.radians(d)), math.sin(math.radians(d))) for d in degrees))


def cos(degrees: float) -> float:
    return math.cos(math.radians(degrees))


def test_triplet_takes_the_best_negative_below_the_positive() -> None:
    queries = at_angles(0, 0, 0)
    passages = at_angles(40, 30, 50)
    # Row 0: positive 40; below it only 50. Row 1: positive 30; best below is 40.
    # Row 2: positive 50; nothing is below, so the worst of the others, 40.
    rows = [
        max(0, 0.2 - cos(40) + cos(50)),
        max(0, 0.2 - cos(30) + cos(40)),
        max(0, 0.2 - cos(50) + cos(40)),
    ]
    loss = cosine_triplet(encoded(queries, passages), margin=0.2)
    assert loss.item() == pytest.approx(sum(rows) / 3, rel=1e-5)


def test_hardest_triplet_takes_the_best_negative_of_all() -> None:
    loss = cosine_triplet(
        encoded(at_angles(0, 0, 0), at_angles(40, 30, 50)), margin=0.2, hardest=True
    )
    rows = [0.2 - cos(40) + cos(30), 0.2 - cos(30) + cos(40), 0.2 - cos(50) + cos(30)]
    assert loss.item() == pytest.approx(sum(max(0, row) for row in rows) / 3, rel=1e-5)


def test_masked_cells_are_no_negatives_and_a_row_without_any_adds_nothing() -> None:
    hidden = mask((0, 1), size=2)
    loss = cosine_triplet(encoded(at_angles(0, 90), at_angles(0, 80), hidden), margin=0.2)
    assert loss.item() == pytest.approx(max(0, 0.2 - cos(10) + cos(90)) / 2, abs=1e-6)
    everything = mask((0, 1), (1, 0), size=2)
    queries = at_angles(0, 90).requires_grad_()
    nothing = cosine_triplet(encoded(queries, at_angles(0, 80), everything), margin=0.2)
    nothing.backward()
    assert nothing.item() == 0
    assert torch.isfinite(queries.grad).all() if queries.grad is not None else False


def random_batch(count: int, per_query: int, dim: int = 4) -> Encoded:
    generator = torch.Generator().manual_seed(0)
    sizes = (count, count * (1 + per_query))
    queries, passages = (
        functional.normalize(torch.randn(size, dim, generator=generator), dim=1) for size in sizes
    )
    masked = torch.rand(count, sizes[1], generator=generator) < 0.2
    masked[range(count), range(count)] = False
    margins = torch.randn(count, per_query, generator=generator)
    margins[0, 0] = torch.nan
    return Encoded(queries, passages, masked, margins)


def test_softmax_with_hard_negatives_agrees_with_a_naive_loop() -> None:
    batch = random_batch(5, 2)
    scores = (batch.queries.double() @ batch.passages.double().T / 0.1).tolist()
    rows = columns = 0.0
    for i in range(5):
        row = [scores[i][j] for j in range(15) if not batch.masked[i, j]]
        column = [scores[k][i] for k in range(5) if not batch.masked[k, i]]
        rows += (math.log(sum(map(math.exp, row))) - scores[i][i]) / 5
        columns += (math.log(sum(map(math.exp, column))) - scores[i][i]) / 5
    one_way = in_batch_softmax(batch, temperature=0.1, symmetric=False)
    assert one_way.item() == pytest.approx(rows, rel=1e-5)
    both = in_batch_softmax(batch, temperature=0.1)
    assert both.item() == pytest.approx((rows + columns) / 2, rel=1e-5)


def test_triplet_looks_at_hard_negatives_too() -> None:
    queries, passages = at_angles(0, 90), at_angles(30, 80, 35, 89)
    # Row 0: positive 30, best below it is its own hard negative at 35.
    # Row 1: positive at 10 from 90; the hard negative of row 1 is nearer (1), so the best below
    # it is row 0's at 55.
    rows = [0.2 - cos(30) + cos(35), max(0, 0.2 - cos(10) + cos(55))]
    loss = cosine_triplet(encoded(queries, passages), margin=0.2)
    assert loss.item() == pytest.approx(sum(rows) / 2, rel=1e-5)
    hidden = torch.zeros(2, 4, dtype=torch.bool)
    hidden[0, 2] = True
    rows[0] = max(0, 0.2 - cos(30) + cos(80))
    loss = cosine_triplet(encoded(queries, passages, hidden), margin=0.2)
    assert loss.item() == pytest.approx(sum(rows) / 2, abs=1e-6)


def test_margin_mse_agrees_with_a_naive_loop() -> None:
    batch = random_batch(5, 2)
    assert batch.margins is not None
    errors = []
    for i in range(5):
        for j in range(2):
            student = batch.queries[i] @ (batch.passages[i] - batch.passages[5 + 2 * i + j])
            errors.append((float(student) / 0.5 - float(batch.margins[i, j])) ** 2)
    loss = margin_mse(batch, temperature=0.5)
    assert loss.item() == pytest.approx(np.nanmean(errors), rel=1e-5)
    assert len([e for e in errors if not math.isnan(e)]) == 9
    nothing = batch._replace(margins=torch.full((5, 2), torch.nan))
    assert margin_mse(nothing, temperature=0.5).item() == 0
    with pytest.raises(TrainingError, match="no teacher scores"):
        margin_mse(batch._replace(margins=None), temperature=0.5)


def test_matryoshka_keeps_margins() -> None:
    batch = random_batch(5, 2)

    def distilled(of: Encoded) -> Tensor:
        return margin_mse(of, temperature=0.5)

    short = batch._replace(
        queries=functional.normalize(batch.queries[:, :2], dim=1),
        passages=functional.normalize(batch.passages[:, :2], dim=1),
    )
    expected = (distilled(batch) + distilled(short)) / 2
    loss = matryoshka_loss(distilled, (2,))(batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_mean_pairwise_cosine_agrees_with_a_naive_loop() -> None:
    rows = functional.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(1)))
    naive = [float(rows[i] @ rows[j]) for i in range(7) for j in range(7) if i != j]
    assert mean_pairwise_cosine(rows) == pytest.approx(np.mean(naive), abs=1e-6)
    assert mean_pairwise_cosine(rows[:1]) == 0
    assert mean_pairwise_cosine(rows[:1].repeat(9, 1)) == pytest.approx(1, abs=1e-6)
