"""Training of the cross-scorer: one answer against candidates that the engine would put beside it.

L = mean_i -log( exp(f(q_i, p_i)) / sum_j exp(f(q_i, c_ij)) ), the listwise softmax (Cao et al.,
"Learning to Rank: From Pairwise Approach to Listwise Approach" (ListNet), ICML 2007) over the
answer p_i and sampled candidates c_ij. With a teacher, the divergence of its softmax over the same
list is mixed in.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional

from two_tower.models.examples.candidates import CandidateLists
from two_tower.models.examples.corpus import Notify
from two_tower.models.networks.cross_config import CrossConfig
from two_tower.models.networks.cross_encoder import CrossEncoder
from two_tower.models.networks.cross_scorer import CrossScorer, scorer_arrays
from two_tower.models.progress import progress as progress_bar
from two_tower.models.text.tokenizer import TokenRows
from two_tower.models.training.checkpoint import Arrays, Checkpoint, Progress, RunFolder, parts
from two_tower.models.training.loop import (
    finish_step,
    optimizer_arrays,
    prepare_step,
    rate_factor,
    restore_optimizer,
)
from two_tower.models.training.tracking import Tracker
from two_tower.models.vectors import BoolArray, FloatArray, IntArray

SCORED_AT_ONCE = 16
WEIGHT_DECAY = 1e-3


class RankingExamples(NamedTuple):
    """Queries, their candidates and the corpus, in tokens.

    Attributes:
        queries: n rows.
        passages: the whole corpus.
        lists: the candidates of the n queries.
        teacher: (n, k) float32 scores of every candidate by a teacher, or None.
        known: (n, k) float32, what is added to the logits in the loss, or None: a scorer that does
            not read the earlier stages' scores then learns what these lack.
    """

    queries: TokenRows
    passages: TokenRows
    lists: CandidateLists
    teacher: FloatArray | None = None
    known: FloatArray | None = None

    def take(self, index: IntArray) -> "RankingExamples":
        """Return the queries at `index` with their lists."""
        return self._replace(
            queries=self.queries.take(index),
            lists=self.lists.take(index),
            teacher=None if self.teacher is None else self.teacher[index],
            known=None if self.known is None else self.known[index],
        )


Scorer = CrossScorer | CrossEncoder
"""What is trained; its `logits` say how well passages fit their query."""


@dataclass
class CrossTrainer:
    """Trains a cross-scorer, in place, with a checkpoint after every epoch."""

    scorer: Scorer
    config: CrossConfig
    folder: RunFolder
    tracker: Tracker
    seed: int
    notify: Notify

    def run(
        self,
        examples: RankingExamples,
        phase: int,
        *,
        towers: Arrays,
        resumed: Checkpoint | None,
    ) -> None:
        """Train through all epochs, from the start or from where a checkpoint stopped.

        Args:
            examples: what to learn from.
            phase: the number of this phase in the run.
            towers: the finished towers; they stay in the checkpoint.
            resumed: where an interrupted run is, if its scorer has begun.
        """
        config, start = self.config, 0
        optimizer = torch.optim.AdamW(
            self.scorer.parameters(), lr=config.rate, weight_decay=WEIGHT_DECAY
        )
        if resumed is not None and (arrays := resumed.part("cross")):
            state = {name: torch.from_numpy(array) for name, array in arrays.items()}
            self.scorer.load_state_dict(state, strict=False)
            restore_optimizer(optimizer, self.scorer, arrays=resumed.part("adam"))
            start = resumed.progress.epoch
        for epoch in range(start, config.epochs):
            loss = self._run_epoch(examples, epoch, optimizer=optimizer)
            self.tracker.log({"phase": "cross", "epoch": epoch + 1, "loss": round(loss, 6)})
            self.notify(f"cross {epoch + 1}/{config.epochs}: loss {loss:.3f}")
            progress = Progress(phase, epoch + 1, records=self.tracker.count)
            cross, adam = scorer_arrays(self.scorer), optimizer_arrays(optimizer, self.scorer)
            self.folder.save(Checkpoint(progress, parts(towers=towers, cross=cross, adam=adam)))
        self.scorer.eval()

    def _run_epoch(
        self, examples: RankingExamples, epoch: int, *, optimizer: torch.optim.AdamW
    ) -> float:
        rng = np.random.default_rng([self.seed, epoch])
        usable = np.flatnonzero(examples.lists.relevant.any(axis=1))
        order = rng.permutation(usable)
        count = max(1, len(order) // self.config.batch_size)
        total = 0.0
        self.scorer.train()
        with torch.random.fork_rng():
            torch.manual_seed(self.seed * 1000 + epoch)  # of the dropout
            batches = np.array_split(order, count)
            bar = progress_bar(batches, label=f"cross {epoch + 1}/{self.config.epochs}")
            for i, index in enumerate(bar):
                share = rate_factor(epoch * count + i, count * self.config.epochs)
                prepare_step(optimizer, rate=share * self.config.rate)
                loss = self._loss(examples, index, rng=rng)
                loss.backward()  # type: ignore[no-untyped-call]
                finish_step(optimizer, self.scorer)
                total += loss.item()
        return total / count

    def _loss(
        self, examples: RankingExamples, index: IntArray, *, rng: np.random.Generator
    ) -> Tensor:
        places = draw_lists(examples.lists.relevant[index], self.config, rng)
        logits = score_places(self.scorer, examples, index=index, places=places)
        if examples.known is not None:
            known = np.take_along_axis(examples.known[index], places, axis=1)
            logits = logits + torch.from_numpy(known)
        loss = functional.cross_entropy(logits, torch.zeros(len(index), dtype=torch.long))
        share = self.config.teacher_weight
        if examples.teacher is None or not share:
            return loss
        scores = np.take_along_axis(examples.teacher[index], places, axis=1)  # (n, 1 + negatives)
        target = torch.softmax(torch.from_numpy(scores) / self.config.temperature, dim=1)
        ours = functional.log_softmax(logits, dim=1)
        divergence = functional.kl_div(ours, target, reduction="batchmean")
        return (1 - share) * loss + share * divergence


def likeliest_scale(scores: FloatArray, relevant: BoolArray) -> float:
    """Return the factor of `scores` (n, k) whose softmax over each list fits the answers best."""
    useful = relevant.any(axis=1)
    scores, relevant = scores[useful].astype(np.float64), relevant[useful]
    scores = scores - scores.max(axis=1, keepdims=True)

    def loss(log_scale: float) -> float:
        shares = np.exp(np.exp(log_scale) * scores)
        return float(np.log(shares.sum(axis=1) / (shares * relevant).sum(axis=1)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-8.0, 4.0), method="bounded").x))


def draw_lists(relevant: BoolArray, config: CrossConfig, rng: np.random.Generator) -> IntArray:
    """Return (n, 1 + negatives) places in each list: an answer first, then other candidates.

    `relevant` is (n, k), with at least one answer in each row.
    """
    keys = rng.random(relevant.shape)
    answer = np.where(relevant, keys, -1.0).argmax(axis=1)
    others = np.where(relevant, 2.0, keys)
    others[:, config.pool :] += 1.0  # only where the pool is too small
    drawn = np.argsort(others, axis=1)[:, : config.negatives]
    return np.concatenate([answer[:, None], drawn], axis=1)


def score_places(
    scorer: Scorer, examples: RankingExamples, *, index: IntArray, places: IntArray
) -> Tensor:
    """Return (n, m) logits of the candidates at `places` (n, m) of the queries at `index` (n,)."""
    lists, at = examples.lists, index[:, None]
    return scorer.logits(
        examples.queries.take(index),
        examples.passages.take(lists.rows[at, places].ravel()),
        bm25=lists.bm25[at, places].ravel(),
        cosine=lists.cosine[at, places].ravel(),
    )


def score_lists(scorer: CrossScorer, examples: RankingExamples) -> FloatArray:
    """Return (n, k) logits of all candidates of all queries, without gradients."""
    scorer.eval()
    count, k = examples.lists.rows.shape
    logits = [np.zeros((0, k), dtype=np.float32)]
    with torch.inference_mode():
        for start in progress_bar(range(0, count, SCORED_AT_ONCE), label="weighing"):
            index = np.arange(start, min(start + SCORED_AT_ONCE, count))
            places = np.broadcast_to(np.arange(k), (len(index), k))
            logits.append(score_places(scorer, examples, index=index, places=places).numpy())
    return np.concatenate(logits)
