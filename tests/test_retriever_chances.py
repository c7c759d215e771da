"""Chances of one collection: by hand, on both engines, and what settings may ask of them."""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_passages
from crossing import cross_bundle  # noqa: F401 (a fixture)

from two_tower.ingest.loading import loader
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.fusion import FinalWeights
from two_tower.models.data import Dataset, Qrel, Query
from two_tower.models.errors import ConfigError
from two_tower.retriever import Retriever, SearchSettings
from two_tower.retriever.calibration.chances import (
    Read,
    check,
    fit_answerable,
    fitted,
    made_queries,
    store_chances,
)
from two_tower.retriever.commands.terminal import Look, show_hits
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.errors import CollectionMismatch
from two_tower.retriever.search.chances import (
    AnswerableWeights,
    Chances,
    CollectionChances,
    query_signs,
)

QUERY = "storm on the river bank"
ALL = SearchSettings(legs={"dense": 120, "bm25": 120}, cross=False)
HYBRID = Chances(FinalWeights(0.5, 0.0, 1.0, -0.25), AnswerableWeights(-1.0, 0.5, 2.0, 0.25, 0.0))
CROSS = Chances(FinalWeights(0.4, 0.75, 2.0, 0.1), AnswerableWeights(0.5, 0.5, 0.1, 0.25, 0.3))


def load(
    engine: Engine, name: str, bundle: Path, data: Dataset, *, chances: CollectionChances | None
) -> Retriever:
    loaded = ModelBundle.load(bundle)
    report = loader.load(engine, data, loaded, name=name)
    assert loaded.fusion is not None
    kept = {"hybrid": asdict(loaded.fusion.hybrid), "source": "judged", "queries": 30}
    if chances:
        kept["chances"] = asdict(chances)
    engine.update_collection(report.collection, metadata={"fusion": kept})
    return Retriever(engine, report.collection, loaded, settings=ALL)


@pytest.fixture
def retriever(
    engine: Engine,
    name: str,
    cross_bundle: Path,  # noqa: F811
    make_data: Callable[..., Dataset],
) -> Retriever:
    data = make_data(make_passages(120))
    return load(engine, name, cross_bundle, data, chances=CollectionChances(HYBRID, CROSS))


@pytest.fixture
def edge_retriever(
    edge_engine: Engine,
    name: str,
    cross_bundle: Path,  # noqa: F811
    make_data: Callable[..., Dataset],
) -> Retriever:
    data = make_data(make_passages(120))
    return load(edge_engine, name, cross_bundle, data, chances=CollectionChances(HYBRID, CROSS))


def test_a_hybrid_has_chances(retriever: Retriever) -> None:
    """Each of the first 50 beside its rivals and beside nothing, by arithmetic."""
    result = retriever.explain(QUERY, k=120)
    worths = [0.5 * hit.score for hit in result.hits[:50]]
    for place, hit in enumerate(result.hits[:50]):
        others = sum(math.exp(w) for n, w in enumerate(worths) if n != place) + math.exp(1.0)
        odds = math.exp(worths[place]) / others * math.exp(-0.25)
        assert hit.stages["chance"].score == pytest.approx(odds / (1 + odds), abs=1e-4)
    assert all("chance" not in hit.stages for hit in result.hits[50:])
    near = max(hit.stages["rerank"].score for hit in result.hits[:50])
    words = max(hit.stages["bm25"].score for hit in result.hits[:50] if "bm25" in hit.stages)
    terms = 3  # storm, river, bank; on and the are stop words
    log_odds = -1.0 + 0.5 * near + 2.0 * words / terms + 0.25 * math.log(terms)
    assert result.answerable == pytest.approx(1 / (1 + math.exp(-log_odds)), abs=1e-4)
    shown = str(show_hits(result, Look()))
    assert f"{100 * result.hits[0].stages['chance'].score:.0f}% chance" in shown


def test_a_cross_scorer_takes_the_chances_of_the_collection(retriever: Retriever) -> None:
    settings = replace(ALL, cross=True, cross_candidates=15)
    before = {hit.passage_id: hit.score for hit in retriever.search(QUERY, k=120)}
    result = retriever.explain(QUERY, k=15, settings=settings)
    worths = [
        0.4 * before[hit.passage_id] + 0.75 * hit.stages["cross"].score for hit in result.hits
    ]
    others = sum(map(math.exp, worths[1:])) + math.exp(2.0)
    assert result.hits[0].score == pytest.approx(worths[0] - math.log(others) + 0.1, abs=1e-3)
    assert "chance" not in result.stages_run
    assert result.answerable is not None
    first = result.hits[0].stages["cross"].score
    near = max(hit.stages["rerank"].score for hit in retriever.search(QUERY, k=50))
    words = max(hit.stages["bm25"].score for hit in retriever.search(QUERY, k=15))
    log_odds = 0.5 + 0.5 * near + 0.1 * words / 3 + 0.25 * math.log(3) + 0.3 * first
    assert result.answerable == pytest.approx(1 / (1 + math.exp(-log_odds)), abs=1e-2)


def test_hits_below_a_chance_are_left_out_and_all_where_nothing_answers(
    edge_retriever: Retriever,
) -> None:
    result = edge_retriever.explain(QUERY, k=40)
    assert result.answerable is not None
    chances = [hit.stages["chance"].score for hit in result.hits]
    least = min(chances[1], result.answerable) - 1e-6
    hits = edge_retriever.search(QUERY, k=40, settings=replace(ALL, at_least=least))
    assert len(hits) == sum(chance >= least for chance in chances)
    unlikely = edge_retriever.explain("zzzqqq")
    assert unlikely.answerable is not None
    assert unlikely.answerable < result.answerable
    above = replace(ALL, at_least=unlikely.answerable + 1e-3)
    assert edge_retriever.search("zzzqqq", settings=above) == []
    for wordless in ("the of and", "?!", "🐶"):  # the tower finds something, and no chance is known
        assert edge_retriever.search(wordless, settings=ALL)
        assert edge_retriever.search(wordless, settings=above) == []


def test_the_cross_scorer_reads_where_the_first_hit_is_unsure(edge_retriever: Retriever) -> None:
    texts = [QUERY, "iron", "bread", "storm", "river mouse", "glass window"]
    plain = edge_retriever.explain_many(texts, settings=ALL)
    chances = [result.hits[0].stages["chance"].score for result in plain]
    middle = float(np.median(chances))
    escalated = edge_retriever.explain_many(
        texts, settings=replace(ALL, cross=True, escalate=middle)
    )
    for chance, result, before in zip(chances, escalated, plain, strict=True):
        assert ("cross" in result.stages_run) is (chance < middle)
        if chance >= middle:
            assert result.hits == before.hits
    everywhere = edge_retriever.explain_many(texts, settings=replace(ALL, cross=True, escalate=1.0))
    assert all("cross" in result.stages_run for result in everywhere)


def test_escalate_needs_chances(
    edge_engine: Engine,
    name: str,
    cross_bundle: Path,  # noqa: F811
    make_data: Callable[..., Dataset],
) -> None:
    retriever = load(edge_engine, name, cross_bundle, make_data(make_passages(20)), chances=None)
    with pytest.raises(ConfigError, match=r"escalate is 0\.5, but .* retriever calibrate NAME"):
        retriever.search(QUERY, settings=replace(ALL, cross=True, escalate=0.5))
    assert retriever.search(QUERY, settings=replace(ALL, escalate=0.5))  # nothing to hold back


@pytest.mark.parametrize("stored", [3, {"hybrid": {}}, {"hybrid": {"hits": {"hybrid": "much"}}}])
def test_broken_chances_are_one_line(edge_retriever: Retriever, stored: object) -> None:
    kept = {**edge_retriever.metadata.fusion, "chances": stored}
    edge_retriever.engine.update_collection(edge_retriever.collection, metadata={"fusion": kept})
    with pytest.raises(CollectionMismatch, match=r"are broken .*; run: retriever calibrate"):
        Retriever(
            edge_retriever.engine,
            edge_retriever.collection,
            edge_retriever.bundle,
            settings=SearchSettings(),
        )


def test_calibration_keeps_chances_that_searches_use(
    edge_engine: Engine,
    name: str,
    cross_bundle: Path,  # noqa: F811
    make_data: Callable[..., Dataset],
) -> None:
    """Queries are the words of the passage that answers them: sure for these, not for made ones."""
    passages = make_passages(120)
    retriever = load(edge_engine, name, cross_bundle, make_data(passages), chances=None)
    queries = [Query(f"q{n}", " ".join(p.text.split()[:5])) for n, p in enumerate(passages[:60])]
    qrels = [Qrel(f"q{n}", p.passage_id, 1, "dev") for n, p in enumerate(passages[:60])]
    found = store_chances(retriever, queries, qrels)
    assert found is not None
    assert (found.queries, found.said) == (60, pytest.approx(found.right, abs=0.1))
    fresh = Retriever(edge_engine, retriever.collection, retriever.bundle, settings=ALL)
    assert fresh.explain(queries[0].text).answerable is not None
    assert store_chances(fresh, queries[:10], qrels[:10]) is None


def test_made_queries_are_words_of_many_passages_and_random_letters(
    edge_retriever: Retriever,
) -> None:
    made = made_queries(edge_retriever, rng=np.random.default_rng(0))
    lengths = [len(text.split()) for text in made]
    assert len(made) == 300
    assert set(lengths[:200]) == set(range(4, 13))
    assert set(lengths[200:]) == set(range(1, 5))
    words = {word for p in edge_retriever.passages() for word in p.text.split()}
    assert {word for text in made[:200] for word in text.split()} <= words


def test_answerable_is_a_logistic_regression_with_a_penalty() -> None:
    """scikit-learn's, on the same signs over their spread, with the same weights."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    has_answer = np.arange(150) < 50
    signs = rng.normal(size=(150, 4)) * [1, 5, 0.1, 3] + has_answer[:, None] * [1, 4, 0, 0]
    ours = fit_answerable(signs, has_answer).log_odds(signs)
    z = (signs - signs.mean(axis=0)) / signs.std(axis=0)
    weights = np.where(has_answer, 1.0, 0.5)
    theirs = LogisticRegression(C=1.0, tol=1e-8).fit(z, has_answer, sample_weight=weights)
    assert ours == pytest.approx(theirs.decision_function(z), abs=1e-2)


def test_a_check_sees_chances_that_hold() -> None:
    """Worths that say nothing: each of two candidates is right in half of the queries."""
    rng = np.random.default_rng(1)
    relevant = np.zeros((200, 2), dtype=bool)
    relevant[np.arange(200), rng.integers(2, size=200)] = True
    worth = rng.normal(size=(300, 2))
    signs = np.vstack([np.full((200, 4), 3.0), np.zeros((100, 4))]) + rng.normal(size=(300, 4)) / 9
    read = Read(worth, np.vstack([relevant, np.zeros((100, 2), dtype=bool)]), signs)
    found = check(read, 200)
    assert found.right == relevant[:, 0].mean()
    assert found.said == pytest.approx(0.5, abs=0.05)
    assert (found.doubted, found.refused) == (0.0, 1.0)
    assert fitted(read, 200).hits.cross == 0.0


def test_signs_of_a_query_are_its_best_scores() -> None:
    bm25, cosine = np.array([np.nan, 6.0, 2.0]), np.array([0.1, np.nan, 0.4])
    signs = query_signs(bm25, cosine, terms=3, logit=1.5)
    assert signs.tolist() == pytest.approx([0.4, 2.0, math.log(3), 1.5])
    nothing = query_signs(np.array([np.nan]), np.array([np.nan]), terms=0)
    assert nothing.tolist() == [0, 0, 0, 0]
    assert query_signs(np.empty(0), np.empty(0), terms=4).tolist() == [0, 0, 0, 0]
