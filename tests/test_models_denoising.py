import math
from pathlib import Path

import numpy as np
import pytest
import torch
from topics import QUICK, train_bundle, write_topics
from torch.nn import functional

from two_tower.models.config import from_mapping, with_values
from two_tower.models.errors import ConfigError
from two_tower.models.examples.pairs import PassageSampler
from two_tower.models.objectives.denoising import DenoisingConfig, delete_tokens, denoising_loss
from two_tower.models.objectives.losses import Encoded
from two_tower.models.text.tokenizer import TokenRows, token_rows
from two_tower.models.training.config import TrainConfig
from two_tower.models.training.tracking import read_metrics


def as_lists(rows: TokenRows) -> list[list[int]]:
    return [r.tolist() for r in np.split(rows.ids, rows.offsets[1:-1])]


def texts(count: int = 100) -> TokenRows:
    random = np.random.default_rng(0)
    return token_rows([random.integers(0, 50, random.integers(2, 40)) for _ in range(count)])


def test_what_is_left_is_a_part_in_its_order_and_never_nothing() -> None:
    sampler = PassageSampler(texts(), delete_tokens)
    batch = sampler.batch(np.arange(100), np.random.default_rng(0))
    originals, noisy = as_lists(texts()), as_lists(batch.queries)
    for kept, original in zip(noisy, originals, strict=True):
        assert kept
        remaining = iter(original)
        assert all(token in remaining for token in kept)
    total = sum(map(len, originals))  # about 2,000: standard deviation of the share .011
    assert sum(map(len, noisy)) / total == pytest.approx(0.4, abs=0.05)


def test_targets_are_the_distinct_tokens_of_each_text() -> None:
    sampler = PassageSampler(texts(), delete_tokens)
    index = np.array([5, 2, 60])
    batch = sampler.batch(index, np.random.default_rng(0))
    originals = [as_lists(texts())[i] for i in index]
    tokens = [row[0] for row in as_lists(batch.passages)]
    assert tokens == sorted(set().union(*originals))
    naive = {(i, tokens.index(token)) for i, text in enumerate(originals) for token in text}
    assert {tuple(cell) for cell in batch.masked.tolist()} == naive
    assert len(batch.masked) == len(naive)


def test_noise_depends_on_the_generator_alone_and_short_texts_are_left_out() -> None:
    sampler = PassageSampler(token_rows([[1], [2, 3, 4], [5, 6]]), delete_tokens)
    assert sampler.size == 2
    draws = [
        sampler.batch(np.arange(2), np.random.default_rng(s)).queries.ids.tolist()
        for s in (1, 1, 2, 3, 4, 5)
    ]
    assert draws[0] == draws[1]
    assert any(draw != draws[0] for draw in draws[2:])


def test_the_loss_agrees_with_a_naive_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    noisy, tokens = (
        functional.normalize(torch.randn(n, 4, generator=generator), dim=1) for n in (3, 7)
    )
    own = torch.rand(3, 7, generator=generator) < 0.5
    own[:, 0] = True
    expected = 0.0
    for i in range(3):
        row = [float(noisy[i] @ token) / 0.2 for token in tokens]
        total = math.log(sum(map(math.exp, row)))
        inside = [total - score for score, belongs in zip(row, own[i], strict=True) if belongs]
        expected += sum(inside) / len(inside) / 3
    found = denoising_loss(Encoded(noisy, tokens, own), temperature=0.2)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_a_run_can_pretrain_by_denoising(tmp_path: Path) -> None:
    data = write_topics(tmp_path / "DATA")
    values = {
        "pretrain.method": "both",
        "pretrain.epochs": 1,
        "denoising.epochs": 5,
        "denoising.batch_size": 32,
        "denoising.learning_rate": 0.05,
        "labelled.epochs": 0,
    }
    config = from_mapping(TrainConfig, with_values(QUICK, values))
    first = train_bundle(data, tmp_path / "a", config=config)
    assert train_bundle(data, tmp_path / "b", config=config).fingerprint == first.fingerprint
    records = read_metrics(tmp_path / "a.run")
    assert [record["phase"] for record in records] == ["pretrain"] + ["denoising"] * 5
    losses = [record["loss"] for record in records[1:]]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]


def test_denoising_can_take_the_place_of_inverse_cloze(tmp_path: Path) -> None:
    values = {"pretrain.method": "denoising", "denoising.epochs": 1, "labelled.epochs": 1}
    config = from_mapping(TrainConfig, with_values(QUICK, values))
    train_bundle(write_topics(tmp_path / "DATA"), tmp_path / "a", config=config)
    phases = [record["phase"] for record in read_metrics(tmp_path / "a.run")]
    assert phases == ["denoising", "labelled"]


@pytest.mark.parametrize(
    "values",
    [{"epochs": -1}, {"batch_size": 1}, {"temperature": 0.0}],
)
def test_impossible_values_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"denoising.{next(iter(values))} is"):
        DenoisingConfig(**values)  # type: ignore[arg-type]
