"""The last part of a run: towers that have not seen some labels, and what is learnt from them.

The towers have seen the labelled queries, so their cosines for them are too good, and weights
learnt from those would trust the towers too much. So the queries are dealt into folds; for each,
towers that go through the labelled phase without that fold say what the engine would have found
(stacked generalisation: Wolpert, 1992).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from two_tower.models.bundle import ModelBundle
from two_tower.models.candidates import CandidateLists
from two_tower.models.checkpoint import TEACHER, Checkpoint, Progress, RunFolder
from two_tower.models.corpus import Corpus, Say
from two_tower.models.data import Dataset
from two_tower.models.distillation import Lessons, read_once
from two_tower.models.errors import BundleError
from two_tower.models.examples import HardNegatives
from two_tower.models.lexical import Bm25Index
from two_tower.models.mining import Vectors
from two_tower.models.phases import labelled_phase
from two_tower.models.ranking import FoldVectors, RankingRun, Stand, TokenTable
from two_tower.models.towers import TwoTower, encode_rows, token_idf
from two_tower.models.tracking import Tracker
from two_tower.models.training import TrainConfig, train_quietly

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


class Done(NamedTuple):
    """A run whose towers are finished.

    Attributes:
        progress: what a checkpoint says then.
        towers: as trained; folds are trained in their place.
        resumed: the checkpoint that this process began with.
    """

    progress: Progress
    towers: TwoTower
    resumed: Checkpoint | None


@dataclass
class RankingPart:
    """Learns the fusion and the cross-scorer of a run.

    Attributes:
        data: what to learn from.
        config: of the run.
        corpus: DATA in tokens.
        folder: where checkpoints go.
        tracker: where records go.
        say: gets a line of news now and then.
    """

    data: Dataset
    config: TrainConfig
    corpus: Corpus
    folder: RunFolder
    tracker: Tracker
    say: Say

    def learn(
        self,
        before: Mapping[str, FloatArray],
        bundle: ModelBundle,
        done: Done,
        *,
        given: HardNegatives | None,
        lessons: Lessons | None,
    ) -> dict[str, bytes]:
        """Return the extra files of the bundle.

        Args:
            before: the towers' parameters before any label.
            bundle: as it is without them.
            done: where the run is.
            given: hard negatives of the train queries, if there are any.
            lessons: a teacher, if there is one.
        """
        stand = Stand(done.progress, done.towers.arrays(), done.resumed)
        folds, vectors = self.config.fusion.folds, self._fold_vectors(before, done.towers, given)
        if self.config.tower.kind == "transformer":
            # Too slow to train again for every fold, and a few labels hardly change it.
            folds, vectors = 1, self._bundle_vectors(bundle)
        run = RankingRun(
            self.corpus,
            Bm25Index(self._texts),
            vectors,
            folds,
            self._teacher(lessons),
            self.folder,
            self.tracker,
            self.config.seed,
            self.say,
        )
        return run.learn(self._tokens(before, bundle), self.config.cross, stand=stand)

    @cached_property
    def _texts(self) -> list[str]:
        return [passage.content for passage in self.data.passages()]

    def _fold_vectors(
        self, before: Mapping[str, FloatArray], towers: TwoTower, given: HardNegatives | None
    ) -> FoldVectors:
        """Train without a fold, from before the labelled phase, through all of its epochs.

        What the fold leaves is too little to stop early by.
        """
        corpus, config = self.corpus, self.config

        def vectors(left_out: IntArray) -> Vectors:
            towers.load_arrays(dict(before))
            rest = np.setdiff1d(np.arange(len(corpus.train.texts)), left_out)
            if config.labelled.epochs and len(rest):
                self.say(f"training towers without {len(left_out)} of the labelled queries")
                fold = corpus._replace(
                    train=corpus.train.take(rest), train_queries=corpus.train_queries.take(rest)
                )
                kept = given.of(corpus.train, rest) if given else None
                train_quietly(towers, labelled_phase(config, fold, kept), seed=config.seed)
            queries = encode_rows(towers.query, corpus.train_queries.take(left_out))
            passages = encode_rows(towers.passage, corpus.passages)
            return Vectors(queries.cpu().numpy(), passages.cpu().numpy())

        return vectors

    def _bundle_vectors(self, bundle: ModelBundle) -> FoldVectors:
        def vectors(left_out: IntArray) -> Vectors:
            self.say(f"encoding {len(self._texts)} passages")
            queries = [self.corpus.train.texts[i] for i in left_out]
            return read_once(bundle, queries, self._texts, folder=self.folder.path / TEACHER)

        return vectors

    def _teacher(self, lessons: Lessons | None) -> Callable[[CandidateLists], FloatArray] | None:
        if lessons is None:
            return None
        return lambda lists: lessons.scores(self._texts, self.corpus.train.texts, lists.rows)

    def _tokens(self, before: Mapping[str, FloatArray], bundle: ModelBundle) -> TokenTable:
        size = bundle.vocab_size
        table = next((a for a in before.values() if a.ndim == 2 and len(a) == size), None)
        if table is None:
            raise BundleError(f"the towers have no vectors of {size} tokens for a cross-scorer")
        return TokenTable(table, token_idf(self.corpus.passages, vocab_size=size))
