import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import sparse
from topics import ANALYZER, QUICK, mine_file, train_bundle, write_topics
from typer.testing import CliRunner

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.cli import app
from two_tower.models.config import from_mapping, with_values
from two_tower.models.data import Dataset
from two_tower.models.errors import ConfigError, DataError, TrainingError
from two_tower.models.examples.mining import (
    PairScorer,
    cached_negatives,
    read_about,
    read_negatives,
)
from two_tower.models.examples.negatives import (
    OUTCOMES,
    Candidates,
    Mined,
    MiningConfig,
    bm25_candidates,
    choose_negatives,
    dense_candidates,
    text_groups,
)
from two_tower.models.examples.pairs import Labelled, read_labelled
from two_tower.models.training.config import TrainConfig
from two_tower.models.training.run import Inputs
from two_tower.models.training.tracking import read_metrics


def labelled(relevant: list[list[int]], texts: list[str] | None = None) -> Labelled:
    rows = sparse.csr_matrix(np.array(relevant, dtype=bool))
    names = [f"q{i}" for i in range(len(relevant))]
    return Labelled(texts or names, rows, names)


def candidates(
    rows: list[list[int]], scores: list[list[float]], answers: list[float]
) -> Candidates:
    return Candidates("bm25", np.array(rows), np.array(scores, np.float32), np.array(answers))


def unguarded(**values: object) -> MiningConfig:
    return from_mapping(MiningConfig, {"first_rank": 1, "max_share": None, **values})


def kept(mined: Mined) -> list[list[int]]:
    return [[row for row in rows if row >= 0] for rows in mined.rows.tolist()]


DISTINCT = np.arange(6)
# Query 0 is answered by passage 0, query 1 by 1 and 2.
TWO = labelled([[1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]])
FOUND = candidates(
    [[3, 0, 4, 5, 1], [2, 5, 1, 4, -1]],
    [[9.0, 8.0, 7.0, 4.0, 3.0], [6.0, 5.0, 4.5, 1.0, 0.0]],
    [8.0, 6.0],
)


@pytest.mark.parametrize(
    ("guards", "expected"),
    [
        ({}, [[3, 4, 5, 1], [5, 4]]),
        ({"per_query": 1}, [[3], [5]]),
        ({"first_rank": 2}, [[4, 5, 1], [5, 4]]),
        ({"last_rank": 3}, [[3, 4], [5]]),
        ({"max_share": 0.8}, [[5, 1], [4]]),  # at most 6.4, at most 4.8
        ({"margin": 3.5}, [[5, 1], [4]]),  # at most 4.5, at most 2.5
        ({"max_score": 5.0}, [[5, 1], [5, 4]]),
    ],
)
def test_each_guard_by_hand(guards: dict[str, float], expected: list[list[int]]) -> None:
    config = unguarded(source="bm25", **guards)
    mined = choose_negatives(TWO, [FOUND], config, same_text=DISTINCT)
    assert kept(mined) == expected
    considered = sum(
        row >= 0 for rows in FOUND.rows for row in rows[config.first_rank - 1 : config.last_rank]
    )
    assert sum(mined.counts["bm25"].values()) == considered
    assert mined.counts["bm25"]["kept"] == sum(map(len, expected))


def test_ranks_and_scores_are_the_sources() -> None:
    config = unguarded(source="bm25", per_query=2)
    mined = choose_negatives(TWO, [FOUND], config, same_text=DISTINCT)
    assert mined.rows.tolist() == [[3, 4], [5, 4]]
    assert mined.ranks.tolist() == [[1, 3], [2, 4]]
    assert mined.scores.tolist() == [[9, 7], [5, 1]]


def test_copies_of_an_answer_and_answers_of_the_same_question_are_no_negatives() -> None:
    texts = ["An  Answer", "b", "c", "an answer", "e", "f"]
    mined = choose_negatives(TWO, [FOUND], unguarded(), same_text=text_groups(texts))
    assert 3 not in mined.rows[0]
    assert mined.counts["bm25"][OUTCOMES[3]] == 1
    # Passages 1 and 2 answer query 1, which reads like query 0.
    again = labelled([[1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]], ["What is x", "what is  X"])
    mined = choose_negatives(again, [FOUND], unguarded(), same_text=DISTINCT)
    assert kept(mined) == [
        [3, 4, 5],
        [5, 4],
    ]


def test_two_sources_take_turns_and_share_their_doubts() -> None:
    dense = FOUND._replace(
        source="dense",
        rows=np.array([[5, 3, 1, 0, 2], [4, 3, 0, 1, 2]]),
        scores=np.array([[0.9, 0.5, 0.4, 0.3, 0.2], [0.5, 0.4, 0.3, 0.2, 0.1]], np.float32),
        answers=np.array([0.3, 0.2], np.float32),
    )
    mined = choose_negatives(TWO, [FOUND, dense], unguarded(per_query=3), same_text=DISTINCT)
    assert mined.rows.tolist() == [[3, 5, 4], [4, 5, 3]]
    assert mined.sources.tolist() == [[0, 1, 0], [1, 0, 1]]
    assert mined.ranks.tolist() == [[1, 1, 3], [1, 2, 2]]
    # To the towers passages 5 and 3 (query 0) and 4 (query 1) look like answers.
    config = unguarded(per_query=9, max_score=0.45)
    bm25 = FOUND._replace(scores=FOUND.scores / 100)
    doubted = choose_negatives(TWO, [bm25, dense], config, same_text=DISTINCT)
    assert kept(doubted) == [
        [4, 1, 2],
        [5, 3, 0],
    ]
    assert doubted.counts["bm25"][OUTCOMES[7]] == 3


def test_dense_candidates_agree_with_a_full_sort() -> None:
    random = np.random.default_rng(0)
    queries, passages = (random.standard_normal((n, 8)).astype(np.float32) for n in (300, 50))
    answers = random.random((300, 50)) < 0.1
    answers[:, 3] |= ~answers.any(axis=1)
    relevant = sparse.csr_matrix(answers)
    found = dense_candidates(queries, passages, relevant=relevant, depth=7)
    scores = queries @ passages.T
    assert np.array_equal(found.rows, np.argsort(-scores, axis=1)[:, :7])
    best = [scores[i][answers[i]].max() for i in range(300)]
    assert found.answers == pytest.approx(best, rel=1e-5)
    few = dense_candidates(queries, passages, relevant=relevant, depth=60)
    assert (few.rows[:, 50:] == -1).all()


def test_bm25_candidates_name_the_best_answers_score() -> None:
    texts = ["red cat", "blue cat", "green dog"]
    queries = labelled([[1, 1, 0], [0, 0, 1]], ["red cat", "dog"])
    found = bm25_candidates(texts, queries, analyzer=ANALYZER, depth=2)
    assert found.rows.tolist() == [[0, 1], [2, -1]]
    assert found.answers.tolist() == [found.scores[0, 0], found.scores[1, 0]]


def test_by_default_the_top_and_what_scores_like_the_answer_are_left_out() -> None:
    rows = [[*range(1, 21)]]
    scores = [[float(score) for score in range(30, 10, -1)]]  # rank 10 scores 21
    found, query = candidates(rows, scores, [20.0]), labelled([[1] + [0] * 20])
    mined = choose_negatives(query, [found], MiningConfig(), same_text=np.arange(21))
    assert mined.ranks[0].tolist() == list(range(12, 20))  # at most 19 = .95 * 20


@pytest.mark.parametrize(
    "values", [{"per_query": 0}, {"first_rank": 0}, {"last_rank": 9}, {"max_share": 0.0}]
)
def test_impossible_mining_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="mining"):
        MiningConfig(**values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_topics(tmp_path_factory.mktemp("topics") / "DATA")


@pytest.fixture(scope="module")
def bundle(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("start") / "bundle"
    train_bundle(data, out, config=quick())
    return out


def quick(**dotted: object) -> TrainConfig:
    named = {key.replace("__", "."): value for key, value in dotted.items()}
    return from_mapping(TrainConfig, with_values(QUICK, named))


def length(_: list[str], passages: list[str]) -> np.ndarray:
    return np.array([len(text) for text in passages], np.float32)


def test_the_file_holds_answers_and_negatives(data: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "mined.parquet"
    counts = mine_file(
        data,
        out,
        split="train",
        config=unguarded(source="bm25", per_query=1),
        teacher=PairScorer("length", length),
    )
    rows = pq.read_table(out).to_pylist()
    answers = {(q.query_id, q.passage_id) for q in data.qrels("train")}
    texts = {passage.passage_id: passage.content for passage in data.passages()}
    assert {(r["query_id"], r["passage_id"]) for r in rows if r["relevance"]} == answers
    negatives = [row for row in rows if not row["relevance"]]
    assert counts["bm25"]["kept"] == len(negatives) > 30
    for row in negatives:
        # The topic's other passage shares words with the query and is not its answer.
        topic = row["query_id"][1:].split("-")[0]
        assert row["passage_id"].split("-")[0] == f"p{topic}"
        assert (row["query_id"], row["passage_id"]) not in answers
    assert all(row["teacher_score"] == len(texts[row["passage_id"]]) for row in rows)
    about = read_about(out)
    assert about["data"] == data.content_hash
    assert about["mining"] == dataclasses.asdict(unguarded(source="bm25", per_query=1))
    assert (about["teacher"], about["bundle"], about["counts"]) == ("length", None, counts)


def test_reading_gives_rows_and_scores_back(data: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "mined.parquet"
    config = unguarded(source="bm25")
    mine_file(data, out, split="train", config=config, teacher=PairScorer("length", length))
    passages = list(data.passages())
    row_of = {passage.passage_id: row for row, passage in enumerate(passages)}
    some = read_labelled(data, "train", row_of=row_of).take(np.arange(3, 20))
    found = read_negatives(out, data, some)
    expected: dict[str, list[int]] = {query_id: [] for query_id in some.query_ids}
    for row in pq.read_table(out).to_pylist():
        if row["query_id"] in expected and not row["relevance"]:
            expected[row["query_id"]].append(row_of[row["passage_id"]])
    assert [[r for r in rows if r >= 0] for rows in found.rows.tolist()] == list(expected.values())
    assert found.scores is not None
    assert found.positives is not None
    sizes = np.array([len(passage.content) for passage in passages])
    assert np.array_equal(found.scores[found.rows >= 0], sizes[found.rows[found.rows >= 0]])
    assert np.array_equal(found.positives, sizes[some.relevant.nonzero()[1]])
    mine_file(data, out, split="train", config=config)
    assert read_negatives(out, data, some).scores is None


def test_files_that_do_not_fit_are_refused_in_one_line(data: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "mined.parquet"
    mine_file(data, out, split="train", config=unguarded(source="bm25"))
    other = write_topics(tmp_path / "OTHER", seed=1)
    with pytest.raises(DataError, match=f"mined from DATA {data.content_hash[:8]}, .* mine again"):
        train_bundle(other, tmp_path / "b", config=quick(), inputs=Inputs(out))
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        train_bundle(data, tmp_path / "b", config=quick(), inputs=Inputs(tmp_path / "missing"))
    with pytest.raises(DataError, match="no file of mined negatives"):
        train_bundle(
            data, tmp_path / "b", config=quick(), inputs=Inputs(data.path / "queries.parquet")
        )
    mine_file(data, out, split="train", config=unguarded(source="bm25", max_score=1e-9))
    with pytest.raises(DataError, match="no hard negative for the train queries"):
        train_bundle(data, tmp_path / "b", config=quick(), inputs=Inputs(out))
    assert not (tmp_path / "b").exists()


def test_mining_and_training_by_command(data: Dataset, bundle: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "mined.parquet", tmp_path / "quick.yaml"
    config.write_text("labelled: {epochs: 2, hard_negatives: 2}\npretrain: {epochs: 0}\n")
    runner = CliRunner()
    arguments = ["mine", str(data.path), "--out", str(out), "--bundle", str(bundle)]
    mined = runner.invoke(app, [*arguments, "--range", "2:20", "--max-share", "0.99"])
    assert mined.exit_code == 0, mined.output
    assert "considered" in mined.output
    assert read_about(out)["bundle"] == ModelBundle.load(bundle).fingerprint
    train = ["train", str(data.path), "--config", str(config), "--negatives", str(out)]
    trained = runner.invoke(app, [*train, "--out", str(tmp_path / "b")])
    assert trained.exit_code == 0, trained.output
    without = runner.invoke(app, [*train[:-2], "--out", str(tmp_path / "c")])
    assert without.exit_code == 0, without.output
    first, second = (read_metrics(tmp_path / f"{name}.run")[0]["loss"] for name in ("b", "c"))
    assert first > second  # the same step with more and harder rivals


def test_wrong_usage_of_the_command(data: Dataset, tmp_path: Path) -> None:
    runner = CliRunner()
    base = ["mine", str(data.path), "--out", str(tmp_path / "x.parquet")]
    for extra, message in (
        (["--source", "dense"], "needs towers: add --bundle BUNDLE"),
        (["--range", "5"], "--range is '5', expected FIRST:LAST"),
        (["--source", "tfidf"], "mining.source is 'tfidf', expected 'bm25' or 'dense' or 'both'"),
        (["--split", "weak"], "no labelled query in split 'weak'"),
    ):
        result = runner.invoke(app, [*base, *extra])
        assert result.exit_code == 1
        assert message in result.output


def test_margins_of_a_teacher_can_be_learnt(data: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "mined.parquet"
    config = unguarded(source="bm25")
    mine_file(data, out, split="train", config=config, teacher=PairScorer("length", length))
    settings = quick(labelled__loss="margin_mse", labelled__epochs=2)
    train_bundle(data, tmp_path / "b", config=settings, inputs=Inputs(out))
    losses = [r["loss"] for r in read_metrics(tmp_path / "b.run") if r["phase"] == "labelled"]
    assert losses[1] < losses[0]


def test_a_loss_without_its_teacher_and_unused_negatives_are_refused(
    data: Dataset, tmp_path: Path
) -> None:
    plain, scored = tmp_path / "plain.parquet", tmp_path / "scored.parquet"
    config = unguarded(source="bm25")
    mine_file(data, plain, split="train", config=config)
    mine_file(data, scored, split="train", config=config, teacher=PairScorer("length", length))
    for settings, path, message in (
        ({"labelled__loss": "margin_mse"}, None, "loss margin_mse needs a teacher's scores"),
        ({"labelled__loss": "margin_mse"}, plain, "loss margin_mse needs a teacher's scores"),
        ({"labelled__hard_negatives": 0}, plain, "hard_negatives is 0, expected 1 or more"),
        ({"labelled__loss": "margin_mse", "hard__epochs": 1}, scored, "hard.epochs is 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            train_bundle(data, tmp_path / "b", config=quick(**settings), inputs=Inputs(path))
    assert not (tmp_path / "b.run").exists()


def test_going_on_with_other_negatives_is_refused(data: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "mined.parquet"

    def stop(line: str) -> None:
        if line.startswith("labelled 1/"):
            raise KeyboardInterrupt

    mine_file(data, out, split="train", config=unguarded(source="bm25"))
    with pytest.raises(KeyboardInterrupt):
        train_bundle(data, tmp_path / "b", config=quick(), inputs=Inputs(out), notify=stop)
    mine_file(data, out, split="train", config=unguarded(source="bm25", per_query=1))
    with pytest.raises(TrainingError, match="unfinished run with negatives = "):
        train_bundle(data, tmp_path / "b", config=quick(), inputs=Inputs(out))


HARD = {
    "hard__epochs": 3,
    "hard__batch_size": 16,
    "hard__learning_rate": 0.01,
    "hard__patience": 3,
    "hard__negatives": 2,
    "hard__mining__source": "both",
    "hard__mining__first_rank": 1,
}


def test_the_hard_phase_mines_and_resumes_exactly(data: Dataset, tmp_path: Path) -> None:
    config = quick(**HARD)
    whole = train_bundle(data, tmp_path / "whole", config=config)
    records = read_metrics(tmp_path / "whole.run")
    assert [r["phase"] for r in records].count("hard") == 3
    assert {p.name for p in (tmp_path / "whole.run").iterdir()} >= {"finished.json"}
    assert not (tmp_path / "whole.run" / "negatives.safetensors").exists()
    for said in ("hard 1/3", "hard 2/3"):

        def stop(line: str, wanted: str = said) -> None:
            if line.startswith(wanted):
                raise KeyboardInterrupt

        out = tmp_path / said[:6].replace(" ", "")
        with pytest.raises(KeyboardInterrupt):
            train_bundle(data, out, config=config, notify=stop)
        assert train_bundle(data, out, config=config).fingerprint == whole.fingerprint


def test_mined_lists_are_made_once(tmp_path: Path) -> None:
    mined = choose_negatives(TWO, [FOUND], unguarded(), same_text=DISTINCT)
    first = cached_negatives(tmp_path / "n.safetensors", lambda: mined)
    again = cached_negatives(tmp_path / "n.safetensors", lambda: pytest.fail("mined again"))
    assert np.array_equal(first.rows, again.rows)
    assert np.array_equal(first.rows, mined.rows)
