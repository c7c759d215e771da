from functools import partial

import numpy as np
import pytest

from two_tower.models.errors import ConfigError
from two_tower.models.examples.pairs import PassageSampler
from two_tower.models.objectives.inverse_cloze import PretrainConfig, cut_spans
from two_tower.models.text.tokenizer import TokenRows, token_rows


def passages(count: int = 200) -> TokenRows:
    """Rows of 2 to 30 tokens, all ids different, so that each token says where it comes from."""
    lengths = np.random.default_rng(0).integers(2, 31, count)
    start = np.concatenate([[0], np.cumsum(lengths)])
    return token_rows([list(range(start[i], start[i + 1])) for i in range(count)])


def as_lists(rows: TokenRows) -> list[list[int]]:
    return [r.tolist() for r in np.split(rows.ids, rows.offsets[1:-1])]


def span_sampler(rows: TokenRows, config: PretrainConfig) -> PassageSampler:
    return PassageSampler(rows, partial(cut_spans, config=config))


def sample(config: PretrainConfig, seed: int = 0) -> list[tuple[list[int], list[int], list[int]]]:
    """(span, rest or whole, original) of every passage."""
    rows = passages()
    sampler = span_sampler(rows, config)
    batch = sampler.batch(np.arange(sampler.size), np.random.default_rng(seed))
    assert len(batch.masked) == 0
    return list(zip(as_lists(batch.queries), as_lists(batch.passages), as_lists(rows), strict=True))


def test_a_span_is_contiguous_and_within_its_bounds() -> None:
    for span, _, original in sample(PretrainConfig(min_span=3, max_span=6)):
        assert span == list(range(span[0], span[0] + len(span)))
        assert set(span) <= set(original)
        assert min(3, len(original) // 2) <= len(span) <= min(6, len(original) // 2)


def test_the_passage_is_what_is_left() -> None:
    for span, rest, original in sample(PretrainConfig(keep_rate=0)):
        assert sorted(span + rest) == original
        assert rest


def test_the_span_stays_as_often_as_asked() -> None:
    assert all(rest == original for _, rest, original in sample(PretrainConfig(keep_rate=1)))
    kept = sum(rest == original for _, rest, original in sample(PretrainConfig(keep_rate=0.5)))
    # 200 draws: mean 100, standard deviation 7.1
    assert 65 < kept < 135


def test_every_place_of_a_passage_can_be_the_span() -> None:
    sampler = span_sampler(token_rows([list(range(8))]), PretrainConfig(min_span=2, max_span=2))
    rng = np.random.default_rng(0)
    starts = [sampler.batch(np.array([0]), rng).queries.ids[0] for _ in range(200)]
    assert set(starts) == set(range(7))


def test_spans_depend_on_the_generator_alone() -> None:
    assert sample(PretrainConfig(), seed=1) == sample(PretrainConfig(), seed=1)
    assert sample(PretrainConfig(), seed=1) != sample(PretrainConfig(), seed=2)


def test_passages_of_one_token_are_left_out() -> None:
    sampler = span_sampler(token_rows([[1], [2, 3], [4]]), PretrainConfig(keep_rate=0))
    assert sampler.size == 1
    batch = sampler.batch(np.array([0]), np.random.default_rng(0))
    assert sorted([*batch.queries.ids, *batch.passages.ids]) == [2, 3]


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": -1},
        {"batch_size": 1},
        {"min_span": 0},
        {"min_span": 9, "max_span": 8},
        {"keep_rate": 1.5},
        {"temperature": 0.0},
        {"learning_rate": -1.0},
    ],
)
def test_impossible_values_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"pretrain.{next(iter(values))}"):
        PretrainConfig(**values)  # type: ignore[arg-type]
