"""Whether each stage is worth what it costs: its gain over the stage before, in numbers and words.

A gain counts where the paired randomisation test says so after Holm's correction for the stages.
Where it does not, the number of queries that would show a gain of SMALL says whether the stage or
the test is at fault: n = ((z_.975 + z_.8) s / SMALL)^2 for a standard deviation s of the
differences (Sakai, "Statistical reform in information retrieval?", SIGIR Forum 48(1), 2014).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from two_tower.models.data import Qrel
from two_tower.models.vectors import Float64Array
from two_tower.retriever.collection.schema import BM25, DENSE, LATE
from two_tower.retriever.evaluation.measures import Rankings, Values, per_query
from two_tower.retriever.evaluation.significance import (
    ALPHA,
    bootstrap_intervals,
    holm,
    randomisation_ps,
)
from two_tower.retriever.search.fusion import CROSS

MEASURE = "ndcg@10"

LADDER = (BM25, "hybrid", "rerank", LATE, "escalate", CROSS, "settings")
"""The stages, each of which does what the one before does, and more."""

SMALL = 0.03

DETECTED = 2.80  # z_.975 + z_.8: 5% false alarms, 80% of true gains seen

SPLITS = 200


@dataclass(frozen=True)
class StageWorth:
    """What a stage gains over the one before it, by nDCG@10.

    Attributes:
        system: the stage.
        over: the stage before it.
        difference: mean of the stage minus the other.
        interval: [low, high], its 95% bootstrap interval.
        p_holm: of the paired randomisation test, corrected for all stages.
        held: share of 200 random splits in which both halves of the queries have a difference of
            the same sign as all of them.
        detectable: the gain that so many queries would show in 80% of the cases.
        queries_needed: how many would show a gain of .03.
        ms: median time that it adds to a query; None for what was not timed.
        mb: megabytes that it adds in memory; None where that is not known.
        judge_error: how far a model that judged may have led the difference astray; the interval
            is longer by it at both ends.
    """

    system: str
    over: str
    difference: float
    interval: tuple[float, float]
    p_holm: float
    held: float
    detectable: float
    queries_needed: int
    ms: float | None = None
    mb: float | None = None
    judge_error: float = 0.0

    @property
    def is_significant(self) -> bool:
        """Whether the corrected p is below 5%, and the difference more than the judge's error."""
        return self.p_holm < ALPHA and abs(self.difference) >= self.judge_error


def stage_worths(
    values: Mapping[str, Values],
    *,
    p50_ms: Mapping[str, float | None],
    index_mb: Mapping[str, float | None],
) -> tuple[StageWorth, ...]:
    """Return what each measured stage gains over the measured one before it.

    Args:
        values: system -> measure -> one value per query, the same queries everywhere.
        p50_ms: system -> its median time.
        index_mb: system -> its size.
    """
    names = [name for name in LADDER if name in values]
    pairs = list(zip(names[1:], names, strict=False))
    if not pairs:
        return ()
    columns = np.stack([values[s][MEASURE] - values[over][MEASURE] for s, over in pairs], axis=1)
    count = len(columns)
    # One query says nothing about the deviation, which is 1 at most.
    deviations = columns.std(axis=0, ddof=1) if count > 1 else np.ones(len(pairs))
    intervals, ps = bootstrap_intervals(columns), holm(randomisation_ps(columns))
    return tuple(
        StageWorth(
            system,
            over,
            difference=float(columns[:, i].mean()),
            interval=intervals[i],
            p_holm=ps[i],
            held=split_half_agreement(columns[:, i]),
            detectable=float(DETECTED * deviations[i] / count**0.5),
            queries_needed=int(np.ceil((DETECTED * deviations[i] / SMALL) ** 2)),
            ms=_added(p50_ms, system, over),
            mb=_added(index_mb, system, over),
        )
        for i, (system, over) in enumerate(pairs)
    )


def split_half_agreement(differences: Float64Array) -> float:
    """Return the share of random splits whose two halves both agree with the whole in sign.

    Differences (queries,) that mean nothing agree in about half of the splits.
    """
    sign, count = np.sign(differences.sum()), len(differences)
    if not sign or count < 2:
        return 0.0
    rng = np.random.default_rng(0)
    agreed = 0
    for _ in range(SPLITS):
        half = rng.permutation(count)[: count // 2]
        first = differences[half].sum()
        agreed += bool(sign * first > 0 and sign * (differences.sum() - first) > 0)
    return agreed / SPLITS


def headroom(rankings: Mapping[str, Rankings], qrels: Sequence[Qrel]) -> float | None:
    """Return nDCG@10 of what the legs found in its ideal order; None where no leg was measured.

    No later stage gets above it: it only puts the same candidates into another order.
    """
    legs = [rankings[name] for name in (BM25, DENSE) if name in rankings]
    if not legs:
        return None
    grades: dict[str, dict[str, int]] = {}
    for qrel in qrels:
        grades.setdefault(qrel.query_id, {})[qrel.passage_id] = qrel.relevance
    ideal = {}
    for query_id, judged in grades.items():
        candidates = dict.fromkeys(i for leg in legs for i in leg.get(query_id, []))
        ideal[query_id] = sorted(candidates, key=lambda i: -judged.get(i, 0))
    return float(per_query(ideal, qrels)[MEASURE].mean())


def verdict(worth: StageWorth, *, queries: int) -> str:
    """Return one sentence about a stage."""
    low, high = worth.interval
    gain = f"{worth.difference:+.3f} ± {(high - low) / 2:.3f}"
    price = "" if worth.ms is None else f" for {max(worth.ms, 0):.1f} ms"
    if worth.is_significant and worth.difference > 0:
        return f"{worth.system}: {gain} over {worth.over}{price}, in {worth.held:.0%} of the splits"
    if worth.is_significant:
        return f"{worth.system}: {gain}, worse than {worth.over}; leave it out"
    if worth.p_holm < ALPHA:
        return f"{worth.system}: {gain} over {worth.over}, which may be the judge's error alone"
    if not any(worth.interval) and not worth.detectable:
        return f"{worth.system}: no difference from {worth.over} in any of {queries:,} queries"
    if worth.detectable <= SMALL:
        return (
            f"{worth.system}: no gain over {worth.over} ({gain}); {queries:,} queries would have "
            f"shown {worth.detectable:.3f}"
        )
    return (
        f"{worth.system}: no measurable gain over {worth.over} on {queries:,} queries ({gain}); "
        f"{worth.queries_needed:,} would show {SMALL:.2f}"
    )


def _added(costs: Mapping[str, float | None], system: str, over: str) -> float | None:
    new, old = costs.get(system), costs.get(over)
    return None if new is None or old is None else new - old
