"""The last part of a run: the fusion and the cross-scorer, learnt with towers that are not biased.

The towers have seen the labelled queries, so their cosines for them are too good, and weights
learnt from those would trust the towers too much. So the queries are dealt into folds; for each,
towers that go through the labelled phase without that fold say what the engine would have found
(stacked generalisation: Wolpert, 1992).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.files import ENDPOINT, FUSION
from two_tower.models.bundle.fusion import (
    WITHOUT_LABELS,
    WITHOUT_LABELS_FROM_SCRATCH,
    Fusion,
    HybridWeights,
    fit_final,
    fit_hybrid,
    fit_late,
)
from two_tower.models.data import PEOPLE, Dataset
from two_tower.models.errors import BundleError
from two_tower.models.examples.candidates import CandidateLists, candidate_lists, joined
from two_tower.models.examples.corpus import Corpus, Notify
from two_tower.models.examples.pairs import HardNegatives
from two_tower.models.networks.cross_config import CrossConfig
from two_tower.models.networks.cross_encoder import open_cross_encoder
from two_tower.models.networks.cross_scorer import CrossScorer
from two_tower.models.networks.towers import TwoTower, device_of, token_idf
from two_tower.models.networks.word2vec import learn_vectors
from two_tower.models.objectives.distillation import Teacher
from two_tower.models.progress import working
from two_tower.models.text.bm25 import Analyzer, Bm25Index
from two_tower.models.training.checkpoint import Arrays, Checkpoint, RunFolder
from two_tower.models.training.config import TrainConfig
from two_tower.models.training.cross_training import CrossTrainer, RankingExamples
from two_tower.models.training.dev_metrics import tower_vectors
from two_tower.models.training.late_training import LateScorer, LateTrainer
from two_tower.models.training.loop import train_quietly
from two_tower.models.training.phases import Align, query_phases
from two_tower.models.training.rerankers import EncoderReranker, Reranker, RnnReranker
from two_tower.models.training.reranking_teacher import open_reranking_teacher
from two_tower.models.training.tracking import Tracker
from two_tower.models.vectors import FloatArray, IntArray, Vectors, normalized

HELD_OUT = 0.1
LIST_SIZE = 50
FUSION_QUERIES = 4000
"""Enough for one weight; a cross-scorer needs them all."""

UnbiasedVectors = Callable[[IntArray], Vectors]
"""Train queries (m,) -> vectors of those and of all passages, by towers that did not see them."""


@dataclass
class RankingTrainer:
    """Learns the fusion and the cross-scorer of a run; `negatives` are of the train queries."""

    data: Dataset
    config: TrainConfig
    corpus: Corpus
    analyzer: Analyzer
    negatives: HardNegatives | None
    align: Align | None
    teacher: Teacher | None
    folder: RunFolder
    tracker: Tracker
    notify: Notify

    def with_late(self, bundle: ModelBundle) -> ModelBundle:
        """Return the bundle with late interaction, learnt from all queries but the held-out ones.

        It stays as it is where no query is labelled.
        """
        config, train = self.config, self.corpus.train
        rest = np.setdiff1d(np.arange(len(train.texts)), self._drawn[self._held_out])
        trainer = LateTrainer(
            bundle,
            self._texts,
            train.take(rest),
            self._bm25,
            config.late,
            config.seed,
            self.notify,
        )
        if (arrays := trainer.learn()) is None:
            self.notify("no labelled query to learn late interaction from; it is left out")
            return bundle
        return bundle.with_late(config.late, arrays)

    def learn(
        self,
        bundle: ModelBundle,
        towers: TwoTower,
        *,
        before_labels: Arrays,
        phase: int,
        resumed: Checkpoint | None,
    ) -> dict[str, bytes]:
        """Return the extra files of the bundle; none where too few queries have an answer.

        Args:
            bundle: as it is without the files.
            towers: as trained; the towers of the folds are trained in their place.
            before_labels: their parameters before any label.
            phase: the number of this phase in the run.
            resumed: the checkpoint that this process began with.
        """
        finished, cross = towers.arrays(), self.config.cross
        is_pretrained = bundle.has_documents or self.config.tower.kind == "transformer"
        untaught = WITHOUT_LABELS if is_pretrained else WITHOUT_LABELS_FROM_SCRATCH
        if not self.corpus.train.texts:
            return {FUSION: Fusion(untaught).to_bytes()}
        if (judge := self.data.judge("train")) != PEOPLE:
            # Such queries repeat their passage's words: with them BM25 needs no tower beside it.
            self.notify(f"queries {judge} do not say what a cosine is worth; it is not learnt")
            return {FUSION: Fusion(untaught).to_bytes()}
        if self.config.tower.kind in ("transformer", ENDPOINT):
            # Too slow to train again for every fold, and few or no labels hardly change it.
            lists = self._lists(partial(self._bundle_vectors, bundle), folds=1)
        else:
            vectors = partial(self._fold_vectors, towers, before_labels)
            lists = self._lists(vectors, folds=self.config.fusion.folds)
        hybrid = fit_hybrid(lists.bm25, lists.cosine, lists.relevant)
        if hybrid is None:
            self.notify("too few labelled queries to learn a fusion from; the fixed one is kept")
            return {}
        late = None
        if bundle.late is not None:
            late = LateScorer(bundle, self._texts)
            hybrid = self._weigh_late(hybrid, lists.take(self._held_out), late)
        if not cross.takes_part:
            return {FUSION: Fusion(hybrid).to_bytes()}
        cross = replace(cross, negatives=min(cross.negatives, lists.rows.shape[1] - 1))
        if cross.model is None:
            scorer = self._new_scorer(before_labels, cross, vocab_size=bundle.vocab_size)
            reranker: Reranker = RnnReranker(scorer, self.corpus)
        else:
            lists = lists.ordered(hybrid.scores(lists.bm25, lists.cosine))
            reranker = self._cross_encoder(cross, device=device_of(towers.query))
        scores = hybrid.scores(lists.bm25, lists.cosine)
        examples = reranker.examples(lists, scores, self._teacher_scores(lists))
        seed = self.config.seed
        learning = np.setdiff1d(np.arange(len(lists.rows)), self._held_out)
        learning_examples = examples.take(learning)
        if cross.epochs and learning_examples.lists.relevant.any():
            module, tracker = reranker.module, self.tracker
            trainer = CrossTrainer(module, cross, self.folder, tracker, seed, self.notify)
            trainer.run(learning_examples, phase, towers=finished, resumed=resumed)
        return self._weigh(
            hybrid, examples.take(self._held_out), reranker=reranker, config=cross, late=late
        )

    @cached_property
    def _drawn(self) -> IntArray:
        """The train queries that have a list: all, or as many as the fusion alone needs."""
        size, rng = len(self.corpus.train.texts), np.random.default_rng([self.config.seed, 1])
        most = size if self.config.cross.takes_part else FUSION_QUERIES
        return np.sort(rng.permutation(size)[:most])

    @cached_property
    def _held_out(self) -> IntArray:
        """The lists that weigh rerankers, which do not learn from them."""
        order = np.random.default_rng([self.config.seed, 2]).permutation(len(self._drawn))
        return np.sort(order[: round(HELD_OUT * len(order))])

    @property
    def _held_out_texts(self) -> list[str]:
        return [self.corpus.train.texts[i] for i in self._drawn[self._held_out]]

    def _weigh_late(
        self, hybrid: HybridWeights, lists: CandidateLists, late: LateScorer
    ) -> HybridWeights:
        queries = self._held_out_texts
        self.notify(f"weighing late interaction by {len(queries)} queries")
        scores = hybrid.scores(lists.bm25, lists.cosine)
        return fit_late(hybrid, scores, late.scores(queries, lists.rows), lists.relevant)

    def _lists(self, vectors: UnbiasedVectors, *, folds: int) -> CandidateLists:
        """Return the candidates of the train queries that are drawn."""
        train, drawn = self.corpus.train, self._drawn
        rng = np.random.default_rng([self.config.seed, 1])
        rng.permutation(len(train.texts))  # which drew them
        fold = rng.integers(0, folds, len(drawn))
        parts = [part for n in range(folds) if len(part := drawn[fold == n])]
        lists = [
            candidate_lists(train.take(part), vectors(part), self._bm25, size=LIST_SIZE)
            for part in parts
        ]
        return joined(lists).take(np.argsort(np.concatenate(parts)))

    @cached_property
    def _texts(self) -> list[str]:
        return [passage.content for passage in self.data.passages()]

    @cached_property
    def _bm25(self) -> Bm25Index:
        titles = [passage.title for passage in self.data.passages()]
        return Bm25Index(self._texts, self.analyzer, titles=titles)

    def _fold_vectors(self, towers: TwoTower, before_labels: Arrays, left_out: IntArray) -> Vectors:
        """Train without a fold, from before any train query, through all epochs of its phases.

        What the fold leaves is too little to stop early by.
        """
        corpus, config = self.corpus, self.config
        towers.load_arrays(before_labels)
        rest = np.setdiff1d(np.arange(len(corpus.train.texts)), left_out)
        fold = corpus._replace(
            train=corpus.train.take(rest), train_queries=corpus.train_queries.take(rest)
        )
        negatives = self.negatives
        if negatives is not None:
            negatives = negatives.take(rest, labelled=corpus.train)
        phases = query_phases(config, fold, negatives=negatives, align=self.align)
        if any(phase.epochs for phase in phases):
            self.notify(f"training towers without {len(left_out)} of the labelled queries")
        for phase in phases:
            train_quietly(towers, phase, seed=config.seed)
        queries = corpus.train_queries.take(left_out)
        return tower_vectors(towers, queries=queries, passages=corpus.passages)

    def _bundle_vectors(self, bundle: ModelBundle, left_out: IntArray) -> Vectors:
        self.notify(f"encoding {len(self._texts)} passages")
        queries = [self.corpus.train.texts[i] for i in left_out]
        with working("encoding"):
            return Vectors(bundle.encode_queries(queries), bundle.encode_passages(self._texts))

    def _new_scorer(
        self, before_labels: Arrays, config: CrossConfig, *, vocab_size: int
    ) -> CrossScorer:
        """Return a cross-scorer that begins with the token vectors of before any label."""
        if self.config.tower.kind == ENDPOINT:
            tokens, size, seed = self.corpus.passage_tokens, vocab_size, self.config.seed
            word2vec = self.config.word2vec
            tables = [learn_vectors(tokens, word2vec, vocab_size=size, dim=config.dim, seed=seed)]
        else:
            tables = [a for a in before_labels.values() if a.ndim == 2 and len(a) == vocab_size]
        if not tables:
            raise BundleError(
                f"the towers have no vectors of {vocab_size} tokens for a cross-scorer"
            )
        vectors = torch.from_numpy(narrowed(tables[0], config.dim))
        idf = torch.from_numpy(token_idf(self.corpus.passage_tokens, vocab_size=vocab_size))
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            return CrossScorer(vectors, idf, config=config)

    def _cross_encoder(self, config: CrossConfig, *, device: torch.device) -> EncoderReranker:
        name, fresh_head = str(config.model), config.epochs > 0
        module = open_cross_encoder(name, config.limits, fresh_head=fresh_head)
        return EncoderReranker(
            module.to(device),
            int8=config.int8,
            queries=self.corpus.train.texts,
            passages=self._texts,
        )

    def _teacher_scores(self, lists: CandidateLists) -> FloatArray | None:
        """Return (n, k) float32, what a teacher says of every candidate; None without one."""
        config, queries = self.config.cross, self.corpus.train.texts
        if config.model is not None or not config.teacher_weight:
            return None
        if config.teacher is not None:
            teacher = open_reranking_teacher(config.teacher, config)
            self.notify(f"{config.teacher} scores the candidates of {len(queries)} queries")
            return teacher.scores(queries, self._texts, lists=lists, pool=config.pool)
        if self.teacher is None:
            return None
        return self.teacher.candidate_scores(queries, self._texts, rows=lists.rows)

    def _weigh(
        self,
        hybrid: HybridWeights,
        examples: RankingExamples,
        *,
        reranker: Reranker,
        config: CrossConfig,
        late: LateScorer | None,
    ) -> dict[str, bytes]:
        """Weigh the reranker with examples that it did not learn from, as many as it will read."""
        lists = examples.lists.first(config.reads)
        near = None
        if late is not None:
            near = late.scores(self._held_out_texts, lists.rows)
        scores = hybrid.scores(lists.bm25, lists.cosine, near)
        logits = reranker.scores(examples._replace(lists=lists))
        final = fit_final(scores, logits, lists.relevant)
        if final is None:
            self.notify("too few labelled queries to weigh a cross-scorer; it is left out")
            return {FUSION: Fusion(hybrid).to_bytes()}
        return {FUSION: Fusion(hybrid, final, asdict(config)).to_bytes(), **reranker.files()}


def narrowed(vectors: FloatArray, dim: int) -> FloatArray:
    """Return (vocab, min(dim, width)) float32, L2-normalised, whose cosines are about the same.

    The first right singular vectors keep dot products best (Eckart and Young, 1936).
    """
    unit = normalized(vectors)
    if dim >= unit.shape[1]:
        return unit
    _, directions = np.linalg.eigh(unit.T @ unit)
    return normalized(np.ascontiguousarray(unit @ directions[:, ::-1][:, :dim]))
