from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional

from two_tower.models.config import from_mapping, with_values
from two_tower.models.errors import ConfigError, TrainingError
from two_tower.models.examples.pairs import PairSampler
from two_tower.models.networks.tokens import Tokens
from two_tower.models.networks.tower_config import TowerConfig
from two_tower.models.networks.towers import TwoTower
from two_tower.models.networks.word2vec import random_vectors
from two_tower.models.objectives.labelled import HardConfig, LabelledConfig, labelled_loss
from two_tower.models.objectives.losses import Encoded, in_batch_softmax, matryoshka_loss
from two_tower.models.text.tokenizer import token_rows
from two_tower.models.training.checkpoint import Checkpoint, Progress, RunFolder, parts
from two_tower.models.training.config import TrainConfig
from two_tower.models.training.loop import (
    Phase,
    Trainer,
    batch_loss,
    optimizer_arrays,
    rate_factor,
    restore_optimizer,
)
from two_tower.models.training.tracking import Tracker, WandbOptions, read_metrics

COUNT = 16


@pytest.fixture
def sampler() -> PairSampler:
    """Query i holds token i, its passage token 20 + i: nothing in common but the label."""
    queries = token_rows([[i] for i in range(COUNT)])
    passages = token_rows([[20 + i, 40] for i in range(COUNT)])
    return PairSampler(queries, passages, relevant=sparse.csr_matrix(np.eye(COUNT, dtype=bool)))


def new_towers() -> TwoTower:
    vectors = random_vectors(41, 16, seed=0)
    return TwoTower.start(
        TowerConfig(dim=16), vectors=vectors, weights=np.ones(41, dtype=np.float32)
    )


@pytest.fixture
def tracker(tmp_path: Path) -> Iterator[Tracker]:
    with Tracker(tmp_path, config={}, wandb=WandbOptions()) as opened:
        yield opened


def phase(sampler: PairSampler, config: LabelledConfig, patience: int | None = None) -> Phase:
    margin = config.margin if config.loss == "triplet" else None
    return Phase(
        "labelled",
        sampler,
        labelled_loss(config),
        config.epochs,
        config.batch_size,
        config.learning_rate,
        patience,
        margin,
    )


def test_matryoshka_is_the_mean_over_the_lengths() -> None:
    random = torch.Generator().manual_seed(0)
    queries, passages = (
        functional.normalize(torch.randn(5, 8, generator=random), dim=1) for _ in range(2)
    )
    masked = torch.zeros(5, 5, dtype=torch.bool)

    def plain(batch: Encoded) -> Tensor:
        return in_batch_softmax(batch, temperature=0.1)

    expected = []
    for dim in (8, 4, 2):
        q, p = queries[:, :dim].double().numpy(), passages[:, :dim].double().numpy()
        cosines = (q @ p.T) / np.outer(np.linalg.norm(q, axis=1), np.linalg.norm(p, axis=1)) / 0.1
        rows = -np.log(np.exp(cosines.diagonal()) / np.exp(cosines).sum(axis=1))
        columns = -np.log(np.exp(cosines.diagonal()) / np.exp(cosines).sum(axis=0))
        expected.append((rows.mean() + columns.mean()) / 2)
    loss = matryoshka_loss(plain, (4, 2))(Encoded(queries, passages, masked))
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-5)
    assert matryoshka_loss(plain, ()) is plain


def test_matryoshka_dims_fit_the_tower() -> None:
    with pytest.raises(ConfigError, match=r"matryoshka_dims are \[300\].*tower.dim \(256\)"):
        TrainConfig(matryoshka_dims=(300,))
    with pytest.raises(ConfigError, match="1 or more"):
        TrainConfig(matryoshka_dims=(0,))


@pytest.mark.parametrize("config", [LabelledConfig(), LabelledConfig(loss="triplet")])
def test_one_batch_can_be_learnt_by_heart(sampler: PairSampler, config: LabelledConfig) -> None:
    towers = new_towers()
    batch = sampler.batch(np.arange(COUNT), np.random.default_rng(0))
    loss = labelled_loss(config)
    optimizer = torch.optim.Adam(towers.parameters(), lr=0.05)
    first = batch_loss(towers, batch, loss=loss).item()
    for _ in range(200):
        optimizer.zero_grad()
        current = batch_loss(towers, batch, loss=loss)
        current.backward()
        optimizer.step()
    assert first > 0.1
    assert current.item() < 0.001


def run(folder: Path, tracker: Tracker, phases: list[Phase], recalls: list[float]) -> TwoTower:
    """Train with an evaluation that gives `recalls` one after the other."""
    towers, given = new_towers(), iter(recalls)
    trainer = Trainer(
        towers, lambda: {"recall@10": next(given), "cosine": 0.0}, RunFolder(folder), tracker, 0
    )
    trainer.run(phases)
    return towers


def test_stopping_early_goes_back_to_the_best(
    sampler: PairSampler, tmp_path: Path, tracker: Tracker
) -> None:
    config = LabelledConfig(epochs=9, batch_size=8, learning_rate=0.05)
    # Before any epoch .1, then .5 in epoch 1, then worse for two epochs.
    stopped = run(
        tmp_path, tracker, [phase(sampler, config, patience=2)], [0.1, 0.5, 0.4, 0.5, 0.9]
    )
    assert [record["epoch"] for record in read_metrics(tmp_path)] == [1, 2, 3]
    one_epoch = Checkpoint(Progress(), parts(towers=stopped.arrays()))
    # The state after epoch 1 of the same nine-epoch schedule, by another road: stop after it.
    again = run(tmp_path, tracker, [phase(sampler, config, patience=1)], [0.1, 0.5, 0.4, 0.0])
    for name, array in again.arrays().items():
        assert np.array_equal(array, one_epoch.part("towers")[name])


def test_learning_that_only_hurts_leaves_the_towers_alone(
    sampler: PairSampler, tmp_path: Path, tracker: Tracker
) -> None:
    config = LabelledConfig(epochs=3, batch_size=8, learning_rate=0.05)
    towers = run(tmp_path, tracker, [phase(sampler, config, patience=2)], [0.9, 0.5, 0.4])
    for name, array in towers.arrays().items():
        assert np.array_equal(array, new_towers().arrays()[name])


def test_without_patience_the_last_epoch_counts(
    sampler: PairSampler, tmp_path: Path, tracker: Tracker
) -> None:
    config = LabelledConfig(epochs=2, batch_size=8, learning_rate=0.05)
    towers = run(tmp_path, tracker, [phase(sampler, config)], [0.5, 0.4])
    assert not np.array_equal(towers.arrays()["query.vectors"], random_vectors(41, 16, seed=0))
    assert len(read_metrics(tmp_path)) == 2


def test_collapse_is_told_apart_from_learning(
    sampler: PairSampler, tmp_path: Path, tracker: Tracker
) -> None:
    config = LabelledConfig(loss="triplet", epochs=2, batch_size=8)

    def train(cosine: float, given: LabelledConfig = config) -> None:
        trainer = Trainer(
            new_towers(),
            lambda: {"recall@10": 0.5, "cosine": cosine},
            RunFolder(tmp_path),
            tracker,
            0,
        )
        trainer.run([phase(sampler, given)])

    train(0.3)
    with pytest.raises(TrainingError, match=r"labelled collapsed: .* 0\.990 .*labelled\.loss"):
        train(0.99)


def test_a_loss_at_the_margin_is_a_collapse(tmp_path: Path, tracker: Tracker) -> None:
    # Every query and passage is the same token: positive and negative always score alike.
    rows = token_rows([[0]] * 8)
    sampler = PairSampler(rows, rows, relevant=sparse.csr_matrix(np.eye(8, dtype=bool)))
    config = LabelledConfig(loss="triplet", epochs=1, batch_size=8)
    trainer = Trainer(
        new_towers(), lambda: {"recall@10": 0, "cosine": 0.8}, RunFolder(tmp_path), tracker, 0
    )
    with pytest.raises(TrainingError, match=r"loss 0\.2000"):
        trainer.run([phase(sampler, config)])


def test_a_loss_that_is_no_number_stops_the_run(
    sampler: PairSampler, tmp_path: Path, tracker: Tracker
) -> None:
    broken = phase(sampler, LabelledConfig(epochs=1))._replace(
        loss=lambda batch: batch.queries.sum() * float("nan")
    )
    with pytest.raises(TrainingError, match=r"the loss is nan; lower labelled\.learning_rate"):
        run(tmp_path, tracker, [broken], [0.5])


def test_the_rate_warms_up_and_decays() -> None:
    factors = [rate_factor(step, 100) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[4:] == pytest.approx([(100 - step) / 96 for step in range(4, 100)])
    assert rate_factor(0, 1) == 1


def test_adams_state_survives_plain_arrays(sampler: PairSampler) -> None:
    batch = sampler.batch(np.arange(COUNT), np.random.default_rng(0))
    loss = labelled_loss(LabelledConfig())

    def step(towers: TwoTower, optimizer: torch.optim.Adam) -> None:
        optimizer.zero_grad()
        batch_loss(towers, batch, loss=loss).backward()
        optimizer.step()

    towers = new_towers()
    optimizer = torch.optim.Adam(towers.parameters(), lr=0.05, fused=True)
    step(towers, optimizer)
    arrays, state = towers.arrays(), optimizer_arrays(optimizer, towers)
    step(towers, optimizer)

    other = new_towers()
    other.load_arrays(arrays)
    restored = torch.optim.Adam(other.parameters(), lr=0.05, fused=True)
    restore_optimizer(restored, other, arrays=state)
    step(other, restored)
    for name, array in towers.arrays().items():
        assert np.array_equal(array, other.arrays()[name])


def test_checkpoints_round_trip_and_broken_ones_are_errors(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7, np.float32)}
    progress = Progress(phase=1, epoch=2, best_epoch=1, best=0.1 + 0.2, records=3)
    folder.save(Checkpoint(progress, parts(towers=arrays, best={})))
    loaded = folder.load()
    assert loaded.progress == progress
    assert loaded.part("best") == {}
    for name, array in arrays.items():
        assert np.array_equal(loaded.part("towers")[name], array)
    path = tmp_path / "checkpoint.safetensors"
    for content in (b"", path.read_bytes()[:-5], b"\x00" * 50):
        path.write_bytes(content)
        with pytest.raises(TrainingError, match=r"is broken .*; start over with --force"):
            folder.load()


class DroppingTower(nn.Module):
    """A tower with dropout: encoding twice gives the same only with the same random state."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, tokens: Tokens) -> Tensor:
        return functional.dropout(self.tower(tokens), 0.5)


@pytest.mark.parametrize("chunk_size", [1, 5, 16, 100])
def test_chunked_gradients_are_those_of_the_whole_batch(
    sampler: PairSampler, chunk_size: int
) -> None:
    batch = sampler.batch(np.arange(COUNT), np.random.default_rng(0))
    loss = labelled_loss(LabelledConfig())
    towers = new_towers()
    results = []
    for size in (0, chunk_size):
        towers.zero_grad()
        value = batch_loss(towers, batch, loss=loss, chunk_size=size)
        value.backward()  # type: ignore[no-untyped-call]
        results.append(
            (value.item(), [p.grad.clone() for p in towers.parameters() if p.grad is not None])
        )
    (whole, expected), (value, found) = results
    assert value == pytest.approx(whole, rel=1e-6)
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected, strict=True):
        assert one.abs().max() > 1e-4
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_chunks_see_the_same_dropout_in_both_passes(sampler: PairSampler) -> None:
    towers = new_towers()
    towers.query = towers.passage = DroppingTower(towers.query)  # type: ignore[assignment]
    batch = sampler.batch(np.arange(COUNT), np.random.default_rng(0))
    loss = labelled_loss(LabelledConfig())
    torch.manual_seed(3)
    batch_loss(towers, batch, loss=loss, chunk_size=COUNT).backward()  # type: ignore[no-untyped-call]
    chunked = [p.grad.clone() for p in towers.parameters() if p.grad is not None]
    towers.zero_grad()
    torch.manual_seed(3)
    batch_loss(towers, batch, loss=loss).backward()  # type: ignore[no-untyped-call]  # one chunk draws the same masks as the whole batch
    for one, parameter in zip(chunked, towers.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (LabelledConfig, {"hard_negatives": -1}),
        (LabelledConfig, {"chunk_size": -1}),
        (LabelledConfig, {"distil_temperature": 0.0}),
        (HardConfig, {"negatives": 0}),
        (HardConfig, {"epochs": -1}),
        (HardConfig, {"learning_rate": 0.0}),
    ],
)
def test_impossible_phases_are_refused(config: type, values: dict[str, float]) -> None:
    section = "labelled" if config is LabelledConfig else "hard"
    with pytest.raises(ConfigError, match=f"{section}.{next(iter(values))} is"):
        config(**values)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", -1, "seed is -1, expected 0 or more"),
        ("dev_share", 1.0, "dev_share is 1.0, expected between 0 and 1"),
        ("labelled.batch_size", 1, "labelled.batch_size is 1, expected 2 or more"),
        ("pretrain.keep_rate", 1.5, "pretrain.keep_rate is 1.5, expected 0 to 1"),
        ("teacher.temperature", 0.0, "teacher.temperature is 0.0, expected above 0"),
        ("hard.mining.max_share", 0.0, "hard.mining.max_share is 0.0, expected above 0"),
        ("prefixes.query", 3, "prefixes.query is 3, expected str"),
        (
            "teacher.epoch",
            1,
            "unknown configuration key teacher.epoch; did you mean teacher.epochs?",
        ),
    ],
)
def test_a_refusal_names_the_key_the_value_and_the_bounds(
    key: str, value: object, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(TrainConfig, with_values({}, {key: value}))
    assert str(caught.value) == message
