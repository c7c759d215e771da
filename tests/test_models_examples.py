from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from topics import write_topics

from models.data import Qrel
from models.errors import DataError, TrainingError
from models.examples import (
    Labelled,
    PairSampler,
    epoch_batches,
    hold_out,
    known_answers,
    read_labelled,
)
from models.tokenizer import token_rows

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
    return Labelled([str(i) for i in range(count)], sparse.csr_matrix(np.eye(count, dtype=bool)))


def test_holding_out_splits_queries_without_overlap() -> None:
    split = hold_out(labelled(20), share=0.25, seed=0)
    assert len(split.dev.texts) == 5
    assert sorted(split.train.texts + split.dev.texts) == sorted(labelled(20).texts)
    columns = split.dev.relevant.nonzero()[1]
    assert [str(c) for c in columns] == split.dev.texts
    assert hold_out(labelled(20), share=0.25, seed=0).dev.texts == split.dev.texts
    assert hold_out(labelled(20), share=0.25, seed=1).dev.texts != split.dev.texts


def test_few_queries_still_give_two_parts() -> None:
    assert [len(part.texts) for part in hold_out(labelled(2), share=0.1, seed=0)] == [1, 1]
    assert [len(part.texts) for part in hold_out(labelled(2), share=0.9, seed=0)] == [1, 1]
    assert [len(part.texts) for part in hold_out(labelled(1), share=0.1, seed=0)] == [1, 1]
