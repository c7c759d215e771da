import numpy as np
import pytest
import torch
from scipy import sparse

from two_tower.models.training.dev_metrics import ranking_metrics


def test_metrics_by_hand() -> None:
    # Passages 0..11 score 12, 11, … 1 for query 0 and the other way round for query 1.
    scores = np.array([np.arange(12, 0, -1), np.arange(1, 13)], dtype=np.float32)
    relevant = np.zeros((2, 12), dtype=bool)
    relevant[0, [0, 4]] = True  # ranks 1 and 5
    relevant[1, 0] = True  # rank 12
    metrics = ranking_metrics(
        torch.eye(2), torch.from_numpy(scores.T.copy()), relevant=sparse.csr_matrix(relevant)
    )
    assert metrics == pytest.approx(
        {
            "recall@1": (1 / 2 + 0) / 2,
            "recall@3": (1 / 2 + 0) / 2,
            "recall@10": (2 / 2 + 0) / 2,
            "recall@100": (2 / 2 + 1) / 2,
            "mrr@10": (1 / 1 + 0) / 2,
        }
    )


def test_metrics_agree_with_a_naive_loop() -> None:
    random = np.random.default_rng(0)
    queries = random.normal(size=(300, 8)).astype(np.float32)
    passages = random.normal(size=(500, 8)).astype(np.float32)
    relevant = random.random((300, 500)) < 0.01
    relevant[:, 0] = True
    recall, reciprocal = [], []
    for query, answers in zip(queries, relevant, strict=True):
        ranked = np.argsort(-(passages @ query))
        wanted = set(np.flatnonzero(answers))
        recall.append(len(wanted & set(ranked[:10])) / len(wanted))
        ranks = [rank for rank, row in enumerate(ranked[:10], 1) if row in wanted]
        reciprocal.append(1 / ranks[0] if ranks else 0)
    metrics = ranking_metrics(
        torch.from_numpy(queries), torch.from_numpy(passages), relevant=sparse.csr_matrix(relevant)
    )
    assert metrics["recall@10"] == pytest.approx(np.mean(recall))
    assert metrics["mrr@10"] == pytest.approx(np.mean(reciprocal))
