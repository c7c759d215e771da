import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_passages

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.data import Dataset, Qrel, Query

sys.path.insert(0, str(Path(__file__).parent / "bench"))

from peers_corpus import Corpus, Source, System, ask_in_turns, compare
from peers_encode import Tower, encode_rows, judge, recurrent, static_tower
from peers_engines import Engines
from peers_lexical import lexical_systems
from peers_search import search_systems
from peers_table import plot, to_markdown

COUNT = 150


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    with Engines.running(tmp_path_factory.mktemp("engines")) as running:
        yield running


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Each odd passage has a number and a query that asks for it."""
    folder = tmp_path_factory.mktemp("peers")
    with DatasetWriter(folder / "DATA", source="test") as writer:
        for passage in make_passages(COUNT):
            writer.add_passage(passage)
        for number in range(1, COUNT, 2):
            writer.add_query(Query(f"q{number}", f"what is number{number}"))
            writer.add_qrel(Qrel(f"q{number}", f"p{number}", 1, "dev"))
    return Source.arrange(Dataset.open(folder / "DATA"), timed=20)


@pytest.fixture(scope="module")
def corpus(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return source.corpus(COUNT, tmp_path_factory.mktemp("corpus") / "DATA")


def asked_number(text: str) -> str:
    return "p" + re.findall(r"number(\d+)", text)[0]


def test_a_small_corpus_holds_the_answers_and_is_a_part_of_the_large_one(
    source: Source, corpus: Corpus, tmp_path: Path
) -> None:
    small = source.corpus(25, tmp_path / "DATA")
    assert list(small.data.passages()) == small.passages
    assert small.timed.queries == corpus.timed.queries
    assert len(small.timed.qrels) == 20
    assert small.passages == corpus.passages[:25]
    assert sorted(p.passage_id for p in corpus.passages) == sorted(f"p{n}" for n in range(COUNT))
    assert len(corpus.judged.queries) == COUNT // 2
    assert {query.query_id for query in small.judged.queries} == {
        f"q{p.passage_id[1:]}" for p in small.passages if int(p.passage_id[1:]) % 2
    }
    assert not set(corpus.warm_up) & {query.text for query in corpus.timed.queries}


def test_all_are_asked_the_same_in_turns(corpus: Corpus) -> None:
    log: list[tuple[str, str]] = []

    def recorder(name: str) -> System:
        def ask(text: str) -> list[str]:
            log.append((name, text))
            return [asked_number(text)] if name == "a" else ["p0", asked_number(text)]

        return System(name, ask)

    systems = [recorder("a"), recorder("b"), recorder("c")]
    queries = corpus.timed.queries
    asked = ask_in_turns(systems, queries, ["number1"])
    assert log[:3] == [("a", "number1"), ("b", "number1"), ("c", "number1")]
    turns = [log[start : start + 3] for start in range(3, len(log), 3)]
    for number, (turn, query) in enumerate(zip(turns, queries, strict=True)):
        assert turn == [("abc"[(number + i) % 3], query.text) for i in range(3)]
    assert all(len(found.times_ms) == len(queries) for found in asked.values())
    first, second, _ = compare("bm25", corpus, systems, ("mrr@10", "recall@1"))
    assert (first["mrr@10"], first["recall@1"]) == (1.0, 1.0)
    assert (second["mrr@10"], second["recall@1"]) == (1 / 2, 0.0)


def test_every_bm25_finds_the_same(engines: Engines, corpus: Corpus) -> None:
    with lexical_systems(engines, corpus) as built:
        assert [each.system.name for each in built] == [
            *("ours, embedded", "ours, server", "bm25s", "rank-bm25")
        ]
        for query in corpus.judged.queries:
            for each in built:
                assert each.system.ask(query.text) == [asked_number(query.text)], each.system.name
        found = [set(each.system.ask("rivers and boats")) for each in built]
        assert len(found[0]) > 10
        assert all(ids == found[0] for ids in found)
        unknown = [each.system.ask("the zzz") for each in built]
        assert unknown == [[], [], [], []]
    assert engines.embedded.get_collections().collections == []
    assert engines.server.get_collections().collections == []


def test_every_hybrid_search_finds_the_passage(
    engines: Engines, corpus: Corpus, tiny_bundle: Path
) -> None:
    with search_systems(engines, corpus, ModelBundle.load(tiny_bundle)) as ready:
        assert [each.system.name for each in ready] == [
            *("ours, embedded", "ours, server", "qdrant-client, server"),
            *("qdrant-client, local mode", "txtai"),
        ]
        for passage in corpus.passages[::30]:
            for each in ready:
                ids = each.system.ask(passage.content)
                assert ids[0] == passage.passage_id, each.system.name
                assert len(set(ids)) == 10
        _, _, raw, local, _ = (each.system for each in ready)
        for query in corpus.timed.queries:
            for each in (raw, local):  # the first of a leg is among the ten by reciprocal ranks
                assert asked_number(query.text) in each.ask(query.text), each.name


def test_encoders_are_timed_and_judged(corpus: Corpus, tiny_bundle: Path) -> None:
    from model2vec import StaticModel
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = {word: i for i, word in enumerate(["?", *(f"number{n}" for n in range(COUNT))])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    vectors = np.eye(len(words), dtype=np.float32)
    tokenizer.enable_padding(length=64, pad_id=1, pad_token="number0")
    static = static_tower(StaticModel(vectors, tokenizer))
    bundle = ModelBundle.load(tiny_bundle)
    ours = Tower.of("ours", bundle)
    np.testing.assert_array_equal(static.queries(["number5"]), vectors[[6]])  # and no padding
    found = judge(static, corpus)  # each number has a direction of its own
    assert found == {"judged": COUNT // 2, "recall@10": 1.0, "mrr@10": 1.0}
    assert judge(ours, corpus)["mrr@10"] < 1.0
    gru = recurrent(bundle, "gru")
    assert gru.config["tower"]["kind"] == "gru"
    # Its projection starts at zero: untrained, it is the mean tower behind a network.
    np.testing.assert_allclose(
        gru.encode_queries(["river bank"]), bundle.encode_queries(["river bank"]), atol=1e-6
    )
    rows = encode_rows([ours, static._replace(most=7)], corpus)
    assert [row["timed"] for row in rows] == [COUNT, 7]
    assert all(row["per_second"] > 0 and row["p50_ms"] > 0 for row in rows)


def report() -> dict[str, Any]:
    times = {"queries": 2, "p95_ms": 9.0, "per_second": 50, "build_s": 1.0, "seconds": 3.0}
    times["indexed_s"] = 4.0
    marks = dict.fromkeys(("recall@10", "recall@100", "mrr@10", "ndcg@10"), 0.25)
    rows = [
        {"section": section, "system": system, "passages": size, "p50_ms": p50, **times, **marks}
        for size in (10, 20)
        for section in ("encode", "bm25", "search", "ingest")
        for system, p50 in {"ours": 2.0, "theirs": 5.0, "local": 1.0}.items()
        if (system, size) != ("local", 20)
    ]
    return {"rows": rows, "source": "made up", "cores": 2}


def test_tables_have_every_row_at_the_largest_size_and_ratios() -> None:
    encode, bm25, local, search, growth = to_markdown(report()).split("\n\n")
    assert encode.splitlines()[-1] == "| theirs | 50 | 1.0x | 5.00 | 0.250 | 0.250 |"
    assert bm25.splitlines()[-1].startswith("| theirs | 1.0 | 5.0 | 2.5x | 50 | 0.250 |")
    assert "| local | 1.0 | 9.0 | 0.5x |" in local
    assert "10 passages" in local
    assert "20 passages" in search
    assert search.splitlines()[-1] == "| theirs | 5.0 | 9.0 | 2.5x | 0.250 | 0.250 | 50 | 4.0 |"
    lines = growth.splitlines()
    assert lines[0] == "|  |  | 10 | 20 |"
    assert "| hybrid search, p50 ms | theirs | 5.0 | 5.0 |" in lines
    assert len(lines) == 2 + 4 * 2  # what has one size does not grow


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    plot(report(), tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")
