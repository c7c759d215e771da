"""Chances of first hits against judgements: by hand, and in a report."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from crossing import cross_bundle  # noqa: F401 (a fixture)
from judged import NAME, load_judged, write_judged

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.fusion import FinalWeights
from two_tower.models.errors import ConfigError
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.evaluation.coverage import first_hits
from two_tower.retriever.evaluation.report import trust
from two_tower.retriever.evaluation.run import evaluate
from two_tower.retriever.search.chances import AnswerableWeights, Chances, CollectionChances
from two_tower.retriever.search.retriever import Retriever
from two_tower.retriever.search.settings import SearchSettings

SIGNS = AnswerableWeights(0.0, 1.0, 0.1, 0.0, 0.0)
CHANCES = CollectionChances(
    Chances(FinalWeights(0.5, 0.0, 1.0, 0.0), SIGNS),
    Chances(FinalWeights(0.8, 1.5, 4.0, -0.5), SIGNS),
)


def test_the_curve_counts_the_surest_first_hits() -> None:
    """Ten queries, surest first: right, right, wrong, right, then three more of six."""
    right = [1, 1, 0, 1, 0, 1, 0, 1, 1, 0]
    chances = {f"q{n}": 0.95 - n / 20 for n in range(10)}
    rankings = {f"q{n}": ["a", "b"] for n in reversed(range(10))}
    answers = {(f"q{n}", "a" if is_right else "b") for n, is_right in enumerate(right)}
    found = first_hits(chances, rankings, answers)
    assert found is not None
    assert found.said == pytest.approx(0.725)
    assert found.right == 0.6
    assert dict(found.curve) == {
        **{1.0: 6 / 10, 0.9: 6 / 9, 0.8: 5 / 8, 0.7: 4 / 7, 0.6: 4 / 6, 0.5: 3 / 5},
        **{0.4: 3 / 4, 0.3: 2 / 3, 0.2: 2 / 2, 0.1: 1 / 1},
    }
    assert found.right_at(0.8) == 5 / 8


def test_there_is_no_curve_where_a_query_has_no_chance() -> None:
    assert first_hits({"q1": 0.5}, {"q1": ["a"], "q2": ["a"]}, set()) is None
    assert first_hits({}, {}, set()) is None


def test_a_report_has_the_curve_and_the_share_escalated(
    tmp_path: Path,
    cross_bundle: Path,  # noqa: F811
) -> None:
    data = write_judged(tmp_path / "DATA")
    load_judged(data, cross_bundle, tmp_path / "edge")
    bundle = ModelBundle.load(cross_bundle)
    assert bundle.fusion is not None
    engine = connect(path=tmp_path / "edge")
    kept = {"hybrid": asdict(bundle.fusion.hybrid), "chances": asdict(CHANCES)}
    engine.update_collection(engine.resolve(NAME), metadata={"fusion": kept})
    settings = SearchSettings(escalate=0.5)
    retriever = Retriever(engine, NAME, bundle, settings=settings)
    queries = [query.text for query in data.queries("dev")]
    plain = retriever.explain_many(queries, settings=replace(settings, cross=False, escalate=None))
    read = sum(result.hits[0].stages["chance"].score < 0.5 for result in plain) / len(plain)
    report = evaluate(
        retriever, data, tmp_path / "report", systems=["bm25", "rerank", "escalate", "cross"]
    )
    rows = {row.system: row for row in report.systems}
    assert rows["escalate"].escalated == pytest.approx(read)
    assert [row.system for row in report.systems if row.first_hits] == [
        *("rerank", "escalate", "cross")
    ]
    assert [(w.system, w.over) for w in report.worths][1:] == [
        ("escalate", "rerank"),
        ("cross", "escalate"),
    ]
    sentences = trust(report)
    assert sentences[0].startswith(f"escalate: the cross-scorer read {read:.0%} of the queries")
    assert "cross: the first hit is right for" in sentences[1]
    assert sentences[1] in (tmp_path / "report" / "report.md").read_text()
    page = (tmp_path / "report" / "report.html").read_text()
    assert "share of the queries, surest first" in page
    assert type(report).from_dict(report.to_dict()) == report
    engine.close()


def test_escalate_is_no_system_without_chances(
    tmp_path: Path,
    cross_bundle: Path,  # noqa: F811
) -> None:
    data = write_judged(tmp_path / "DATA")
    load_judged(data, cross_bundle, tmp_path / "edge")
    with (
        Retriever.open(NAME, bundle=cross_bundle, path=tmp_path / "edge") as retriever,
        pytest.raises(ConfigError, match=r"'escalate' is not here: .* retriever calibrate NAME"),
    ):
        evaluate(retriever, data, systems=["escalate"])
