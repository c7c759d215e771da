# ruff: noqa: F401, F811 (fixtures are imported, and named again by the tests that use them)
"""The cross-scorer where people meet it: the service, its page, the terminal."""

import asyncio
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from browser import running_browser
from conftest import Server, make_passages
from crossing import cross_bundle
from services import NAME, Service, load, running_service
from threadpoolctl import threadpool_info, threadpool_limits
from typer.testing import CliRunner

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.cross_scoring import CrossReader
from two_tower.retriever import Retriever, SearchSettings
from two_tower.retriever.cli import app
from two_tower.retriever.commands.terminal import result_bar, shown_score
from two_tower.retriever.records import Hit, SearchResult
from two_tower.retriever.service.backend import MOST_CROSSED, Backend, modes
from two_tower.retriever.service.config import ServiceConfig

QUERY = "storm on the river bank"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cross_service")


@pytest.fixture(scope="module")
def where(folder: Path, cross_bundle: Path, server: Server) -> Iterator[dict[str, str]]:
    """What reaches the collection from the environment."""
    loaded = load(folder, cross_bundle, make_passages(60), url=server.url, api_key=server.api_key)
    key = {"QDRANT_API_KEY": server.api_key} if server.api_key else {}
    yield {"QDRANT_URL": server.url, **key}
    engine = server.connect()
    engine.delete_collection(loaded)
    engine.close()


@pytest.fixture(scope="module")
def service(folder: Path, cross_bundle: Path, where: dict[str, str]) -> Iterator[Service]:
    with running_service(folder, cross_bundle, **where) as running:
        yield running


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_a_search_reads_with_one_blas_thread_and_gives_the_others_back(
    cross_bundle: Path, server: Server, where: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    read = CrossReader.score

    def watched(reader: CrossReader, *given: Any, **scores: Any) -> Any:
        seen.append(blas_threads())
        return read(reader, *given, **scores)

    with (
        threadpool_limits(3, user_api="blas"),
        Retriever.open(
            NAME, bundle=cross_bundle, url=server.url, api_key=server.api_key
        ) as retriever,
    ):
        before = blas_threads()
        monkeypatch.setattr(CrossReader, "score", watched)
        retriever.search(QUERY)
        assert seen == [{1}]
        assert blas_threads() == before != {1}


def test_the_service_gives_each_search_one_blas_thread(
    cross_bundle: Path, where: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in where.items():
        monkeypatch.setenv(name, value)
    backend = Backend(ServiceConfig(name=NAME, bundle=cross_bundle))
    with threadpool_limits(2, user_api="blas"):
        try:
            assert blas_threads() != {1}
            backend.open()
            assert blas_threads() == {1}
        finally:
            backend.close()


def test_searches_that_wait_are_read_together(
    cross_bundle: Path, where: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in where.items():
        monkeypatch.setenv(name, value)
    sizes: list[int] = []
    read = CrossReader.score

    def watched(reader: CrossReader, *given: Any, **more: Any) -> Any:
        sizes.append(len(more["counts"]))
        return read(reader, *given, **more)

    def ask(retriever: Retriever, queries: Sequence[str]) -> list[SearchResult]:
        return retriever.explain_many(queries)

    queries = [f"storm {word}" for word in ("river", "bank", "bread", "ship", "music", "garden")]
    backend = Backend(ServiceConfig(name=NAME, bundle=cross_bundle, threads=1))

    async def search_all() -> list[SearchResult]:
        searches = (
            backend.answer(query, "", settings=None, ask=ask, show=lambda result: result)
            for query in queries
        )
        return await asyncio.gather(*searches)

    try:
        alone = [backend.open().explain(query) for query in queries]
        monkeypatch.setattr(CrossReader, "score", watched)
        together = asyncio.run(search_all())
    finally:
        backend.close()
    assert sum(sizes) == len(queries)
    assert 1 < max(sizes) <= MOST_CROSSED
    for found, expected in zip(together, alone, strict=True):
        assert [hit.passage_id for hit in found.hits] == [h.passage_id for h in expected.hits]
        assert found.hits[0].score == pytest.approx(expected.hits[0].score, abs=1e-4)


def test_the_service_has_a_mode_for_it_and_it_is_the_default(
    service: Service, cross_bundle: Path, server: Server
) -> None:
    found = service.get("/collection").json["modes"]
    assert list(found) == ["bm25", "hybrid", "reranked", "cross"]
    with Retriever.open(
        NAME, bundle=cross_bundle, url=server.url, api_key=server.api_key
    ) as retriever:
        for mode, crosses in {"reranked": False, "cross": True}.items():
            answer = service.post("/search", {"query": QUERY, "settings": found[mode]}).json
            settings = SearchSettings(cross=crosses)
            expected = retriever.search(QUERY, settings=settings)
            assert [hit["passage_id"] for hit in answer["hits"]] == [h.passage_id for h in expected]
            assert ("cross" in answer["stages_run"]) == crosses
        assert service.post("/search", {"query": QUERY}).json["hits"] == answer["hits"]
        few = service.post("/search", {"query": QUERY, "settings": {"cross_candidates": 3}}).json
        expected = retriever.search(QUERY, settings=SearchSettings(cross_candidates=3))
        assert [hit["passage_id"] for hit in few["hits"]] == [hit.passage_id for hit in expected]
    assert ["cross" in hit["stages"] for hit in few["hits"]] == [True] * 3 + [False] * 7


@pytest.mark.parametrize("wrong", [{"cross_candidates": 0}, {"cross_candidates": 201}])
def test_the_service_bounds_it(service: Service, wrong: dict[str, int]) -> None:
    assert service.post("/search", {"query": QUERY, "settings": wrong}).status == 422


def test_modes_without_one(tiny_bundle: Path) -> None:
    assert list(modes(ModelBundle.load(tiny_bundle))) == ["bm25", "hybrid", "reranked"]


def test_the_page_shows_its_bar_and_the_chance(service: Service) -> None:
    best = service.post("/search", {"query": QUERY}).json["hits"][0]
    with running_browser() as browser:
        page = browser.new_page(base_url=service.url)
        page.goto(f"/?q={QUERY}")
        first = page.locator(f'[data-passage="{best["passage_id"]}"]')
        first.wait_for()
        names = first.locator(".stages dt").all_inner_texts()
        assert names[-2:] == ["Cross", "Chance"]
        chance = 100 / (1 + math.exp(-best["score"]))
        told = first.locator(".chance").inner_text()
        assert float(told.removesuffix("%")) == pytest.approx(chance, abs=0.5)
        page.wait_for_selector(".step-name.step-cross")
        widths = [
            bar.bounding_box()["width"]  # type: ignore[index]
            for bar in page.locator(".stage-cross .bar i").all()
        ]
        assert max(widths) > 20
        page.goto(f"/?q={QUERY}&mode=bm25&compare=cross")
        page.wait_for_selector(".column:nth-child(2) .hit")
        assert page.locator(".column h2").nth(1).inner_text().startswith("Cross-scored")
        page.close()


def test_the_terminal_explains_it(
    where: dict[str, str], cross_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in where.items():
        monkeypatch.setenv(name, value)
    words = ["search", NAME, QUERY, "-k", "3", "--bundle", str(cross_bundle)]
    shown = CliRunner().invoke(app, [*words, "--explain"])
    assert shown.exit_code == 0, shown.stderr
    table = next(line.split() for line in shown.stdout.splitlines() if " rerank " in line)
    assert table == ["rank", "score", "dense", "bm25", "rerank", "cross", "title"]
    assert "stages: dense, bm25, rerank, cross" in shown.stdout
    assert "1 / (1 + exp(-score))" in shown.stdout
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert told["stages_run"][-1] == "cross"
    assert set(told["hits"][0]["stages"]["cross"]) == {"score", "rank"}
    assert told["timings_ms"]["cross"] > 0


@pytest.mark.parametrize(
    ("log_odds", "cells", "words"),
    [
        (0.0, "█████     ", "50% chance"),
        (-800.0, " " * 10, "<0.1% chance"),
        (50.0, "█" * 10, "100% chance"),
        (-3.985, "▏         ", "1.8% chance"),
    ],
)
def test_the_chance_is_shown_where_it_is_known(log_odds: float, cells: str, words: str) -> None:
    hit = Hit(1, "p1", log_odds, "Title", "text", "", {}, {})
    result = SearchResult("q", [hit], {}, stages_run=("dense", "bm25", "cross"))
    assert result_bar(hit, result) == cells
    assert shown_score(hit, result) == words
