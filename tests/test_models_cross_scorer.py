from dataclasses import replace

import numpy as np
import pytest
import torch

from two_tower.models.bundle.cross_scoring import CrossReader
from two_tower.models.bundle.recurrence import SIDE_BY_SIDE
from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.networks.cross_config import KERNEL_CENTRES, WINDOWS, CrossConfig
from two_tower.models.networks.cross_scorer import (
    CrossScorer,
    Padded,
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
    for values, start in ((scorer.scale.running_mean, 0.0), (scorer.scale.running_var, 0.5)):
        assert values is not None
        torch.nn.init.uniform_(values, start, start + 1)
    torch.nn.init.normal_(scorer.scale.weight)
    torch.nn.init.normal_(scorer.scale.bias)
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


def reader(scorer: CrossScorer, config: CrossConfig) -> CrossReader:
    return CrossReader(scorer_arrays(scorer), config, vocab_size=VOCABULARY)


TEXTS = {
    "many": (made_rows(1, longest=9, seed=1), made_rows(60, longest=40, seed=2)),
    "one candidate": (made_rows(1, longest=9, seed=3), made_rows(1, longest=40, seed=4)),
    "single tokens": (token_rows([[7]]), token_rows([[7], [8], [7, 7], [8, 7, 8]])),
    "empty texts": (token_rows([[]]), token_rows([[], [3], []])),
    "a repeating query": (token_rows([[5, 5, 6, 5]]), token_rows([[5, 5, 6, 5], [6, 5, 5]])),
    "longer than the limits": (made_rows(1, longest=90, seed=5), made_rows(9, longest=300, seed=6)),
    "more than are read at once": (
        made_rows(1, longest=4, seed=7),
        made_rows(200, longest=30, seed=8),
    ),
}


@pytest.mark.parametrize("texts", TEXTS)
@pytest.mark.parametrize("config", [CONFIG, PLAIN])
def test_without_torch_a_scorer_gives_the_same_logits(config: CrossConfig, texts: str) -> None:
    config = replace(config, query_tokens=8, passage_tokens=60)
    query, passages = TEXTS[texts]
    count = len(passages.lengths)
    bm25, cosine = np.random.default_rng(9).random((2, count)).astype(np.float32)
    for seed in range(3):
        scorer = made_scorer(config, seed=seed)
        read = Padded.of(query, limit=8), Padded.of(passages, limit=60)
        with torch.inference_mode():
            expected = scorer(*read, stage_features(bm25 * 20, cosine))[0].numpy()
        found = reader(scorer, config).score(
            query, passages, counts=[count], bm25=bm25 * 20, cosine=cosine
        )
        assert found.dtype == np.float32
        assert found == pytest.approx(expected, abs=1e-5)
        assert np.ptp(expected) > 0.01 or count == 1


@pytest.mark.parametrize("config", [CONFIG, PLAIN])
@pytest.mark.parametrize(
    "counts",
    [
        [3, 1, 7],
        [0, 5, 0, 2, 0],
        [SIDE_BY_SIDE - 2, 5, 60, 70],
        [2 * SIDE_BY_SIDE, 1],
        [0, 0, SIDE_BY_SIDE, 0, SIDE_BY_SIDE, 0],
    ],
)
def test_queries_that_are_read_together_have_the_logits_of_each_alone(
    config: CrossConfig, counts: list[int]
) -> None:
    scorer = reader(made_scorer(config), config)
    queries = made_rows(len(counts), longest=9, seed=1)
    passages = made_rows(sum(counts), longest=40, seed=2)
    bm25, cosine = np.random.default_rng(3).random((2, sum(counts))).astype(np.float32)
    together = scorer.score(queries, passages, counts=counts, bm25=bm25 * 20, cosine=cosine)
    assert together.shape == (sum(counts),)
    row = 0
    for number, count in enumerate(counts):
        if count:
            own = slice(row, row + count)
            alone = scorer.score(
                queries.part(number, number + 1),
                passages.part(row, row + count),
                counts=[count],
                bm25=bm25[own] * 20,
                cosine=cosine[own],
            )
            assert together[own] == pytest.approx(alone, abs=1e-5)
        row += count


def test_arrays_that_do_not_fit_are_refused_in_one_line() -> None:
    arrays = scorer_arrays(made_scorer(CONFIG))
    for config, changed, message in (
        (PLAIN, arrays, r"scale\.weight \(found \(42,\), expected \(22,\)\)"),
        (replace(CONFIG, hidden=7), arrays, r"forwards\.weight_ih_l0 \(found \(18, 12\)"),
        (CONFIG, {**arrays, "odd": np.zeros(1, np.float32)}, r"odd \(.*expected nothing"),
        (CONFIG, {**arrays, "vectors": arrays["idf"]}, r"vectors \(found \(50,\)"),
        (CONFIG, {name: a for name, a in arrays.items() if name != "idf"}, r"idf \(found nothing"),
        (CONFIG, {}, r"vectors \(found nothing, expected \(50, 12\)\)"),
    ):
        with pytest.raises(BundleError, match=message) as caught:
            CrossReader(changed, config, vocab_size=VOCABULARY)
        assert "\n" not in str(caught.value)
    with pytest.raises(BundleError, match=r"vectors .* expected \(49, 12\)"):
        CrossReader(arrays, CONFIG, vocab_size=VOCABULARY - 1)


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
