from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from two_tower.models.bundle.fusion import TOWER_WEIGHT
from two_tower.models.examples.candidates import CandidateLists, candidate_lists
from two_tower.models.examples.pairs import Labelled
from two_tower.models.networks.cross_config import CrossConfig
from two_tower.models.networks.cross_scorer import CrossScorer, scorer_arrays
from two_tower.models.text.bm25 import Bm25Index
from two_tower.models.text.tokenizer import token_rows
from two_tower.models.training.checkpoint import Checkpoint, RunFolder
from two_tower.models.training.cross_training import (
    CrossTrainer,
    RankingExamples,
    draw_lists,
    score_lists,
)
from two_tower.models.training.out_of_fold import narrowed
from two_tower.models.training.tracking import Tracker, WandbOptions
from two_tower.models.vectors import Vectors, normalized
from two_tower.retriever.collection.bm25_vectors import EngineAnalyzer

WORDS = ["apple", "river", "stone", "cloud", "tiger", "violin", "market", "engine", "garden"]
QUIET = WandbOptions()


def made_texts(count: int, *, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(2, 9))) for _ in range(count)]


def made_vectors(count: int, *, seed: int) -> np.ndarray:
    return normalized(np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32))


def labelled(queries: list[str], answers: list[int], *, passages: int) -> Labelled:
    rows = np.arange(len(queries))
    shape = (len(queries), passages)
    relevant = sparse.csr_matrix((np.ones(len(rows), bool), (rows, answers)), shape=shape)
    return Labelled(texts=queries, relevant=relevant, query_ids=[f"q{i}" for i in rows])


def test_candidates_are_the_best_of_what_both_legs_propose() -> None:
    texts, queries = made_texts(300, seed=0), made_texts(40, seed=1)
    vectors = Vectors(made_vectors(40, seed=2), made_vectors(300, seed=3))
    index = Bm25Index(texts, EngineAnalyzer())
    answers = np.random.default_rng(4).integers(0, 300, 40).tolist()
    found = candidate_lists(labelled(queries, answers, passages=300), vectors, index, size=20)

    ranked = index.search(queries, 300)
    for i in range(40):
        bm25 = np.zeros(300)
        known = ranked.rows[i] >= 0
        bm25[ranked.rows[i][known]] = ranked.scores[i][known]
        cosine = vectors.passages @ vectors.queries[i]
        legs = {*ranked.rows[i][:100][known[:100]], *np.argsort(-cosine, kind="stable")[:100]}
        best = sorted(legs, key=lambda row: -(bm25[row] + TOWER_WEIGHT * cosine[row]))[:20]
        assert found.rows[i].tolist() == best
        assert found.bm25[i] == pytest.approx(bm25[best], abs=1e-4)
        assert found.cosine[i] == pytest.approx(cosine[best], abs=1e-5)
        assert found.relevant[i].tolist() == [row == answers[i] for row in best]


def test_a_corpus_smaller_than_a_list_is_listed_whole() -> None:
    index = Bm25Index(["apple river", "stone cloud", "tiger"], EngineAnalyzer())
    vectors = Vectors(made_vectors(1, seed=0), made_vectors(3, seed=1))
    found = candidate_lists(labelled(["apple"], [2], passages=3), vectors, index, size=50)
    assert sorted(found.rows[0]) == [0, 1, 2]
    assert found.relevant[0].sum() == 1


def test_drawn_lists_begin_with_an_answer_and_hold_no_other() -> None:
    config = CrossConfig(negatives=3, pool=6)
    relevant = np.zeros((200, 10), dtype=bool)
    relevant[:, [1, 8]] = True
    chosen = draw_lists(relevant, config, np.random.default_rng(0))
    assert chosen.shape == (200, 4)
    assert set(chosen[:, 0]) == {1, 8}
    assert set(chosen[:, 1:].ravel()) == {0, 2, 3, 4, 5}  # the pool without its answer
    assert all(len(set(row)) == 4 for row in chosen.tolist())


def test_narrowed_vectors_keep_cosines_best() -> None:
    random = np.random.default_rng(0)
    flat = random.normal(size=(200, 5)) @ random.normal(size=(5, 16))  # of rank 5
    vectors = flat.astype(np.float32)
    narrow = narrowed(vectors, 5)
    assert narrow.shape == (200, 5)
    unit = normalized(vectors)
    assert narrow @ narrow.T == pytest.approx(unit @ unit.T, abs=1e-4)
    assert narrowed(vectors, 99) == pytest.approx(unit)


CONFIG = CrossConfig(
    epochs=4, negatives=4, pool=8, batch_size=16, learning_rate=0.02, dim=8, hidden=4
)


def first_word_task() -> RankingExamples:
    """Only the candidate whose first token is the query's answers; other stages know nothing."""
    random = np.random.default_rng(0)
    queries = random.integers(1, 40, 160)
    passages, rows = [], []
    for query in queries:
        own = [[int(query), *random.integers(1, 40, 5).tolist()]]
        other = [[*random.integers(1, 40, 5).tolist(), int(query)] for _ in range(7)]
        rows.append(np.arange(len(passages), len(passages) + 8))
        passages += own + other
    relevant = np.zeros((160, 8), dtype=bool)
    relevant[:, 0] = True
    nothing = np.zeros((160, 8), dtype=np.float32)
    lists = CandidateLists(np.stack(rows), nothing, nothing, relevant)
    return RankingExamples(token_rows([[int(q)] for q in queries]), token_rows(passages), lists)


def made_scorer(config: CrossConfig) -> CrossScorer:
    torch.manual_seed(1)
    return CrossScorer(torch.randn(40, 8), torch.ones(40), config=config)


def train(folder: Path, config: CrossConfig, *, resumed: Checkpoint | None = None) -> CrossScorer:
    scorer = made_scorer(config)
    folder.mkdir(exist_ok=True)
    with Tracker(folder, config={}, wandb=QUIET) as tracker:
        trainer = CrossTrainer(scorer, config, RunFolder(folder), tracker, 0, lambda line: None)
        trainer.run(first_word_task(), 2, towers={}, resumed=resumed)
    return scorer


@pytest.mark.parametrize("recurrent", [True, False])
def test_training_learns_what_only_reading_together_shows(tmp_path: Path, recurrent: bool) -> None:
    config = replace(CONFIG, recurrent=recurrent, epochs=8)
    reading = first_word_task()
    before = score_lists(made_scorer(config), reading)
    after = score_lists(train(tmp_path / "run", config), reading)
    assert (before.argmax(axis=1) == 0).mean() < 0.7
    assert (after.argmax(axis=1) == 0).mean() > 0.95


def test_an_interrupted_training_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", CONFIG)

    class StoppedError(Exception):
        pass

    folder = tmp_path / "broken"
    folder.mkdir()

    def stop_after_two(line: str) -> None:
        if line.startswith("cross 3/"):
            raise StoppedError

    with Tracker(folder, config={}, wandb=QUIET) as tracker:
        scorer = made_scorer(CONFIG)
        trainer = CrossTrainer(scorer, CONFIG, RunFolder(folder), tracker, 0, stop_after_two)
        with pytest.raises(StoppedError):
            trainer.run(first_word_task(), 2, towers={}, resumed=None)
    checkpoint = RunFolder(folder).load()
    assert checkpoint.progress.epoch == 2
    resumed = train(folder, CONFIG, resumed=checkpoint)
    expected, found = scorer_arrays(whole), scorer_arrays(resumed)
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_a_teacher_is_listened_to(tmp_path: Path) -> None:
    config = replace(CONFIG, teacher_weight=1.0, teacher_temperature=1.0, epochs=8)
    reading = first_word_task()
    wanted = np.zeros((160, 8), dtype=np.float32)
    wanted[:, 0] = -5.0  # the teacher likes everything but the labelled answer
    scorer = made_scorer(config)
    folder = tmp_path / "run"
    folder.mkdir()
    with Tracker(folder, config={}, wandb=QUIET) as tracker:
        trainer = CrossTrainer(scorer, config, RunFolder(folder), tracker, 0, lambda line: None)
        taught = reading._replace(teacher=wanted)
        trainer.run(taught, 2, towers={}, resumed=None)
    found = score_lists(scorer, reading)
    assert (found.argmin(axis=1) == 0).mean() > 0.95
