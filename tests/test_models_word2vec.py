import numpy as np
import pytest

from two_tower.models.errors import ConfigError
from two_tower.models.networks.word2vec import Word2VecConfig, learn_vectors, random_vectors
from two_tower.models.text.tokenizer import TokenRows, token_rows


def two_topics() -> TokenRows:
    """Tokens 0-4 occur together, and so do 5-9; token 10 never occurs."""
    random = np.random.default_rng(0)
    return token_rows([(random.integers(0, 5, 20) + 5 * (i % 2)).tolist() for i in range(400)])


def learn(**values: object) -> np.ndarray:
    config = Word2VecConfig(**{"epochs": 20, "sample": 0.0, "weight": 1.0, **values})  # type: ignore[arg-type]
    return learn_vectors(two_topics(), config, vocab_size=11, dim=16, seed=3)


@pytest.mark.parametrize("cbow", [False, True])
def test_tokens_that_occur_together_end_near_each_other(cbow: bool) -> None:
    vectors = learn(cbow=cbow, weight=10.0)
    cosines = vectors @ vectors.T
    within = np.concatenate([cosines[:5, :5].ravel(), cosines[5:10, 5:10].ravel()])
    assert within.min() > cosines[:5, 5:10].max()


def test_the_same_seed_gives_the_same_vectors() -> None:
    assert np.array_equal(learn(), learn())
    assert not np.array_equal(learn(), learn(cbow=True))


def test_vectors_have_length_one_and_unseen_tokens_a_random_direction() -> None:
    vectors = learn()
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(11))
    assert vectors[10] == pytest.approx(random_vectors(11, 16, seed=3)[10])


def test_no_epochs_start_from_random_directions() -> None:
    assert np.array_equal(learn(epochs=0), random_vectors(11, 16, seed=3))


def test_random_directions_keep_dot_products() -> None:
    vectors = random_vectors(500, 2000, seed=0)
    cosines = vectors @ vectors.T
    assert np.abs(cosines - np.eye(500)).max() < 6 / np.sqrt(2000)


def test_the_weight_decides_how_far_tokens_leave_their_random_direction() -> None:
    random = random_vectors(11, 16, seed=3)
    kept = [(learn(weight=weight) * random).sum(axis=1).mean() for weight in (0.0, 0.3, 1.0)]
    assert kept[0] == pytest.approx(1)
    assert kept[0] > kept[1] > 0.9 > kept[2]


@pytest.mark.parametrize(
    "values", [{"weight": -0.5}, {"epochs": -1}, {"sample": -1.0}, {"weight": float("nan")}]
)
def test_impossible_values_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"word2vec.{next(iter(values))}"):
        Word2VecConfig(**values)  # type: ignore[arg-type]
