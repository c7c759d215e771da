"""What `Retriever` offers beside plain search: neighbours, budgets, diversity, threads."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import HashEncoder, Server, make_passages, server_engine

from two_tower.ingest.loading import loader
from two_tower.ingest.versions import versions as collections
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.data import Dataset, Passage
from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.text.bm25 import Bm25Config
from two_tower.retriever import Retriever, SearchSettings
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.errors import QueryError
from two_tower.retriever.search import queries as queries_module
from two_tower.retriever.search.queries import QueryEncoder, average

PASSAGES = make_passages(120)
QUERY = "storm on the river bank"
EVERYTHING = SearchSettings(legs={"dense": 120, "bm25": 120})


@pytest.fixture
def retriever(
    engine: Engine, name: str, encoder: HashEncoder, make_data: Callable[..., Dataset]
) -> Retriever:
    return load(engine, name, encoder, make_data(PASSAGES))


def load(engine: Engine, name: str, encoder: HashEncoder, data: Dataset) -> Retriever:
    report = loader.load(engine, data, encoder, name=name)
    collections.promote(engine, name, report.collection)
    return Retriever(engine, name, encoder, settings=SearchSettings())


def ids(hits: list) -> list[str]:
    return [hit.passage_id for hit in hits]


def test_similar_is_the_order_of_exact_cosines(retriever: Retriever, encoder: HashEncoder) -> None:
    vectors = encoder.encode_passages([p.content for p in PASSAGES])
    cosines = vectors @ vectors[7]
    order = [PASSAGES[row].passage_id for row in np.argsort(-cosines) if row != 7]
    hits = retriever.similar("p7", k=20)
    assert ids(hits) == order[:20]
    assert [h.rank for h in hits] == list(range(1, 21))
    assert [h.score for h in hits] == pytest.approx(
        [float(cosines[int(i[1:])]) for i in order[:20]], abs=1e-5
    )
    assert set(hits[0].stages) == {"dense"}
    assert hits[0].text == PASSAGES[int(hits[0].passage_id[1:])].text
    notes = [i for i in order if PASSAGES[int(i[1:])].fields["kind"] == "note"]
    assert ids(retriever.similar("p7", k=5, filter={"kind": "note"})) == notes[:5]
    assert len(retriever.similar("p7", k=120)) == 119


@pytest.mark.parametrize("unknown", ["nope", "", "\udc00"])
def test_similar_to_nothing(retriever: Retriever, unknown: str) -> None:
    with pytest.raises(QueryError, match=r"no passage|is not text"):
        retriever.similar(unknown)
    with pytest.raises(QueryError, match="k is 0"):
        retriever.similar("p1", k=0)


def test_settings_of_one_call(retriever: Retriever) -> None:
    bm25 = SearchSettings(legs={"bm25": 10}, rerank=False)
    assert retriever.search(QUERY, settings=bm25) == retriever.with_settings(bm25).search(QUERY)
    assert retriever.settings == SearchSettings()
    with pytest.raises(ConfigError, match="unknown leg 'pca_9'"):
        retriever.search(QUERY, settings=SearchSettings(legs={"pca_9": 3}))


def test_the_result_says_what_ran(retriever: Retriever) -> None:
    assert retriever.explain(QUERY).stages_run == ("dense", "bm25", "rerank")
    assert retriever.explain("the of").stages_run == ("dense",)
    wide = SearchSettings(rerank=False, group_by="kind", diversity=0.3)
    result = retriever.explain(QUERY, settings=wide, k=2)
    assert result.stages_run == ("dense", "bm25", "groups", "diversity")
    assert list(result.timings_ms)[3:] == ["groups", "diversity", "payload"]
    assert list(result.to_dict()) == [
        *("query", "hits", "timings_ms", "stages_run", "skipped", "answerable", "read_as")
    ]


def test_what_the_budget_cannot_pay_is_skipped_and_named(retriever: Retriever) -> None:
    def slow(query: str) -> list[str]:
        time.sleep(0.05)
        return [query]

    settings = replace(EVERYTHING, diversity=0.5)
    late = retriever.with_rewriter(slow)
    result = late.explain(QUERY, settings=settings, budget_ms=20)
    assert result.skipped == ("rerank", "diversity")
    assert result.stages_run == ("rewrite", "dense", "bm25")
    plain = replace(EVERYTHING, rerank=False)
    assert ids(result.hits) == ids(retriever.search(QUERY, settings=plain))
    rich = late.explain(QUERY, settings=settings, budget_ms=60_000)
    assert rich.skipped == ()
    assert rich.stages_run == ("rewrite", "dense", "bm25", "rerank", "diversity")


@pytest.mark.parametrize("budget", [0, -1, float("nan"), float("inf")])
def test_impossible_budgets(retriever: Retriever, budget: float) -> None:
    with pytest.raises(QueryError, match="budget_ms is"):
        retriever.search(QUERY, budget_ms=budget)


def test_groups_are_a_walk_down_the_ranking(retriever: Retriever) -> None:
    full = retriever.search(QUERY, k=120, settings=EVERYTHING)
    seen: dict[str, int] = {}
    expected = []
    for hit in full:
        year = hit.payload["year"]
        seen[year] = seen.get(year, 0) + 1
        if seen[year] <= 2:
            expected.append(hit.passage_id)
    grouped = replace(EVERYTHING, group_by="year", group_size=2)
    hits = retriever.search(QUERY, k=30, settings=grouped)
    assert ids(hits) == expected[:30]
    assert [h.rank for h in hits] == list(range(1, 31))
    assert len(retriever.search(QUERY, k=120, settings=replace(grouped, group_size=1))) == 20


def test_a_group_that_no_hit_has_is_refused(retriever: Retriever) -> None:
    for wrong in ("yaer", "kind2", "Year"):
        with pytest.raises(QueryError, match=rf"group_by is '{wrong}', which no hit has.*kind"):
            retriever.search(QUERY, settings=replace(EVERYTHING, group_by=wrong))
    none = retriever.search(
        QUERY, settings=replace(EVERYTHING, group_by="year"), filter={"year": 1}
    )
    assert none == []


def test_diversity_avoids_a_near_duplicate(
    engine: Engine, name: str, encoder: HashEncoder, make_data: Callable[..., Dataset]
) -> None:
    texts = ["river bank storm", "river bank storm storm", "river boat sail wind", "oven bread"]
    passages = [Passage(f"p{n}", text) for n, text in enumerate(texts)]
    retriever = load(engine, name, encoder, make_data(passages))
    assert ids(retriever.search("river bank storm", k=2)) == ["p0", "p1"]
    hits = retriever.search("river bank storm", k=2, settings=SearchSettings(diversity=0.6))
    assert hits[0].passage_id == "p0"
    assert hits[1].passage_id in ("p2", "p3")
    assert [h.rank for h in hits] == [1, 2]


def test_a_rewriter_moves_the_tower_and_leaves_bm25(
    retriever: Retriever, encoder: HashEncoder
) -> None:
    imagined = retriever.with_rewriter(
        lambda query: [PASSAGES[3].content, " ", PASSAGES[5].content]
    )
    vectors = encoder.encode_passages([QUERY, PASSAGES[3].content, PASSAGES[5].content])
    mean = vectors.sum(0) / np.linalg.norm(vectors.sum(0))
    cosines = encoder.encode_passages([p.content for p in PASSAGES]) @ mean
    before = {h.passage_id: h for h in retriever.search(QUERY, k=120, settings=EVERYTHING)}
    for hit in imagined.search(QUERY, k=120, settings=EVERYTHING):
        expected = float(cosines[int(hit.passage_id[1:])])
        assert hit.stages["dense"].score == pytest.approx(expected, abs=1e-5)
        assert ("bm25" in hit.stages) == ("bm25" in before[hit.passage_id].stages)
    assert imagined.with_rewriter(None).search(QUERY) == retriever.search(QUERY)
    with pytest.raises(QueryError, match="the rewriter returned str; expected a list"):
        retriever.with_rewriter(lambda query: query).search(QUERY)  # type: ignore[arg-type]


def test_rewriting_many_is_rewriting_each(retriever: Retriever) -> None:
    imagined = retriever.with_rewriter(lambda q: [q.upper()] * (len(q) % 3))
    queries = [p.title for p in PASSAGES[:20]]
    many = imagined.search_many(queries, k=3)
    assert [ids(hits) for hits in many] == [ids(imagined.search(q, k=3)) for q in queries]


def test_the_mean_of_opposites_is_the_query() -> None:
    query = np.array([1.0, 0.0], dtype=np.float32)
    assert average(query, -query[None]).tolist() == [1.0, 0.0]
    assert average(query, np.zeros((0, 2), np.float32)).tolist() == [1.0, 0.0]


class Counting(HashEncoder):
    """Writes down what it encodes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def encode_queries(self, texts: list[str]) -> np.ndarray:  # type: ignore[override]
        self.asked.extend(texts)
        return self.encode_passages(texts)


def counting_encoder() -> tuple[QueryEncoder, list[str]]:
    bundle = Counting()
    return QueryEncoder(bundle, Bm25Encoder(Bm25Config(avg_len=5.0))), bundle.asked  # type: ignore[arg-type]


def test_recent_vectors_are_bounded_and_forget_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries_module, "REMEMBERED", 2)
    encoder, asked = counting_encoder()
    (first,) = encoder.encode(["a"], ["dense"])
    encoder.encode(["b"], ["dense"])
    assert encoder.encode(["a"], ["dense"])[0] is first
    encoder.encode(["c"], ["dense"])
    assert asked == ["a", "b", "c"]
    assert encoder.encode(["a"], ["dense"])[0] is first
    encoder.encode(["b"], ["dense"])
    assert asked == ["a", "b", "c", "b"]
    assert len(encoder._recent) == 2


def test_recent_vectors_under_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries_module, "REMEMBERED", 5)
    encoder, _ = counting_encoder()
    towers = {str(n): encoder.bundle.encode_queries([str(n)])[0] for n in range(20)}

    def work(seed: int) -> bool:
        random = np.random.default_rng(seed)
        for n in map(str, random.integers(0, 20, 300)):
            (vectors,) = encoder.encode([n], ["dense"])
            if vectors.tower.tolist() != towers[n].tolist():
                return False
        return len(encoder._recent) <= 5

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_each_query_is_encoded_once() -> None:
    encoder, asked = counting_encoder()
    first = encoder.encode(["a", "b", "a"], ["dense"])
    assert first[0] is first[2]
    assert encoder.encode(["b"], ["dense"])[0] is first[1]
    assert asked == ["a", "b"]
    assert set(encoder.encode(["b"], ["pca_4", "bm25"])[0].by_name) == {"pca_4", "bm25"}


def test_eight_threads_find_what_one_finds(retriever: Retriever) -> None:
    queries = [f"{p.title} {QUERY}" for p in PASSAGES]
    expected = [retriever.search(query, k=5) for query in queries]
    shared = retriever.with_rewriter(None)  # nothing remembered yet
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda query: shared.search(query, k=5), queries * 3))
        many = list(pool.map(lambda _: shared.search_many(queries, k=5), range(8)))
    assert found == expected * 3
    for hits in many:
        assert [ids(one) for one in hits] == [ids(one) for one in expected]


def test_from_asyncio_a_thread_will_do(retriever: Retriever) -> None:
    async def ask() -> list:
        calls = (asyncio.to_thread(retriever.search, p.content, k=1) for p in PASSAGES[:10])
        return list(await asyncio.gather(*calls))

    assert [hits[0].passage_id for hits in asyncio.run(ask())] == ids_of(PASSAGES[:10])


def ids_of(passages: list[Passage]) -> list[str]:
    return [passage.passage_id for passage in passages]


@pytest.fixture
def edge_folder(tmp_path: Path, tiny_bundle: Path, make_data: Callable[..., Dataset]) -> Path:
    engine = connect(path=tmp_path / ".qdrant")
    report = loader.load(engine, make_data(PASSAGES), ModelBundle.load(tiny_bundle), name="pages")
    collections.promote(engine, "pages", report.collection)
    engine.close()
    return tmp_path / ".qdrant"


def test_open_from_a_path_or_the_environment(
    edge_folder: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Retriever.open("pages", bundle=str(tiny_bundle), path=edge_folder) as retriever:
        expected = retriever.search(QUERY, k=3)
    monkeypatch.chdir(edge_folder.parent)
    with Retriever.open("pages") as retriever:  # found where it was loaded from
        assert retriever.search(QUERY, k=3) == expected
    monkeypatch.setenv("TWO_TOWER_BUNDLE", str(tiny_bundle))
    for _ in range(2):  # closing lets the folder go
        with Retriever.open("pages") as retriever:
            assert retriever.search(QUERY, k=3) == expected
    monkeypatch.setenv("TWO_TOWER_BUNDLE", str(edge_folder))
    with pytest.raises(BundleError):
        Retriever.open("pages")


def test_open_a_server_from_the_environment(
    server: Server,
    name: str,
    tiny_bundle: Path,
    make_data: Callable[..., Dataset],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with server_engine(server, name) as engine:
        report = loader.load(engine, make_data(PASSAGES), ModelBundle.load(tiny_bundle), name=name)
        collections.promote(engine, name, report.collection)
        monkeypatch.setenv("QDRANT_URL", server.url)
        monkeypatch.setenv("QDRANT_API_KEY", server.api_key or "")
        monkeypatch.setenv("TWO_TOWER_BUNDLE", str(tiny_bundle))
        with Retriever.open(name) as retriever:
            assert len(retriever.search(QUERY, k=3)) == 3
