from dataclasses import replace

import numpy as np
import pytest
import torch

from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.networks.cross_scorer import (
    KERNEL_CENTRES,
    WINDOWS,
    CrossConfig,
    CrossScorer,
    Padded,
    load_scorer,
    scorer_arrays,
    stage_features,
)
from two_tower.models.text.tokenizer import TokenRows, token_rows

VOCABULARY, DIM = 50, 12
CONFIG = CrossConfig(dim=DIM, hidden=6, dropout=0.0)
PLAIN = replace(CONFIG, recurrent=False)


def made_scorer(config: CrossConfig, *, seed: int = 0) -> CrossScorer:
    torch.manual_seed(seed)
    vectors = torch.randn(VOCABULARY, DIM)
    scorer = CrossScorer(vectors, torch.rand(VOCABULARY) + 0.5, config=config)
    torch.nn.init.normal_(scorer.curved[2].weight)
    torch.nn.init.normal_(scorer.corrections)
    return scorer.eval()


def made_rows(count: int, *, longest: int, seed: int) -> TokenRows:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest + 1, count)
    return token_rows([random.integers(0, VOCABULARY, n).tolist() for n in lengths])


def stages(count: int) -> torch.Tensor:
    random = np.random.default_rng(9)
    bm25, cosine = random.random((2, count)).astype(np.float32)
    return stage_features(bm25 * 20, cosine)


def score(scorer: CrossScorer, queries: TokenRows, passages: TokenRows) -> torch.Tensor:
    count = len(passages.offsets) - 1
    read = Padded.of(queries, limit=100), Padded.of(passages, limit=100)
    with torch.inference_mode():
        return scorer(*read, stages(count))


@pytest.mark.parametrize("config", [CONFIG, PLAIN])
def test_padding_never_changes_a_score(config: CrossConfig) -> None:
    scorer = made_scorer(config)
    queries, passages = made_rows(4, longest=9, seed=1), made_rows(12, longest=40, seed=2)
    together = score(scorer, queries, passages)
    given = stages(12)
    for i in range(12):
        query = Padded.of(queries.take(np.array([i // 3])), limit=100)
        passage = Padded.of(passages.take(np.array([i])), limit=100)
        with torch.inference_mode():
            alone = scorer(query, passage, given[i : i + 1])
        assert together[i // 3, i % 3].item() == pytest.approx(alone.item(), abs=2e-5)


def test_what_is_read_without_padding_is_what_training_reads() -> None:
    scorer = made_scorer(CONFIG)
    passages = Padded.of(made_rows(12, longest=40, seed=2), limit=30)
    with torch.inference_mode():
        quick = scorer._states(passages)
        slow = scorer.train()._states(passages)
    assert quick.shape == slow.shape == (12, 30, 2 * CONFIG.hidden)
    assert torch.allclose(quick[passages.inside], slow[passages.inside], atol=1e-6)


@pytest.mark.parametrize("config", [CONFIG, PLAIN])
def test_a_scorer_survives_its_arrays(config: CrossConfig) -> None:
    scorer = made_scorer(config)
    again = load_scorer(scorer_arrays(scorer), config)
    rows = made_rows(2, longest=5, seed=3), made_rows(6, longest=20, seed=4)
    assert torch.equal(score(scorer, *rows), score(again, *rows))


def test_arrays_that_do_not_fit_are_refused_in_one_line() -> None:
    arrays = scorer_arrays(made_scorer(PLAIN))
    with pytest.raises(BundleError, match="cross-scorer"):
        load_scorer(arrays, CONFIG)
    with pytest.raises(BundleError, match="cross-scorer"):
        load_scorer({name: a for name, a in arrays.items() if name != "idf"}, PLAIN)
    with pytest.raises(BundleError, match="cross-scorer"):
        load_scorer({**arrays, "odd": np.zeros(1, np.float32)}, PLAIN)


def test_features_are_what_a_loop_over_the_tokens_counts() -> None:
    scorer = made_scorer(PLAIN)
    query, passage = [3, 7, 9], [7, 9, 4, 3, 3, 8, 1, 2, 5, 6, 11]
    seen: list[torch.Tensor] = []
    scorer.scale.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    score(scorer, token_rows([query]), token_rows([passage]))
    found = seen[0][0].tolist()

    factor = torch.exp(scorer.corrections.detach()[query].clamp(-2, 2))
    weights = scorer.idf[query] * factor
    weights = (weights / weights.sum()).tolist()
    cosines = (scorer.vectors[query] @ scorer.vectors[passage].T).numpy()
    exact = [
        1.0,  # all three tokens occur
        weights[1] + weights[2],  # 7 9 stand side by side
        0.0,  # the first match is at place 0: ln(1 + 0)
        np.log(11),
        np.log(3),
        max(scorer.idf[query].tolist()),
    ]
    kernels = []
    for centre in KERNEL_CENTRES:
        width = 0.001 if centre == 1.0 else 0.1
        soft = np.exp(-((cosines - centre) ** 2) / (2 * width**2)).sum(axis=1)
        kernels.append(np.log1p(soft) @ weights)
    windows = []
    for size in WINDOWS:
        starts = range(0, max(1, len(passage) - size + size // 4), size // 4)
        covered = [
            np.maximum(cosines[:, start : start + size], 0).max(axis=1) @ weights
            for start in starts
        ]
        windows += [max(covered), covered[0]]
    expected = [*exact, *stages(1)[0].tolist(), *kernels, *windows]
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_query_that_shares_nothing_scores_finitely() -> None:
    scorer = made_scorer(CONFIG)
    found = score(scorer, token_rows([[1]]), token_rows([[2], [3, 4]]))
    assert torch.isfinite(found).all()


def test_an_impossible_configuration_says_what_is_expected() -> None:
    for wrong in (
        {"epochs": -1},
        {"hidden": 0},
        {"pool": 3},
        {"dropout": 1.0},
        {"learning_rate": 0.0},
        {"teacher_weight": 1.5},
        {"teacher_temperature": 0.0},
    ):
        with pytest.raises(ConfigError, match=rf"cross\.{next(iter(wrong))} is .*, expected"):
            replace(CONFIG, **wrong)
