import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.losses import cosine_triplet, in_batch_softmax, mean_pairwise_cosine

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


def test_softmax_by_hand() -> None:
    # scores: [[1, 0], [r, r]] with r = cos 45 degrees
    loss = in_batch_softmax(vectors(E0, DIAGONAL), vectors(E0, E1), temperature=0.5)
    r = math.sqrt(0.5)
    row0 = math.log(1 + math.exp((0 - 1) / 0.5))
    row1 = math.log(2)
    column0 = math.log(1 + math.exp((r - 1) / 0.5))
    column1 = math.log(1 + math.exp((0 - r) / 0.5))
    assert loss.item() == pytest.approx((row0 + row1) / 4 + (column0 + column1) / 4)


def test_one_way_softmax_by_hand() -> None:
    loss = in_batch_softmax(
        vectors(E0, DIAGONAL), vectors(E0, E1), temperature=0.5, symmetric=False
    )
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-2)) + math.log(2)) / 2)


def test_masked_cells_are_left_out_of_the_softmax() -> None:
    pair = vectors(E0, DIAGONAL), vectors(E0, E1)
    # Without cell (1, 0), row 1 has no rival and column 0 has none either.
    r = math.sqrt(0.5)
    row0, column1 = math.log(1 + math.exp(-2)), math.log(1 + math.exp(-r / 0.5))
    loss = in_batch_softmax(*pair, temperature=0.5, masked=mask((1, 0), size=2))
    assert loss.item() == pytest.approx(row0 / 4 + column1 / 4)


def test_a_duplicated_pair_is_not_punished_when_masked() -> None:
    pair = vectors(E0, E0), vectors(E0, E0)
    assert in_batch_softmax(*pair, temperature=1.0).item() == pytest.approx(math.log(2))
    both = mask((0, 1), (1, 0), size=2)
    assert in_batch_softmax(*pair, temperature=1.0, masked=both).item() == pytest.approx(0)


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
    loss = in_batch_softmax(queries, passages, temperature=0.1, masked=mask(*hidden, size=6))
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
    loss = cosine_triplet(queries, passages, margin=0.2)
    assert loss.item() == pytest.approx(sum(rows) / 3, rel=1e-5)


def test_hardest_triplet_takes_the_best_negative_of_all() -> None:
    loss = cosine_triplet(at_angles(0, 0, 0), at_angles(40, 30, 50), margin=0.2, hardest=True)
    rows = [0.2 - cos(40) + cos(30), 0.2 - cos(30) + cos(40), 0.2 - cos(50) + cos(30)]
    assert loss.item() == pytest.approx(sum(max(0, row) for row in rows) / 3, rel=1e-5)


def test_masked_cells_are_no_negatives_and_a_row_without_any_adds_nothing() -> None:
    hidden = mask((0, 1), size=2)
    loss = cosine_triplet(at_angles(0, 90), at_angles(0, 80), margin=0.2, masked=hidden)
    assert loss.item() == pytest.approx(max(0, 0.2 - cos(10) + cos(90)) / 2, abs=1e-6)
    everything = mask((0, 1), (1, 0), size=2)
    queries = at_angles(0, 90).requires_grad_()
    nothing = cosine_triplet(queries, at_angles(0, 80), margin=0.2, masked=everything)
    nothing.backward()
    assert nothing.item() == 0
    assert torch.isfinite(queries.grad).all() if queries.grad is not None else False


def test_mean_pairwise_cosine_agrees_with_a_naive_loop() -> None:
    rows = functional.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(1)))
    naive = [float(rows[i] @ rows[j]) for i in range(7) for j in range(7) if i != j]
    assert mean_pairwise_cosine(rows) == pytest.approx(np.mean(naive), abs=1e-6)
    assert mean_pairwise_cosine(rows[:1]) == 0
    assert mean_pairwise_cosine(rows[:1].repeat(9, 1)) == pytest.approx(1, abs=1e-6)
