from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from topics import write_topics

from two_tower.models.data import Qrel
from two_tower.models.errors import DataError, TrainingError
from two_tower.models.examples.pairs import (
    HardNegatives,
    Labelled,
    PairSampler,
    draw_places,
    epoch_batches,
    hold_out,
    known_answers,
    read_labelled,
)
from two_tower.models.text.tokenizer import token_rows

# Query 0 is answered by passages 1 and 2, query 1 by 2, query 2 by 0.
RELEVANT = sparse.csr_matrix(np.array([[0, 1, 1, 0], [0, 0, 1, 0], [1, 0, 0, 0]], dtype=bool))
QUERIES = token_rows([[10], [11], [12]])
PASSAGES = token_rows([[20], [21, 21], [22], [23]])


def test_known_answers_agree_with_a_naive_loop() -> None:
    random = np.random.default_rng(0)
    relevant = random.random((20, 30)) < 0.2
    queries, passages = random.integers(0, 20, 12), random.integers(0, 30, 12)
    naive = {
        (i, j) for i in range(12) for j in range(12) if i != j and relevant[queries[i], passages[j]]
    }
    found = known_answers(sparse.csr_matrix(relevant), queries=queries, passages=passages)
    assert {tuple(cell) for cell in found.tolist()} == naive
    assert len(naive) > 10


def test_a_batch_holds_its_pairs_and_masks_other_answers() -> None:
    sampler = PairSampler(QUERIES, PASSAGES, relevant=RELEVANT)
    assert sampler.size == 4  # (0, 1), (0, 2), (1, 2), (2, 0)
    batch = sampler.batch(np.array([0, 2, 3]), np.random.default_rng(0))
    assert batch.queries.ids.tolist() == [10, 11, 12]
    assert batch.passages.ids.tolist() == [21, 21, 22, 20]
    # Passage 2, the positive of query 1, answers query 0 too.
    assert batch.masked.tolist() == [[0, 1]]


def hard_sampler(negatives: HardNegatives, per_query: int = 2) -> PairSampler:
    return PairSampler(
        QUERIES, PASSAGES, relevant=RELEVANT, negatives=negatives, per_query=per_query
    )


def test_hard_negatives_follow_the_positives_and_answers_among_them_are_masked() -> None:
    # Query 0 (answers 1 and 2) gets 3 and 0; query 1 (answer 2) gets 1 and 0; query 2 none.
    negatives = HardNegatives(np.array([[3, 0], [1, 0], [-1, -1]]))
    batch = hard_sampler(negatives).batch(np.array([0, 2, 3]), np.random.default_rng(0))
    rows = [int(ids[0]) - 20 for ids in np.split(batch.passages.ids, batch.passages.offsets[1:-1])]
    assert rows[:3] == [1, 2, 0]
    assert [sorted(rows[3:5]), sorted(rows[5:7])] == [[0, 3], [0, 1]]
    assert all(0 <= row < 4 for row in rows[7:])  # nothing mined: any passage
    answers = [{1, 2}, {2}, {0}]
    naive = {(i, j) for i in range(3) for j in range(9) if i != j and rows[j] in answers[i]}
    assert {tuple(cell) for cell in batch.masked.tolist()} == naive
    assert {(0, 1)} < naive
    assert batch.margins is None


def test_margins_are_the_teachers_and_unknown_ones_are_not_numbers() -> None:
    negatives = HardNegatives(
        np.array([[3, 0], [0, -1], [-1, -1]]),
        np.array([[1.0, np.nan], [4.0, np.nan], [np.nan, np.nan]], np.float32),
        np.array([10.0, 20.0, np.nan, 0.0], np.float32),  # of (0, 1), (0, 2), (1, 2), (2, 0)
    )
    sampler = hard_sampler(negatives, per_query=3)
    batch = sampler.batch(np.array([1, 2, 3]), np.random.default_rng(0))
    assert batch.margins is not None
    assert batch.margins.shape == (3, 3)
    assert batch.margins[0][np.isfinite(batch.margins[0])].tolist() == [19.0]
    assert np.isnan(batch.margins[1:]).all()
    place = int(np.flatnonzero(np.isfinite(batch.margins[0]))[0])
    assert batch.passages.ids[batch.passages.offsets[3 + place]] == 23


def test_places_are_drawn_without_repetition_and_evenly() -> None:
    rows = np.array([[5, 6, 7, 8], [5, -1, 7, -1], [-1, -1, -1, -1]])
    rng = np.random.default_rng(0)
    draws = np.stack([draw_places(rows, 3, rng=rng) for _ in range(400)])
    assert all(len(set(draw[0])) == 3 for draw in draws)
    assert all(sorted(draw[1]) == [-1, 0, 2] for draw in draws)
    assert (draws[:, 2] == -1).all()
    # Each of four places is drawn with probability 3/4: 300 of 400, standard deviation 8.7.
    assert all(265 < (draws[:, 0] == place).sum() < 335 for place in range(4))


def test_an_epoch_gives_each_pair_once_in_even_batches() -> None:
    relevant = sparse.csr_matrix(np.eye(10, dtype=bool))
    rows = token_rows([[i] for i in range(10)])
    sampler = PairSampler(rows, rows, relevant=relevant)

    def epoch(seed: int) -> list[list[int]]:
        rng = np.random.default_rng(seed)
        batches = epoch_batches(sampler, batch_size=4, rng=rng)
        return [batch.queries.ids.tolist() for batch in batches]

    assert [len(batch) for batch in epoch(0)] == [4, 3, 3]
    assert sorted(chain.from_iterable(epoch(0))) == list(range(10))
    assert epoch(0) == epoch(0)
    assert epoch(0) != epoch(1)


def test_reading_keeps_queries_with_an_answer(tmp_path: Path) -> None:
    data = write_topics(tmp_path / "DATA", topics=6)
    row_of = {p.passage_id: row for row, p in enumerate(data.passages())}
    train, dev = (read_labelled(data, split, row_of=row_of) for split in ("train", "dev"))
    assert (len(train.texts), len(dev.texts)) == (8, 4)
    passages = list(data.passages())
    for labelled, split in ((train, "train"), (dev, "dev")):
        qrels: list[Qrel] = data.qrels(split)
        expected = {(q.query_id, q.passage_id) for q in qrels}
        texts = {q.query_id: q.text for q in data.queries()}
        rows, columns = labelled.relevant.nonzero()
        assert {texts[query_id] for query_id in labelled.query_ids} == set(labelled.texts)
        found = {
            (labelled.texts[r], passages[c].passage_id) for r, c in zip(rows, columns, strict=True)
        }
        assert found == {(texts[q], p) for q, p in expected}


def test_unusable_judgements_are_errors(tmp_path: Path) -> None:
    data = write_topics(tmp_path / "DATA", topics=3)
    with pytest.raises(DataError, match="no labelled query in split 'weak'"):
        read_labelled(data, "weak", row_of={})
    with pytest.raises(TrainingError, match="judges passage 'p1-0', which it does not hold"):
        read_labelled(data, "train", row_of={})
    none = write_topics(tmp_path / "NONE", topics=3, relevance=0)
    with pytest.raises(TrainingError, match="no labelled query with an answer"):
        read_labelled(none, "train", row_of={"p1-0": 0})


def labelled(count: int) -> Labelled:
    names = [str(i) for i in range(count)]
    relevant = sparse.csr_matrix(np.eye(count, dtype=bool))
    return Labelled(names, relevant, [f"q{name}" for name in names])


def test_holding_out_splits_queries_without_overlap() -> None:
    split = hold_out(labelled(20), share=0.25, seed=0)
    assert len(split.dev.texts) == 5
    assert sorted(split.train.texts + split.dev.texts) == sorted(labelled(20).texts)
    columns = split.dev.relevant.nonzero()[1]
    assert [str(c) for c in columns] == split.dev.texts
    assert split.dev.query_ids == [f"q{c}" for c in columns]
    assert hold_out(labelled(20), share=0.25, seed=0).dev.texts == split.dev.texts
    assert hold_out(labelled(20), share=0.25, seed=1).dev.texts != split.dev.texts


def test_few_queries_still_give_two_parts() -> None:
    assert [len(part.texts) for part in hold_out(labelled(2), share=0.1, seed=0)] == [1, 1]
    assert [len(part.texts) for part in hold_out(labelled(2), share=0.9, seed=0)] == [1, 1]
    assert [len(part.texts) for part in hold_out(labelled(1), share=0.1, seed=0)] == [1, 0]
