# ruff: noqa: F401, F811 (fixtures are imported, and named again by the tests that use them)
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pytest
from conftest import make_passages
from crossing import cross_bundle, crossed, fused, recurrent

from two_tower.ingest.loading import loader
from two_tower.ingest.versions import versions as collections
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.fusion import FinalWeights
from two_tower.models.bundle.recurrence import Cell
from two_tower.models.data import Dataset, Query
from two_tower.models.errors import ConfigError
from two_tower.models.text.bm25 import Bm25Config, Bm25Index
from two_tower.retriever import Hit, Retriever, SearchSettings
from two_tower.retriever.collection.bm25_vectors import EngineAnalyzer
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.evaluation.systems import default_systems, start
from two_tower.retriever.search.fusion import Candidates, Ranking, reorder

PASSAGES = make_passages(120)
QUERY = "storm on the river bank"
EVERYTHING = SearchSettings(legs={"dense": 120, "bm25": 120}, cross_candidates=15)
WITHOUT = replace(EVERYTHING, cross=False)


@pytest.fixture
def retriever(
    engine: Engine, name: str, cross_bundle: Path, make_data: Callable[..., Dataset]
) -> Retriever:
    return load(engine, name, ModelBundle.load(cross_bundle), make_data(PASSAGES))


@pytest.fixture
def edge_retriever(
    edge_engine: Engine, name: str, cross_bundle: Path, make_data: Callable[..., Dataset]
) -> Retriever:
    return load(edge_engine, name, ModelBundle.load(cross_bundle), make_data(PASSAGES))


def load(engine: Engine, name: str, bundle: ModelBundle, data: Dataset) -> Retriever:
    report = loader.load(engine, data, bundle, name=name)
    collections.promote(engine, name, report.collection)
    return Retriever(engine, name, bundle, settings=EVERYTHING)


def ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.passage_id for hit in hits]


class Expected(NamedTuple):
    """Every passage's scores by plain arithmetic, in the order of PASSAGES."""

    hybrid: list[float]
    cross: list[float]
    worth: list[float]


def expected(retriever: Retriever, query: str) -> Expected:
    contents = [passage.content for passage in PASSAGES]
    config, titles = Bm25Config(**retriever.metadata.bm25), [p.title for p in PASSAGES]
    index = Bm25Index(contents, EngineAnalyzer(), config, titles=titles)
    bm25 = index.scores([query], np.arange(len(PASSAGES))[None])[0]
    vector = retriever.bundle.encode_queries([query])[0]
    cosine = retriever.bundle.encode_passages(contents) @ vector
    (cross,) = retriever.bundle.cross_scores([query], [contents], bm25=[bm25], cosine=[cosine])
    hybrid = [float(x) + 6.0 * float(y) for x, y in zip(bm25, cosine, strict=True)]
    worth = [0.8 * h + 1.5 * float(c) for h, c in zip(hybrid, cross, strict=True)]
    return Expected(hybrid, cross.tolist(), worth)


def test_the_best_by_hybrid_are_ranked_by_the_final_score(retriever: Retriever) -> None:
    wanted = expected(retriever, QUERY)
    by_hybrid = sorted(range(120), key=lambda row: -wanted.hybrid[row])
    window = sorted(by_hybrid[:15], key=lambda row: -wanted.worth[row])
    assert window != by_hybrid[:15]
    result = retriever.explain(QUERY, k=40)
    assert result.stages_run == ("dense", "bm25", "rerank", "cross")
    assert list(result.timings_ms) == ["encode", "candidates", "fusion", "cross", "payload"]
    order = [PASSAGES[row].passage_id for row in [*window, *by_hybrid[15:]]]
    assert ids(result.hits) == order[:40]
    for hit, row in zip(result.hits[:15], window, strict=True):
        rivals = sum(math.exp(wanted.worth[other]) for other in window if other != row)
        odds = math.exp(wanted.worth[row]) / (math.exp(4.0) + rivals)
        assert hit.score == pytest.approx(math.log(odds) - 0.5, abs=1e-3)
        assert hit.stages["cross"].score == pytest.approx(wanted.cross[row], abs=1e-3)
        assert hit.text == PASSAGES[row].text
        assert hit.payload["kind"] == PASSAGES[row].fields["kind"]
    by_logit = sorted(result.hits[:15], key=lambda hit: -hit.stages["cross"].score)
    assert [hit.stages["cross"].rank for hit in by_logit] == list(range(1, 16))
    assert all("cross" not in hit.stages for hit in result.hits[15:])
    scores = [hit.score for hit in result.hits]
    assert scores == sorted(scores, reverse=True)


def test_the_chance_of_an_answer_leaves_out_what_is_unlikely(retriever: Retriever) -> None:
    result = retriever.explain(QUERY, k=40)
    assert result.answerable == pytest.approx(1 / (1 + math.exp(-result.hits[0].score)))
    assert result.to_dict()["answerable"] == pytest.approx(result.answerable, abs=1e-4)
    chances = [1 / (1 + math.exp(-hit.score)) for hit in result.hits]
    for least in (chances[0] - 1e-6, chances[2] - 1e-6, 0.5, 1e-9):
        likely = retriever.explain(QUERY, k=40, settings=replace(EVERYTHING, at_least=least))
        assert ids(likely.hits) == [
            hit.passage_id
            for hit, chance in zip(result.hits, chances, strict=True)
            if chance >= least
        ]
    assert retriever.search(QUERY, settings=replace(EVERYTHING, at_least=1.0)) == []
    assert retriever.explain(QUERY, settings=WITHOUT).answerable is None
    many = retriever.search_many([QUERY, "iron"], settings=replace(EVERYTHING, at_least=0.3))
    assert ids(many[0]) == ids(retriever.search(QUERY, settings=replace(EVERYTHING, at_least=0.3)))


@pytest.mark.parametrize("changes", [{"cross": False}, {"fusion": "rrf"}, {"legs": {"bm25": 50}}])
def test_scores_that_are_no_chances_are_not_compared_with_one(
    edge_retriever: Retriever, changes: dict[str, object]
) -> None:
    settings = replace(EVERYTHING, at_least=0.5, **changes)  # type: ignore[arg-type]
    if changes == {"legs": {"bm25": 50}}:  # rerank stands for the tower there
        settings = replace(settings, rerank=False)
    with pytest.raises(ConfigError, match=r"at_least is 0\.5, but these scores are no chances"):
        edge_retriever.search(QUERY, settings=settings)


def test_without_the_cross_scorer_the_learnt_fusion_ranks(retriever: Retriever) -> None:
    wanted = expected(retriever, QUERY)
    order = sorted(range(120), key=lambda row: -wanted.hybrid[row])
    for settings in (WITHOUT, replace(WITHOUT, rerank=False)):
        result = retriever.explain(QUERY, k=20, settings=settings)
        assert ids(result.hits) == [PASSAGES[row].passage_id for row in order[:20]]
        assert [hit.score for hit in result.hits] == pytest.approx(
            [wanted.hybrid[row] for row in order[:20]], abs=1e-4
        )
        assert "cross" not in result.stages_run


@pytest.mark.parametrize(
    "changes",
    [
        {"legs": {"dense": 50}},
        {"legs": {"bm25": 50}, "rerank": False},
        {"legs": {"pca_4": 50, "bm25": 50}, "rerank": False},
        {"fusion": "weighted"},
        {"fusion": "rrf"},
        {"tower_weight": 15.0},
    ],
)
def test_other_settings_are_those_of_a_bundle_without_anything_learnt(
    edge_engine: Engine,
    edge_retriever: Retriever,
    name: str,
    tiny_bundle: Path,
    changes: dict,
) -> None:
    settings = replace(EVERYTHING, **changes)
    plain = Retriever(edge_engine, name, ModelBundle.load(tiny_bundle), settings=settings)
    result = edge_retriever.explain(QUERY, settings=settings)
    assert "cross" not in result.stages_run
    assert result.skipped == ()
    assert result.hits == plain.search(QUERY)


def test_one_score_of_the_tower_and_one_of_bm25_are_enough(edge_retriever: Retriever) -> None:
    settings = replace(EVERYTHING, legs={"bm25": 120})
    assert edge_retriever.explain(QUERY, settings=settings).stages_run[-1] == "cross"
    assert edge_retriever.explain("the of").stages_run == ("dense",)
    mixed = edge_retriever.search_many(["the of", QUERY], k=3)
    assert set(mixed[0][0].stages) == {"dense"}
    assert "cross" in mixed[1][0].stages


def test_many_and_threads_find_what_one_finds(edge_retriever: Retriever) -> None:
    queries = [f"{passage.title} {QUERY}" for passage in PASSAGES[:6]]
    single = [edge_retriever.search(query, k=5) for query in queries]
    many = edge_retriever.search_many(queries, k=5)
    assert [ids(hits) for hits in many] == [ids(hits) for hits in single]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda query: edge_retriever.search(query, k=5), queries)) == single


def test_groups_and_diversity_come_after(edge_retriever: Retriever) -> None:
    full = edge_retriever.search(QUERY, k=120)
    first = {hit.payload["year"]: hit for hit in reversed(full)}
    grouped = edge_retriever.explain(QUERY, settings=replace(EVERYTHING, group_by="year"))
    walk = sorted(first.values(), key=lambda hit: hit.rank)[:10]
    assert [(h.passage_id, h.score) for h in grouped.hits] == [
        (h.passage_id, h.score) for h in walk
    ]
    assert grouped.stages_run[-2:] == ("cross", "groups")
    varied = edge_retriever.explain(QUERY, settings=replace(EVERYTHING, diversity=0.7))
    assert varied.stages_run[-2:] == ("cross", "diversity")
    scores = {hit.passage_id: hit.score for hit in full}
    assert varied.hits[0].passage_id == full[0].passage_id
    assert ids(varied.hits) != ids(full[:10])
    assert all(hit.score == scores[hit.passage_id] for hit in varied.hits)


def test_the_budget_leaves_it_out_first(edge_retriever: Retriever) -> None:
    def slow(query: str) -> list[str]:
        time.sleep(0.05)
        return [query]

    late = edge_retriever.with_rewriter(slow)
    result = late.explain(QUERY, budget_ms=20)
    assert result.skipped == ("rerank", "cross")
    assert "cross" not in result.timings_ms
    assert late.explain("other words", budget_ms=60_000).skipped == ()


def test_a_slow_one_is_left_out_alone(
    edge_engine: Engine, edge_retriever: Retriever, name: str, cross_bundle: Path
) -> None:
    class Slow(ModelBundle):
        def cross_scores(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            time.sleep(1)
            return super().cross_scores(*args, **kwargs)

    slow = Retriever(edge_engine, name, Slow.load(cross_bundle), settings=EVERYTHING)
    assert slow.explain(QUERY, budget_ms=900).skipped == ()  # nothing is known of its cost yet
    result = slow.explain(QUERY, budget_ms=900)
    assert result.skipped == ("cross",)
    assert result.stages_run == ("dense", "bm25", "rerank")
    assert ids(result.hits) == ids(edge_retriever.search(QUERY, settings=WITHOUT))


def ranking(count: int, *, seed: int) -> Ranking:
    random = np.random.default_rng(seed)
    scores = random.standard_normal(count).round(1)  # some are equal
    names = [f"p{row}" for row in range(count)]
    candidates = Candidates(names, ["bm25"], scores[:, None], np.zeros(1))
    return Ranking(candidates, np.argsort(-scores, kind="stable"), scores)


@pytest.mark.parametrize("weight", [0.0, 0.7, -0.7])
def test_what_was_not_read_stays_in_order_behind(weight: float) -> None:
    for seed in range(20):
        before = ranking(30, seed=seed)
        logits = np.random.default_rng(seed).standard_normal(1 + seed).astype(np.float32)
        after = reorder(before, logits, FinalWeights(weight, 2.0, 1.0, 0.0))
        size = len(logits)
        assert set(after.order[:size]) == set(before.order[:size])
        assert after.order[size:].tolist() == before.order[size:].tolist()
        assert (np.diff(after.scores[after.order]) <= 0).all()
        assert after.candidates.stages == ["bm25", "cross"]
        assert np.isnan(after.candidates.scores[after.order[size:], 1]).all()


def test_a_window_by_hand() -> None:
    scores = np.array([1.0, 4.0, 3.0, 2.5])
    candidates = Candidates(["a", "b", "c", "d"], ["bm25"], scores[:, None], np.zeros(1))
    before = Ranking(candidates, np.array([1, 2, 3, 0]), scores)
    after = reorder(before, np.array([-1, 5], np.float32), FinalWeights(2.0, 1.0, 3.0, 0.5))
    # worth: b 2*4 - 1 = 7, c 2*3 + 5 = 11; d is 2 * (3 - 2.5) below b, a 2 * (3 - 1)
    b = 7 - math.log(math.exp(3) + math.exp(11)) + 0.5
    c = 11 - math.log(math.exp(3) + math.exp(7)) + 0.5
    assert after.order.tolist() == [2, 1, 3, 0]
    assert after.scores.tolist() == pytest.approx([b - 4, b, c, b - 1])


def test_the_table_has_a_row_for_what_is_learnt(
    edge_engine: Engine, edge_retriever: Retriever, name: str, tiny_bundle: Path
) -> None:
    plain = ModelBundle.load(tiny_bundle)
    shared = ["tfidf", "bm25", "dense", "pca_8", "pca_4", "rrf", "dbsf"]

    def systems(bundle: ModelBundle) -> list[str]:
        return default_systems(Retriever(edge_engine, name, bundle, settings=SearchSettings()))

    assert systems(plain) == [*shared, "hybrid", "rerank"]
    assert systems(fused(plain)) == [*shared, "weighted", "hybrid", "rerank"]
    assert systems(crossed(plain)) == [*shared, "weighted", "hybrid", "rerank", "cross"]
    rankings = {
        system: start(system, edge_retriever).rank([Query("", QUERY)], 30)[0]
        for system in ("weighted", "rerank", "cross")
    }
    assert rankings["cross"] == ids(edge_retriever.search(QUERY, k=30))
    assert rankings["rerank"] == ids(edge_retriever.search(QUERY, k=30, settings=WITHOUT))
    fixed = Retriever(edge_engine, name, plain, settings=EVERYTHING)
    assert rankings["weighted"] == ids(fixed.search(QUERY, k=30))


HEAVY = {
    *("torch", "onnxruntime", "transformers", "sentence_transformers", "tokenizers", "gensim"),
    *("datasets", "sklearn", "scipy", "wandb", "matplotlib"),
}


@pytest.mark.parametrize("kind", ["mean", "gru", "lstm"])
def test_a_search_loads_nothing_heavy(
    tmp_path: Path,
    tiny_bundle: Path,
    make_data: Callable[..., Dataset],
    kind: Literal["mean", "gru", "lstm"],
) -> None:
    bundle = ModelBundle.load(tiny_bundle)
    if kind != "mean":
        bundle = recurrent(bundle, kind)
    bundle.save(tmp_path / "plain")
    crossed(bundle).save(tmp_path / "crossed")
    engine = connect(path=tmp_path / "edge")
    load(engine, "things", bundle, make_data(PASSAGES[:20]))
    engine.close()
    program = f"""
import sys
from two_tower.retriever import Retriever
for name in "plain", "crossed":
    with Retriever.open(
        "things", bundle={str(tmp_path)!r} + "/" + name, path={str(tmp_path / "edge")!r}
    ) as opened:
        print(*opened.explain("storm").stages_run)
        print({HEAVY!r} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    stages = "dense bm25 rerank"
    assert done.stdout == f"{stages}\nset()\n{stages} cross\nset()\n", done.stderr
