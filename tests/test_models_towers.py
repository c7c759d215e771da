import math

import numpy as np
import pytest
import torch
from torch import nn

from two_tower.models.bundle.encoders import MeanEncoder
from two_tower.models.config import from_mapping
from two_tower.models.errors import ConfigError
from two_tower.models.networks.tokens import Tokens
from two_tower.models.networks.tower_config import TowerConfig
from two_tower.models.networks.towers import (
    MeanTower,
    TwoTower,
    choose_device,
    encode_rows,
    token_idf,
)
from two_tower.models.text.tokenizer import token_rows
from two_tower.models.vectors import normalized

CPU = torch.device("cpu")
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
LISTS = [[1, 2, 2], [0], [5, 4, 3, 2, 1], [3]]


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


@pytest.fixture
def weights() -> np.ndarray:
    return np.array([0.5, 1, 2, 0.1, 3, 1], dtype=np.float32)


def naive_mean(ids: list[int], vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    total = np.zeros(vectors.shape[1])
    for token in ids:
        total += float(weights[token]) * vectors[token].astype(float)
    return total / math.sqrt(sum(value * value for value in total))


@pytest.mark.parametrize("device", DEVICES)
def test_tower_and_encoder_agree_with_a_naive_loop(
    vectors: np.ndarray, weights: np.ndarray, device: str
) -> None:
    expected = np.stack([naive_mean(ids, vectors, weights) for ids in LISTS])
    rows = token_rows(LISTS)
    assert MeanEncoder(vectors, weights).encode(rows) == pytest.approx(expected, abs=1e-6)
    tower = MeanTower(vectors, weights).to(device)
    assert encode_rows(tower, rows).cpu().numpy() == pytest.approx(expected, abs=1e-6)


def test_a_row_encodes_the_same_alone_and_in_a_batch(
    vectors: np.ndarray, weights: np.ndarray
) -> None:
    encoder = MeanEncoder(vectors, weights)
    batch = encoder.encode(token_rows(LISTS))
    assert batch.dtype == np.float32
    for row, ids in enumerate(LISTS):
        assert np.array_equal(encoder.encode(token_rows([ids]))[0], batch[row])


def test_encoding_in_pieces_changes_nothing(
    vectors: np.ndarray, weights: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower, rows = MeanTower(vectors, weights), token_rows(LISTS)
    whole = encode_rows(tower, rows)
    monkeypatch.setattr("two_tower.models.networks.towers.ENCODE_BATCH", 3)
    assert torch.equal(encode_rows(tower, rows), whole)


def test_a_sum_of_zero_is_still_a_valid_vector() -> None:
    opposite = np.array([[1, 2], [-1, -2]], dtype=np.float32)
    encoder = MeanEncoder(opposite, np.ones(2, dtype=np.float32))
    for rows in (token_rows([[0, 1]]), token_rows([[0, 1], [0]])):
        assert np.linalg.norm(encoder.encode(rows), axis=1) == pytest.approx(1)
    assert normalized(np.zeros((1, 3), dtype=np.float32)).tolist() == [[1, 0, 0]]


def test_gradients_agree_with_a_plain_formula(vectors: np.ndarray, weights: np.ndarray) -> None:
    tower = MeanTower(vectors, weights)
    target = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    (tower(Tokens.of(token_rows(LISTS), CPU)) * target).sum().backward()
    plain_vectors = torch.tensor(vectors, requires_grad=True)
    plain_weights = torch.tensor(weights, requires_grad=True)
    for ids, goal in zip(LISTS, target, strict=True):
        total = (plain_vectors[ids] * plain_weights[ids][:, None]).sum(dim=0)
        (total / total.norm() @ goal).backward()
    assert plain_vectors.grad is not None
    assert plain_weights.grad is not None
    assert torch.allclose(tower.vectors.grad, plain_vectors.grad, atol=1e-6)
    assert torch.allclose(tower.weights.grad, plain_weights.grad, atol=1e-6)


def test_shared_towers_are_one_and_separate_ones_are_two(
    vectors: np.ndarray, weights: np.ndarray
) -> None:
    shared = TwoTower.start(TowerConfig(dim=4), vectors=vectors, weights=weights)
    assert shared.query is shared.passage
    assert sorted(shared.arrays()) == ["query.vectors", "query.weights"]
    separate = TwoTower.start(TowerConfig(dim=4, shared=False), vectors=vectors, weights=weights)
    nn.init.zeros_(separate.query.vectors)
    assert separate.passage.vectors.detach().numpy() == pytest.approx(vectors)
    assert len(separate.arrays()) == 4


def test_arrays_restore_towers(vectors: np.ndarray, weights: np.ndarray) -> None:
    towers = TwoTower.start(TowerConfig(dim=4, shared=False), vectors=vectors, weights=weights)
    kept = towers.arrays()
    with torch.no_grad():
        towers.query.vectors.add_(1)
    assert not np.array_equal(towers.arrays()["query.vectors"], kept["query.vectors"])
    towers.load_arrays(kept)
    for name, array in towers.arrays().items():
        assert np.array_equal(array, kept[name])


def test_idf_by_hand() -> None:
    rows = token_rows([[0, 0, 1], [0, 2], [0]])
    # Token 0 is in 3 of 3 rows, tokens 1 and 2 in 1, token 3 in none.
    idf = [math.log(1 + (3 - n + 0.5) / (n + 0.5)) for n in (3, 1, 1, 0)]
    expected = np.array(idf) / np.mean(idf)
    assert token_idf(rows, vocab_size=4) == pytest.approx(expected)


def test_devices() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="expected auto, cpu or cuda"):
        choose_device("tpu")
    with pytest.raises(ConfigError, match="use --device auto"):
        choose_device("cuda:99")


def test_impossible_values_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"tower\.kind is 'gpt', expected 'mean' or"):
        from_mapping(TowerConfig, {"kind": "gpt"}, where="tower.")
    with pytest.raises(ConfigError, match=r"tower\.dim"):
        TowerConfig(dim=0)


def test_gradients_are_the_same_every_time() -> None:
    """Many threads adding to one weight must not add in another order each time."""
    random = np.random.default_rng(0)
    rows = token_rows(random.integers(0, 50, size=(2000, 100)).tolist())
    tokens = Tokens.of(rows, torch.device("cpu"))
    vectors = random.standard_normal((50, 32)).astype(np.float32)
    tower = MeanTower(vectors, np.ones(50, dtype=np.float32))
    pull = torch.from_numpy(random.standard_normal((2000, 32)).astype(np.float32))
    seen = set()
    for _ in range(20):
        tower.zero_grad()
        (tower(tokens) * pull).sum().backward()
        seen.add((tower.vectors.grad.numpy().tobytes(), tower.weights.grad.numpy().tobytes()))
    assert len(seen) == 1
