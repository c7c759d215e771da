"""The last part of a run: towers that have not seen some labels, and what is learnt from them.

The towers have seen the labelled queries, so their cosines for them are too good, and weights
learnt from those would trust the towers too much. So the queries are dealt into folds; for each,
towers that go through the labelled phase without that fold say what the engine would have found
(stacked generalisation: Wolpert, 1992).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from safetensors.numpy import save as save_arrays

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.files import CROSS_SCORER, FUSION
from two_tower.models.bundle.fusion import Fusion, HybridWeights, fit_final, fit_hybrid
from two_tower.models.data import Dataset
from two_tower.models.errors import BundleError
from two_tower.models.examples.candidates import CandidateLists, candidate_lists, joined
from two_tower.models.examples.corpus import Corpus, Say
from two_tower.models.examples.pairs import HardNegatives
from two_tower.models.networks.cross_scorer import CrossConfig, CrossScorer, scorer_arrays
from two_tower.models.networks.towers import TwoTower, encode_rows, token_idf
from two_tower.models.objectives.distillation import Lessons, read_once
from two_tower.models.text.bm25 import Analyzer, Bm25Index
from two_tower.models.training.checkpoint import TEACHER, Arrays, Checkpoint, Progress, RunFolder
from two_tower.models.training.config import TrainConfig
from two_tower.models.training.cross_training import CrossTrainer, Reading, score_lists
from two_tower.models.training.loop import train_quietly
from two_tower.models.training.phases import labelled_phase
from two_tower.models.training.tracking import Tracker
from two_tower.models.vectors import FloatArray, IntArray, Vectors, normalized

HELD_OUT = 0.1

LIST_SIZE = 50

FUSION_QUERIES = 4000
"""Enough for one weight; a cross-scorer wants them all."""


FoldVectors = Callable[[IntArray], Vectors]
"""Train queries to leave out (m,) -> vectors of those and of all passages, by towers without."""


class TokenTable(NamedTuple):
    """What the cross-scorer knows of tokens: vectors (vocab, dim) without labels, IDF (vocab,)."""

    vectors: FloatArray
    idf: FloatArray


class Stand(NamedTuple):
    """Where a run is whose towers are finished.

    Attributes:
        progress: what a checkpoint says then.
        towers: their parameters; they stay in every checkpoint.
        resumed: the checkpoint that this process began with.
    """

    progress: Progress
    towers: Arrays
    resumed: Checkpoint | None


@dataclass(frozen=True)
class RankingRun:
    """What the fusion and the cross-scorer are learnt from, and where that is recorded.

    Attributes:
        corpus: passages and labelled queries in tokens.
        index: BM25 over the passages.
        vectors: see `FoldVectors`.
        folds: into how many parts the queries are dealt; 1 where the towers saw no label.
        teacher: gives (n, k) scores of all candidates of all train queries, or None.
        folder: where checkpoints go.
        tracker: where records go.
        seed: of every random choice.
        say: gets a line of news now and then.
    """

    corpus: Corpus
    index: Bm25Index
    vectors: FoldVectors
    folds: int
    teacher: Callable[[CandidateLists], FloatArray] | None
    folder: RunFolder
    tracker: Tracker
    seed: int
    say: Say

    def learn(self, tokens: TokenTable, config: CrossConfig, *, stand: Stand) -> dict[str, bytes]:
        """Return the extra files of the bundle; none where too few queries have an answer."""
        lists = self.lists(most=len(self.corpus.train.texts) if config.epochs else FUSION_QUERIES)
        hybrid = fit_hybrid(lists.bm25, lists.cosine, lists.relevant)
        if hybrid is None:
            self.say("too few labelled queries to learn a fusion from; the fixed one is kept")
            return {}
        if not config.epochs:
            return {FUSION: Fusion(hybrid).to_bytes()}
        return self._cross(lists, tokens, config, hybrid=hybrid, stand=stand)

    def lists(self, *, most: int) -> CandidateLists:
        """Return the candidates of at most so many queries, by towers that did not see them."""
        train, rng = self.corpus.train, np.random.default_rng([self.seed, 1])
        drawn = np.sort(rng.permutation(len(train.texts))[:most])
        fold = rng.integers(0, self.folds, len(drawn))
        members = [part for n in range(self.folds) if len(part := drawn[fold == n])]
        found = [
            candidate_lists(train.take(part), self.vectors(part), self.index, size=LIST_SIZE)
            for part in members
        ]
        return joined(found).take(np.argsort(np.concatenate(members)))

    def _cross(
        self,
        lists: CandidateLists,
        tokens: TokenTable,
        config: CrossConfig,
        *,
        hybrid: HybridWeights,
        stand: Stand,
    ) -> dict[str, bytes]:
        fitting = replace(config, negatives=min(config.negatives, lists.rows.shape[1] - 1))
        reading = Reading(self.corpus.train_queries, self.corpus.passages, lists)
        if self.teacher is not None and config.teacher_weight:
            reading = reading._replace(teacher=self.teacher(lists))
        order = np.random.default_rng([self.seed, 2]).permutation(len(lists.rows))
        held = order[: round(HELD_OUT * len(order))]
        learning = reading.take(np.sort(order[len(held) :]))
        scorer = self._scorer(tokens, fitting)
        if learning.lists.relevant.any():
            trainer = CrossTrainer(scorer, fitting, self.folder, self.tracker, self.seed, self.say)
            trainer.run(learning, stand.progress, towers=stand.towers, resumed=stand.resumed)
        rest = reading.take(np.sort(held))
        mixed = hybrid.scores(rest.lists.bm25, rest.lists.cosine)
        cross = score_lists(scorer, fitting, rest)
        final = fit_final(mixed, cross, rest.lists.relevant)
        if final is None:
            self.say("too few labelled queries to weigh a cross-scorer; it is left out")
            return {FUSION: Fusion(hybrid).to_bytes()}
        fusion = Fusion(hybrid, final, asdict(fitting))
        return {FUSION: fusion.to_bytes(), CROSS_SCORER: save_arrays(scorer_arrays(scorer))}

    def _scorer(self, tokens: TokenTable, config: CrossConfig) -> CrossScorer:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            vectors = torch.from_numpy(narrowed(tokens.vectors, config.dim))
            return CrossScorer(vectors, torch.from_numpy(tokens.idf), config=config)


def narrowed(vectors: FloatArray, dim: int) -> FloatArray:
    """Return (vocab, min(dim, width)) float32, L2-normalised, whose cosines are about the same.

    The first right singular vectors keep dot products best (Eckart and Young, 1936).
    """
    unit = normalized(vectors)
    if dim >= unit.shape[1]:
        return unit
    _, directions = np.linalg.eigh(unit.T @ unit)
    return normalized(np.ascontiguousarray(unit @ directions[:, ::-1][:, :dim]))


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
        analyzer: gives BM25 its terms.
    """

    data: Dataset
    config: TrainConfig
    corpus: Corpus
    folder: RunFolder
    tracker: Tracker
    say: Say
    analyzer: Analyzer

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
            Bm25Index(self._texts, self.analyzer),
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
