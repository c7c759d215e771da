"""Training of the cross-scorer: one answer against candidates that the engine would put beside it.

L = mean_i -log( exp(f(q_i, p_i)) / sum_j exp(f(q_i, c_ij)) ), the listwise softmax (Cao et al.,
"Learning to Rank: From Pairwise Approach to Listwise Approach" (ListNet), ICML 2007) over the
answer p_i and sampled candidates c_ij. With a teacher, the divergence of its softmax over the same
list is mixed in.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from two_tower.models.console import progress as progress_bar
from two_tower.models.examples.candidates import CandidateLists
from two_tower.models.networks.cross_scorer import (
    CrossConfig,
    CrossScorer,
    Padded,
    scorer_arrays,
    stage_features,
)
from two_tower.models.text.tokenizer import TokenRows
from two_tower.models.training.checkpoint import Arrays, Checkpoint, Progress, RunFolder, parts
from two_tower.models.training.loop import (
    MAX_GRADIENT_NORM,
    optimizer_arrays,
    rate_factor,
    restore_optimizer,
)
from two_tower.models.training.tracking import Tracker
from two_tower.models.vectors import BoolArray, FloatArray, IntArray

SCORED_AT_ONCE = 16

WEIGHT_DECAY = 1e-3


class Reading(NamedTuple):
    """What there is to read: queries, their candidate lists and the corpus, in tokens.

    Attributes:
        queries: n rows.
        passages: the whole corpus.
        lists: of the n queries.
        teacher: (n, k) float32 scores of every candidate by a teacher, or None.
    """

    queries: TokenRows
    passages: TokenRows
    lists: CandidateLists
    teacher: FloatArray | None = None

    def take(self, index: IntArray) -> "Reading":
        """Return the queries at `index` with their lists."""
        return self._replace(
            queries=self.queries.take(index),
            lists=self.lists.take(index),
            teacher=None if self.teacher is None else self.teacher[index],
        )


@dataclass
class CrossTrainer:
    """Trains a cross-scorer, checkpointing after every epoch.

    Attributes:
        scorer: what is trained, in place.
        config: how.
        folder: where checkpoints go.
        tracker: where records go.
        seed: of draws and dropout.
        say: gets a line of news after every epoch.
    """

    scorer: CrossScorer
    config: CrossConfig
    folder: RunFolder
    tracker: Tracker
    seed: int
    say: Callable[[str], None]

    def run(
        self, reading: Reading, done: Progress, *, towers: Arrays, resumed: Checkpoint | None
    ) -> None:
        """Train through all epochs, from the start or from where a checkpoint stopped.

        Args:
            reading: what to learn from.
            done: the progress of a run whose towers are finished.
            towers: they stay in the checkpoint.
            resumed: where an interrupted run is, if its scorer has begun.
        """
        optimizer = torch.optim.AdamW(
            self.scorer.parameters(), lr=self.config.learning_rate, weight_decay=WEIGHT_DECAY
        )
        start = 0
        if resumed is not None and resumed.part("cross"):
            self._restore(resumed, optimizer)
            start = resumed.progress.epoch
        for epoch in range(start, self.config.epochs):
            loss = self._run_epoch(reading, epoch, optimizer)
            self.tracker.log({"phase": "cross", "epoch": epoch + 1, "loss": round(loss, 6)})
            self.say(f"cross {epoch + 1}/{self.config.epochs}: loss {loss:.3f}")
            state = done._replace(epoch=epoch + 1, records=self.tracker.count)
            cross, adam = scorer_arrays(self.scorer), optimizer_arrays(optimizer, self.scorer)
            self.folder.save(Checkpoint(state, parts(towers=towers, cross=cross, adam=adam)))
        self.scorer.eval()

    def _restore(self, resumed: Checkpoint, optimizer: torch.optim.AdamW) -> None:
        state = {name: torch.from_numpy(array) for name, array in resumed.part("cross").items()}
        self.scorer.load_state_dict(state, strict=False)
        restore_optimizer(optimizer, self.scorer, arrays=resumed.part("adam"))

    def _run_epoch(self, reading: Reading, epoch: int, optimizer: torch.optim.AdamW) -> float:
        rng = np.random.default_rng([self.seed, epoch])
        usable = np.flatnonzero(reading.lists.relevant.any(axis=1))
        order = rng.permutation(usable)
        count = max(1, len(order) // self.config.batch_size)
        total = 0.0
        self.scorer.train()
        with torch.random.fork_rng():
            torch.manual_seed(self.seed * 1000 + epoch)  # of the dropout
            batches = np.array_split(order, count)
            bar = progress_bar(batches, label=f"cross {epoch + 1}/{self.config.epochs}")
            for i, index in enumerate(bar):
                rate = rate_factor(epoch * count + i, count * self.config.epochs)
                for group in optimizer.param_groups:
                    group["lr"] = rate * self.config.learning_rate
                optimizer.zero_grad()
                loss = self._loss(reading, index, rng)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(self.scorer.parameters(), MAX_GRADIENT_NORM)
                optimizer.step()
                total += loss.item()
        return total / count

    def _loss(self, reading: Reading, index: IntArray, rng: np.random.Generator) -> Tensor:
        chosen = draw_lists(reading.lists.relevant[index], self.config, rng)
        logits = score_places(self.scorer, self.config, reading, index=index, places=chosen)
        loss = functional.cross_entropy(logits, torch.zeros(len(index), dtype=torch.long))
        if reading.teacher is None or not self.config.teacher_weight:
            return loss
        wanted = np.take_along_axis(reading.teacher[index], chosen, axis=1)
        target = torch.softmax(torch.from_numpy(wanted) / self.config.teacher_temperature, dim=1)
        found = functional.log_softmax(logits, dim=1)
        divergence = functional.kl_div(found, target, reduction="batchmean")
        share = self.config.teacher_weight
        return (1 - share) * loss + share * divergence


def draw_lists(relevant: BoolArray, config: CrossConfig, rng: np.random.Generator) -> IntArray:
    """Return (n, 1 + negatives) places in each list: an answer first, then other candidates.

    Args:
        relevant: (n, k), at least one answer in each row.
        config: how many, and from how deep.
        rng: of the draw.
    """
    luck = rng.random(relevant.shape)
    answer = np.where(relevant, luck, -1.0).argmax(axis=1)
    others = np.where(relevant, 2.0, luck)
    others[:, config.pool :] += 1.0  # only where the pool is too small
    drawn = np.argsort(others, axis=1)[:, : config.negatives]
    return np.concatenate([answer[:, None], drawn], axis=1)


def score_places(
    scorer: CrossScorer,
    config: CrossConfig,
    reading: Reading,
    *,
    index: IntArray,
    places: IntArray,
) -> Tensor:
    """Return (n, m) logits of the candidates at `places` (n, m) of the queries at `index` (n,)."""
    lists = reading.lists
    at = index[:, None]
    rows = lists.rows[at, places].ravel()
    stages = stage_features(lists.bm25[at, places].ravel(), lists.cosine[at, places].ravel())
    queries = Padded.of(reading.queries.take(index), limit=config.query_tokens)
    passages = Padded.of(reading.passages.take(rows), limit=config.passage_tokens)
    logits: Tensor = scorer(queries, passages, stages)
    return logits


def score_lists(scorer: CrossScorer, config: CrossConfig, reading: Reading) -> FloatArray:
    """Return (n, k) logits of all candidates of all queries, without gradients."""
    scorer.eval()
    count, k = reading.lists.rows.shape
    with torch.inference_mode():
        scored = [
            score_places(
                scorer,
                config,
                reading,
                index=index,
                places=np.broadcast_to(np.arange(k), (len(index), k)),
            ).numpy()
            for index in _slices(count)
        ]
    return np.concatenate(scored) if scored else np.zeros((0, k), dtype=np.float32)


def _slices(count: int) -> Iterator[IntArray]:
    for start in range(0, count, SCORED_AT_ONCE):
        yield np.arange(start, min(start + SCORED_AT_ONCE, count))
