"""`retriever tune` on both engines: its numbers against numpy, its files, what it leaves behind."""

import csv
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from browser import assert_nothing_is_cut_off, running_browser
from conftest import WIDE, Server, make_passages
from services import until
from typer.testing import CliRunner, Result

from two_tower.ingest.cli import app as ingest_app
from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.loading import loader
from two_tower.ingest.versions import versions as collections
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.data import Dataset, Qrel, Query
from two_tower.retriever.cli import app
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.evaluation.measures import judged_queries
from two_tower.retriever.search.retriever import Retriever
from two_tower.retriever.search.settings import SearchSettings, read_file, read_settings
from two_tower.retriever.tuning.copies import MARK, OWNER
from two_tower.retriever.tuning.goals import parse_goal
from two_tower.retriever.tuning.tune import tune

PASSAGES, QUERIES = 1100, 20
TUNE = [sys.executable, "-c", "from two_tower.retriever.cli import app; app()"]
QUICK = ("--sweeps", "candidates")


class Tuned(NamedTuple):
    """A loaded collection and the report about it."""

    name: str
    where: list[str]
    data: Dataset
    bundle: Path
    out: Path
    done: Result

    @property
    def rows(self) -> dict[str, dict[str, str]]:
        with (self.out / "tune.csv").open(newline="") as file:
            return {row["setting"]: row for row in csv.DictReader(file)}

    def connect(self) -> Engine:
        return connect(**{self.where[0][2:]: self.where[1]})  # type: ignore[arg-type]

    def run(self, *words: str | Path) -> Result:
        return CliRunner(env=WIDE).invoke(app, self.words(*words))

    def words(self, *more: str | Path) -> list[str]:
        words = ["tune", self.name, self.data.path, "--bundle", self.bundle, *self.where, *more]
        return [*map(str, words)]

    def engine_collections(self, engine: Engine) -> set[str]:
        return {c.name for c in engine.get_collections().collections if self.name in c.name}

    def collections(self) -> set[str]:
        """What there is, also while another process holds the folder."""
        if self.where[0] == "--path":
            return {each.name for each in (Path(self.where[1]) / "collections").glob("[!.]*")}
        engine = self.connect()
        try:
            return self.engine_collections(engine)
        finally:
            engine.close()


def write_queries(path: Path) -> Dataset:
    """Passages, and queries of a few of the words of every 40th."""
    passages = make_passages(PASSAGES)
    with DatasetWriter(path, source="test") as writer:
        for passage in passages:
            writer.add_passage(passage)
        for number, passage in enumerate(passages[:: PASSAGES // QUERIES][:QUERIES]):
            words = " ".join(passage.text.split()[:4])
            writer.add_query(Query(f"q{number}", words))
            writer.add_qrel(Qrel(f"q{number}", passage.passage_id, 1, "dev"))
    return Dataset.open(path)


@pytest.fixture(scope="module", params=["edge", "server"])
def tuned(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path
) -> Iterator[Tuned]:
    folder = tmp_path_factory.mktemp("tune")
    name = f"test_{uuid.uuid4().hex[:12]}"
    where = ["--path", str(folder / "edge")]
    if request.param == "server":
        server: Server = request.getfixturevalue("server")
        if server.api_key:
            pytest.skip("a key would have to be in the command's environment")
        where = ["--url", server.url]
    data = write_queries(folder / "DATA")
    engine = connect(**{where[0][2:]: where[1]})  # type: ignore[arg-type]
    report = loader.load(engine, data, ModelBundle.load(tiny_bundle), name=name)
    collections.promote(engine, name, report.collection)
    engine.close()
    tuned = Tuned(name, where, data, tiny_bundle, folder / "out", Result)  # type: ignore[arg-type]
    goal = ("--goal", "recall@10>=0.5 of exact, min p95")
    tuned = tuned._replace(done=tuned.run("--out", tuned.out, *goal))
    yield tuned
    engine = tuned.connect()
    for collection in tuned.collections() if request.param == "server" else ():
        engine.delete_collection(collection)
    engine.close()


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.mean([len({*a} & {*b}) / len(b) for a, b in zip(found, wanted, strict=True)]))


def test_recalls_are_those_of_numpy(tuned: Tuned) -> None:
    assert tuned.done.exit_code == 0, tuned.done.output
    bundle = ModelBundle.load(tuned.bundle)
    passages = list(tuned.data.passages())
    full = bundle.encode_passages([passage.content for passage in passages])
    asked = bundle.encode_queries([query.text for query in tuned.data.queries("dev")])
    answers = {qrel.query_id: qrel.passage_id for qrel in tuned.data.qrels("dev")}
    place = {passage.passage_id: row for row, passage in enumerate(passages)}
    relevant = np.array([[place[answers[q.query_id]]] for q in tuned.data.queries("dev")])
    exact = np.argsort(-(asked @ full.T), axis=1)
    short = bundle.reduce(asked)[8] @ bundle.reduce(full)[8].T
    by_short = np.argsort(-short, axis=1)
    pairs = zip(asked, by_short[:, :200], strict=True)
    rescored = [row[np.argsort(-(query @ full[row].T))] for query, row in pairs]
    expected = {"exact": exact, "pca_8 alone": by_short, "pca_8, 200 rescored": np.array(rescored)}
    for label, ranked in expected.items():
        row = tuned.rows[label]
        for k in (1, 10, 100):
            of_exact, of_qrels = row[f"recall@{k}_exact"], row[f"recall@{k}_qrels"]
            assert float(of_exact) == pytest.approx(recall(ranked[:, :k], exact[:, :k]), abs=2e-3)
            assert float(of_qrels) == pytest.approx(recall(ranked[:, :k], relevant), abs=1e-6)


def test_every_sweep_is_there_and_loses_what_it_must(tuned: Tuned) -> None:
    rows = tuned.rows
    sweeps = {row["sweep"] for row in rows.values()}
    assert sweeps == {"ef", "pca", "candidates", "fusion", "quantization", "clusters"}
    found = {label: float(row["recall@10_exact"]) for label, row in rows.items()}
    assert "Note: ef makes no difference here" in tuned.done.stderr
    assert found["1 of 16 clusters"] < found["8 of 16 clusters"] <= 1.0
    assert found["1 bit, scores of the copies"] < found["1 bit, x4 rescored"]
    assert found["1 bit, scores of the copies"] < found["int8, scores of the copies"]
    assert float(rows["1 bit, x1 rescored"]["bits_per_passage_searched"]) == 24
    assert float(rows["int8, x1 rescored"]["bits_per_passage_searched"]) == 24 * 8
    # 24 floats and a byte for each of 24 dimensions
    memory = float(rows["int8, x1 rescored"]["memory_mb_computed"])
    assert memory == pytest.approx(PASSAGES * 24 * 5 / 1e6, abs=1e-3)


def test_the_collection_is_as_it_was_and_no_copy_is_left(tuned: Tuned) -> None:
    (only,) = tuned.collections()
    engine = tuned.connect()
    assert engine.resolve(tuned.name) == only
    assert engine.count(only, exact=True).count == PASSAGES
    assert OWNER not in (engine.get_collection(only).config.metadata or {})
    engine.close()


def test_the_written_settings_give_the_measured_recall_again(tuned: Tuned) -> None:
    file = tuned.out / "settings.yaml"
    (measured,) = [row for row in tuned.rows.values() if row["recommended"] == "True"]
    assert measured["legs"].startswith("dense:")
    assert "bm25:" in measured["legs"]
    assert read_file(file).collection.clusters == int(measured["clusters"])
    words = ["load", str(tuned.data.path), "--bundle", str(tuned.bundle), "--collection"]
    other = f"{tuned.name}.again"
    done = CliRunner().invoke(ingest_app, [*words, other, *tuned.where, "--options", str(file)])
    assert done.exit_code == 0, done.output
    where: dict[str, Any] = {tuned.where[0][2:]: tuned.where[1]}
    settings = read_settings(file)
    answers = {qrel.query_id: qrel.passage_id for qrel in tuned.data.qrels("dev")}
    with Retriever.open(other, bundle=tuned.bundle, settings=settings, **where) as retriever:
        hits = {q.query_id: retriever.search(q.text, k=10) for q in tuned.data.queries("dev")}
    again = np.mean(
        [answers[query] in {hit.passage_id for hit in found} for query, found in hits.items()]
    )
    # clusters, where they are recommended, are drawn anew by the load
    assert again == pytest.approx(float(measured["recall@10_qrels"]), abs=1.5 / QUERIES)
    CliRunner().invoke(ingest_app, ["drop", other, "--yes", *tuned.where])


def test_a_goal_that_nothing_meets_ends_in_one_line_after_the_report(
    tuned: Tuned, tmp_path: Path
) -> None:
    done = tuned.run("--out", tmp_path / "out", "--goal", "max recall@10, p95<=0.0001", *QUICK)
    assert done.exit_code == 1
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert "no setting meets 'max recall@10, p95<=0.0001'; the nearest is both legs" in error
    assert (tmp_path / "out" / "tune.csv").is_file()
    assert read_settings(tmp_path / "out" / "settings.yaml").legs


def test_fewer_passages_are_measured_on_a_copy_with_all_answers(
    tuned: Tuned, tmp_path: Path
) -> None:
    words = ("--out", tmp_path / "out", "--passages", "1000", "--sweeps", "ef")
    done = tuned.run(*words, "--goal", "max recall@100")
    assert done.exit_code == 0, done.output
    rows = tuned._replace(out=tmp_path / "out").rows
    assert {row["passages"] for row in rows.values()} == {"1000"}
    assert float(rows["exact"]["recall@100_qrels"]) > 0.5
    assert len(tuned.collections()) == 1


def test_the_page_opens_offline_and_nothing_is_cut_off(tuned: Tuned) -> None:
    page_file = (tuned.out / "tune.html").as_uri()
    with running_browser() as browser:
        for scheme, width in ((s, w) for s in ("light", "dark") for w in (360, 1200, 1600)):
            context = browser.new_context(
                viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
            )
            page = context.new_page()
            requests: list[str] = []
            page.on("request", lambda request, found=requests: found.append(request.url))
            page.on("pageerror", lambda error, found=requests: found.append(str(error)))
            page.goto(page_file)
            assert_nothing_is_cut_off(page)
            words = page.locator("figcaption").all_inner_texts()
            assert all(f"{QUERIES} queries" in text and "1,100 passages" in text for text in words)
            labels = page.locator("figure").first.inner_text()
            assert "p95 of one query, ms" in labels
            assert "recall@10 of exact" in labels
            shown = page.locator("pre").inner_text().splitlines()
            assert shown == (tuned.out / "settings.yaml").read_text().splitlines()
            assert requests == [page_file]
            context.close()


def test_every_curve_is_a_file_and_in_the_page(tuned: Tuned) -> None:
    curves = ("exactness", "quality", "memory", "bits", "ef", "candidates", "tower_weight")
    assert {file.stem for file in tuned.out.glob("*.png")} == {*curves}  # 1,100 passages fill 16
    for name in curves:
        assert (tuned.out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    shown = (tuned.out / "tune.html").read_text().count("<figure>")
    assert shown == len(curves)


def test_what_is_tied_with_the_recommended_setting_is_said_everywhere(tuned: Tuned) -> None:
    tied = [label for label, row in tuned.rows.items() if row["tied_with_recommended"] == "True"]
    (kept,) = [row for row in tuned.rows.values() if row["recommended"] == "True"]
    group = [kept, *(tuned.rows[label] for label in tied)]
    noise = max(0.05, np.sqrt(2) * max(float(row["p95_noise"]) for row in group))
    for row in group[1:]:  # all are within the noise of the fastest, so of each other twice
        assert float(row["memory_mb_computed"]) >= float(kept["memory_mb_computed"])
        assert float(row["p95_ms"]) <= float(kept["p95_ms"]) * (1 + noise) ** 2
    for text in (tuned.done.stdout, (tuned.out / "settings.yaml").read_text()):
        assert ("Tied with it in p95" in text) == bool(tied)
        assert all(label in text for label in tied[:1])


def test_a_copy_is_gone_after_ctrl_c(tuned: Tuned) -> None:
    def stop(line: str) -> None:
        if "quantization scalar" in line:
            copies.append([each for each in tuned.engine_collections(engine) if MARK in each])
            raise KeyboardInterrupt

    copies: list[list[str]] = []
    engine = tuned.connect()
    bundle = ModelBundle.load(tuned.bundle)
    retriever = Retriever(engine, tuned.name, bundle, settings=SearchSettings())
    judged = judged_queries(tuned.data, "dev", count=2)
    goal, sweeps = parse_goal("min p95"), ("quantization",)
    with pytest.raises(KeyboardInterrupt):
        tune(engine, retriever, *judged, goal=goal, sweeps=sweeps, say=stop)
    engine.close()
    assert [len(found) for found in copies] == [1]
    assert len(tuned.collections()) == 1


def test_a_killed_run_leaves_a_copy_that_the_next_one_removes(tuned: Tuned, tmp_path: Path) -> None:
    before = tuned.collections()
    words = tuned.words("--out", tmp_path / "out", "--sweeps", "quantization")
    running = subprocess.Popen([*TUNE, *words], stderr=subprocess.DEVNULL)
    until(lambda: tuned.collections() != before, seconds=60)
    refused = tuned.run("--out", tmp_path / "other", *QUICK)
    assert refused.exit_code == 1
    assert f"process {running.pid}" in refused.stderr
    running.kill()
    running.wait()
    (left,) = tuned.collections() - before
    assert left.startswith(f"{tuned.name}{MARK}")
    assert tuned.run("--out", tmp_path / "out", *QUICK, "--goal", "min p50").exit_code == 0
    assert tuned.collections() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--goal", "fast please"), r"cannot read 'fast please'; expected e\.g\. 'recall@10>="),
        (("--sweeps", "ef,speed"), r"unknown sweep 'speed'; expected some of ef, pca"),
        (("--split", "nowhere"), r"has no labelled query in split 'nowhere'; its splits: dev"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    tuned: Tuned, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    done = tuned.run("--out", tmp_path / "out", *words)
    assert done.exit_code == 1
    assert re.fullmatch(rf"Error: .*{said}[^\n]*\n", done.stderr), done.stderr
    assert not (tmp_path / "out").exists()


def test_the_default_search_is_always_measured(tuned: Tuned, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = tuned.run("--out", out, "--sweeps", "fusion", "--goal", "max recall@10")
    assert done.exit_code == 0, done.output
    rows = tuned._replace(out=out).rows
    assert rows["both legs 100"]["recommended"] == "True"
    assert "tower weight 5" in rows
