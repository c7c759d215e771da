"""How a training run begins: its tokenizer and its untrained towers."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from two_tower.models.bundle import ModelBundle
from two_tower.models.checkpoint import Checkpoint, Progress, RunFolder, parts
from two_tower.models.corpus import Corpus, Say, vocabulary_texts
from two_tower.models.data import Dataset
from two_tower.models.distillation import Lessons
from two_tower.models.examples import Labelled
from two_tower.models.negatives_file import file_hash
from two_tower.models.tokenizer import Tokenizer
from two_tower.models.towers import TwoTower, token_idf
from two_tower.models.training import TrainConfig
from two_tower.models.transformer import Transformer, open_transformer
from two_tower.models.transformer_encoding import TransformerTokenizer
from two_tower.models.word2vec import learn_vectors

FloatArray = npt.NDArray[np.float32]
AnyTokenizer = Tokenizer | TransformerTokenizer


class Inputs(NamedTuple):
    """What a run begins with beside DATA; part of its identity.

    Attributes:
        negatives: file of mined negatives for the labelled phase, from `models mine`.
        start: a trained bundle, whose tokenizer and towers are where the run begins.
    """

    negatives: Path | None = None
    start: ModelBundle | None = None

    def identity(self) -> dict[str, str]:
        """Return a hash for each input that there is."""
        negatives = {"negatives": file_hash(self.negatives)} if self.negatives else {}
        return negatives | ({"start": self.start.fingerprint} if self.start else {})

    def labels(self, data: Dataset, *, epochs: int) -> list[str]:
        """Return what the card calls the labels that towers have seen, those of `start` included.

        Args:
            data: what they learn from now.
            epochs: of its labelled phase.
        """
        before = self.start.card.get("labels", []) if self.start else []
        return sorted({*before, *(_names(data) if epochs else ())})

    def has_seen(self, data: Dataset) -> bool:
        """Return whether the towers of `start` have learnt from these labels, or older ones."""
        return bool(self.start and {*self.start.card.get("labels", [])} & _names(data))


def _names(data: Dataset) -> set[str]:
    return {data.content_hash, str(data.manifest.get("source", {}).get("name", data.path))}


@dataclass
class Beginning:
    """Makes what a run trains, or takes it from a checkpoint.

    Attributes:
        data: what to learn from.
        config: of the run.
        folder: keeps the vocabulary and the first checkpoint.
        lessons: what a teacher gives; None without one.
        inputs: a bundle to begin with, perhaps.
        say: gets a line of news now and then.
    """

    data: Dataset
    config: TrainConfig
    folder: RunFolder
    lessons: Lessons | None
    inputs: Inputs
    say: Say

    def __post_init__(self) -> None:
        self._transformer: Transformer | None = None
        if self.config.tower.kind == "transformer":
            name = self.config.transformer.model
            self._transformer = open_transformer(name, self.config.tokenizer)

    def tokenizer(self, train: Labelled) -> AnyTokenizer:
        """Return the run's tokenizer; a vocabulary is learnt once and kept in the folder."""
        if self._transformer is not None:
            return self._transformer.tokenizer
        config = self.config.tokenizer
        model = self.folder.read_tokenizer()
        if model is None and self.inputs.start is not None:
            model = self.inputs.start.tokenizer.model
        if model is not None:
            return Tokenizer(model, config)
        self.say("learning the vocabulary")
        texts = vocabulary_texts(self.data, train)
        tokenizer = Tokenizer.train(texts, config, seed=self.config.seed)
        self.folder.write_tokenizer(tokenizer.model)
        return tokenizer

    def towers(
        self, corpus: Corpus, tokenizer: AnyTokenizer, *, resumed: Checkpoint | None
    ) -> TwoTower:
        """Return the towers as they are before the first phase, or as a checkpoint has them."""
        if self._transformer is not None:
            towers = TwoTower(self._transformer.tower, self._transformer.tower)
        else:
            towers = self._token_towers(corpus, tokenizer, fresh=resumed is None)
        if resumed is not None:
            towers.load_arrays(resumed.part("towers"))
        return towers

    def _token_towers(self, corpus: Corpus, tokenizer: AnyTokenizer, *, fresh: bool) -> TwoTower:
        config, vocab_size, seed = self.config.tower, tokenizer.vocab_size, self.config.seed
        weights = np.ones(vocab_size, dtype=np.float32)
        if config.idf:
            weights = token_idf(corpus.passages, vocab_size=vocab_size)
        start = self.inputs.start
        if not fresh or start is not None:
            blank = np.zeros((vocab_size, config.dim), dtype=np.float32)
            towers = TwoTower.start(config, vectors=blank, weights=weights, seed=seed)
            if start is not None:
                towers.load_start(start.towers())
            return towers
        vectors = self._token_vectors(corpus, tokenizer)
        towers = TwoTower.start(config, vectors=vectors, weights=weights, seed=seed)
        self.folder.save(Checkpoint(Progress(), parts(towers=towers.arrays())))
        return towers

    def _token_vectors(self, corpus: Corpus, tokenizer: AnyTokenizer) -> FloatArray:
        config, dim, seed = self.config, self.config.tower.dim, self.config.seed
        if self.lessons is not None and config.teacher.token_vectors:
            return self.lessons.token_vectors(tokenizer, dim=dim, say=self.say)
        self.say("learning token vectors")
        size = tokenizer.vocab_size
        return learn_vectors(corpus.passages, config.word2vec, vocab_size=size, dim=dim, seed=seed)
