"""Learning how the stages are put together, and the cross-scorer, from candidate lists."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save as save_arrays

from two_tower.models.bundle_files import CROSS_SCORER, FUSION
from two_tower.models.candidates import CandidateLists, candidate_lists, joined
from two_tower.models.checkpoint import Arrays, Checkpoint, Progress, RunFolder
from two_tower.models.corpus import Corpus, Say
from two_tower.models.cross_scorer import CrossConfig, CrossScorer, scorer_arrays
from two_tower.models.cross_training import CrossTrainer, Reading, score_lists
from two_tower.models.encoding import normalized
from two_tower.models.fusion import Fusion, HybridWeights, fit_final, fit_hybrid
from two_tower.models.lexical import Bm25Index
from two_tower.models.mining import Vectors
from two_tower.models.tracking import Tracker

HELD_OUT = 0.1
LIST_SIZE = 50
FUSION_QUERIES = 4000
"""Enough for one weight; a cross-scorer wants them all."""

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

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
