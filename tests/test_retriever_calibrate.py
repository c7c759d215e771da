"""The weight of the cosine for one collection: against the engine, by hand, and kept in it."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import make_passages, write_data
from judged import NAME, load_judged, write_judged
from topics import topic_words
from typer.testing import CliRunner

from two_tower.models.bundle.fusion import FEWEST_QUERIES, TOWER_WEIGHT, HybridWeights
from two_tower.models.data import Dataset, Passage, Qrel, Query
from two_tower.models.errors import DataError
from two_tower.retriever.calibration import calibrate as calibration
from two_tower.retriever.calibration import examples as calibration_examples
from two_tower.retriever.calibration.calibrate import Calibration, calibrate, forget, store
from two_tower.retriever.calibration.examples import Examples, cut_examples, judged_examples
from two_tower.retriever.cli import app
from two_tower.retriever.errors import CollectionMismatch
from two_tower.retriever.evaluation.measures import judged_queries
from two_tower.retriever.evaluation.run import evaluate
from two_tower.retriever.search.retriever import Retriever
from two_tower.retriever.search.settings import SearchSettings


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path
) -> tuple[Dataset, Path, Path]:
    folder = tmp_path_factory.mktemp("calibrate")
    data = write_judged(folder / "DATA")
    load_judged(data, tiny_bundle, folder / "edge")
    return data, tiny_bundle, folder / "edge"


@pytest.fixture
def retriever(place: tuple[Dataset, Path, Path]) -> Iterator[Retriever]:
    _, bundle, engine = place
    with Retriever.open(NAME, bundle=bundle, path=engine) as opened:
        forget(opened)
        yield opened
        forget(opened)


def test_judged_examples_hold_the_scores_of_the_engine(
    retriever: Retriever, place: tuple[Dataset, Path, Path]
) -> None:
    queries, qrels = judged_queries(place[0], "dev")
    examples = judged_examples(retriever, queries, qrels)
    answers = {(q.query_id, q.passage_id) for q in qrels if q.relevance > 0}
    only = {"dense": SearchSettings(legs={"dense": 120}, rerank=False)}
    only["bm25"] = SearchSettings(legs={"bm25": 120}, rerank=False)
    for row, query in enumerate(queries[:5]):
        found = {
            leg: {h.passage_id: h.score for h in retriever.search(query.text, k=200, settings=s)}
            for leg, s in only.items()
        }
        scores = examples.bm25[row][np.isfinite(examples.bm25[row])]
        assert sorted(scores[scores > 0]) == pytest.approx(sorted(found["bm25"].values()))
        cosines = examples.cosine[row][np.isfinite(examples.bm25[row])]
        assert set(np.round(list(found["dense"].values()), 5)) <= set(np.round(cosines, 5))
        count = sum((query.query_id, id_) in answers for id_ in found["dense"] | found["bm25"])
        assert examples.relevant[row].sum() == count


def test_what_is_left_of_a_passage_is_scored_as_the_engine_would(retriever: Retriever) -> None:
    passages = list(retriever.passages())
    chosen = passages[:10]
    texts = [" ".join(passage.text.split()[:3]) for passage in chosen]
    scores = calibration_examples._bm25_of_pairs(retriever, passages, texts, chosen)
    settings = SearchSettings(legs={"bm25": 100}, rerank=False)
    for passage, text, score in zip(chosen, texts, scores, strict=True):
        hits = retriever.search(text, k=100, settings=settings)
        expected = {hit.passage_id: hit.score for hit in hits}[passage.passage_id]
        assert score == pytest.approx(expected, rel=1e-4)


def test_a_query_that_was_cut_is_not_in_what_answers_it(retriever: Retriever) -> None:
    long = [p for p in retriever.passages() if len(p.content.split()) >= 16]
    examples = cut_examples(retriever, count=20, seed=0)
    assert examples.relevant.shape[0] == min(20, len(long))
    assert examples.relevant[:, 0].all()
    assert not examples.relevant[:, 1:].any()
    again = cut_examples(retriever, count=20, seed=0)
    assert np.array_equal(again.cosine, examples.cosine)


def test_a_tower_that_knows_nothing_loses_weight(
    retriever: Retriever, place: tuple[Dataset, Path, Path]
) -> None:
    """The tower is random; the bundle has no weight, which counts as 15."""
    queries, qrels = judged_queries(place[0], "dev")
    judged = calibrate(retriever, queries, qrels)
    assert (judged.source, judged.queries, judged.before) == ("judged", 30, TOWER_WEIGHT)
    assert judged.after < TOWER_WEIGHT / 2
    cut = calibrate(retriever)
    assert cut.source == "cut"
    few = calibrate(retriever, queries[:12], [q for q in qrels if q.query_id in {"q1", "q2"}])
    assert few == cut


def test_cut_queries_bring_down_the_weight_where_words_alone_find_the_passage(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    """BM25 is always right here, so the smallest weight is: its mean with 15 is sqrt(15)."""
    passages = [Passage(f"p{i}", " ".join(topic_words(i) * 3)) for i in range(60)]
    load_judged(write_data(tmp_path / "DATA", passages), tiny_bundle, tmp_path / "edge")
    with Retriever.open(NAME, bundle=tiny_bundle, path=tmp_path / "edge") as opened:
        found = calibrate(opened)
    assert (found.queries, found.bm25_mrr) == (60, 1.0)
    assert found.after == pytest.approx(TOWER_WEIGHT**0.5)


def test_cut_queries_never_raise_a_weight() -> None:
    """The words say nothing and the cosine is always right, so they ask for the largest weight."""
    relevant = np.zeros((FEWEST_QUERIES, 3), dtype=bool)
    relevant[:, 1] = True
    words = np.tile([9.0, 1.0, 5.0], (FEWEST_QUERIES, 1))
    examples = Examples(words, relevant.astype(float), relevant)
    found = calibration._from_cuts(examples, HybridWeights(5.0))
    assert (found.before, found.after, found.after_mrr) == (5.0, 5.0, found.before_mrr)
    judged = calibration._from_judged(examples, HybridWeights(5.0))
    assert judged.after > 8.0


def test_the_collection_keeps_its_weight(
    retriever: Retriever, place: tuple[Dataset, Path, Path]
) -> None:
    store(retriever, Calibration("judged", 30, 15.0, 2.5, 0.1, 0.1, 0.2))
    opened = Retriever(retriever.engine, NAME, retriever.bundle, settings=SearchSettings())
    for hit in opened.search("river bank", k=5):
        cosine, bm25 = hit.stages["rerank"].score, hit.stages["bm25"].score
        assert hit.score == pytest.approx(bm25 + 2.5 * cosine, abs=1e-4)
    forget(retriever)
    again = Retriever(retriever.engine, NAME, retriever.bundle, settings=SearchSettings())
    assert again.fusion is None


@pytest.mark.parametrize("stored", [{"hybrid": {"tower": "much"}}, {"x": 1}, {"hybrid": 3}])
def test_a_broken_weight_is_one_line(retriever: Retriever, stored: dict[str, object]) -> None:
    retriever.engine.update_collection(retriever.collection, metadata={"fusion": stored})
    with pytest.raises(CollectionMismatch, match=r"are broken .*; run: retriever calibrate"):
        Retriever(retriever.engine, NAME, retriever.bundle, settings=SearchSettings())


def run(place: tuple[Dataset, Path, Path], *words: str) -> tuple[int, str, str]:
    _, bundle, engine = place
    where = ["--bundle", str(bundle), "--path", str(engine)]
    done = CliRunner().invoke(app, ["calibrate", NAME, *words, *where])
    return done.exit_code, done.stdout, done.stderr


def test_the_command(place: tuple[Dataset, Path, Path]) -> None:
    data, bundle, engine = place
    code, out, _ = run(place, str(data.path))
    assert code == 0
    assert "30 judged" in out
    assert "weight   15.0 -> " in out
    assert re.search(r"^chance   first hits: said 0\.\d{3}, right 0\.\d{3}$", out, re.M)
    assert re.search(r"^doubt    an answer is less than 20% likely for \d+\.\d%", out, re.M)
    with Retriever.open(NAME, bundle=bundle, path=engine) as opened:
        assert opened.metadata.fusion["source"] == "judged"
        assert opened.explain("river bank").answerable is not None
    code, out, err = run(place)
    assert (code, "cut from passages" in out, "first hits" in out) == (0, True, False)
    assert "nothing about chances" in err
    assert "favour BM25" in err
    code, out, _ = run(place, "--forget")
    assert (code, "weights of the bundle again" in out) == (0, True)


def test_a_report_knows_the_judgements_of_the_calibration(
    place: tuple[Dataset, Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    data, bundle, engine = place
    said = "calibrated on these very queries"
    for words, is_said in ([], False), ([str(data.path)], True), (["--forget"], False):
        assert run(place, *words)[0] == 0
        caplog.clear()
        with Retriever.open(NAME, bundle=bundle, path=engine) as opened:
            evaluate(opened, data, systems=["bm25"])
        assert (said in caplog.text) is is_said, words


def test_short_passages_give_no_query(tmp_path: Path, tiny_bundle: Path) -> None:
    passages = [p._replace(text=" ".join(p.text.split()[:4])) for p in make_passages(50)]
    data = write_data(tmp_path / "DATA", passages)
    load_judged(data, tiny_bundle, tmp_path / "edge")
    code, _, err = run((data, tiny_bundle, tmp_path / "edge"))
    assert code == 1
    assert "0 passages of pages--" in err
    assert "expected 30 or more; give DATA with so many judged queries" in err
    with Retriever.open(NAME, bundle=tiny_bundle, path=tmp_path / "edge") as retriever:
        few = [Query(f"q{n}", "river bank") for n in range(3)]
        qrels = [Qrel(query.query_id, passages[0].passage_id, 1, "dev") for query in few]
        refusal = r"^3 judged queries are too few \(30 expected\), and 0 passages"
        with pytest.raises(DataError, match=refusal):
            calibrate(retriever, few, qrels)


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (100.0, 10.0),  # any weight from 1 ranks all right, so the mean with the bundle's counts
        (0.01, 1.0),  # the mean, .1, ranks half of them wrong
    ],
)
def test_the_bundle_has_a_say_where_judged_queries_allow_it(before: float, expected: float) -> None:
    """In half of 40 queries BM25 has the answer half a point behind, and the cosine ahead."""
    bm25 = np.tile([1.0, 1.5], (40, 1))
    bm25[::2] = [1.0, 0.0]
    cosine = np.tile([1.0, 0.0], (40, 1))
    relevant = np.tile([True, False], (40, 1))
    examples = Examples(bm25, cosine, relevant)
    assert calibration._judged_weight(examples, before) == pytest.approx(expected)
