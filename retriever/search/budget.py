"""Time: how long each step took, what a stage will probably cost, whether it can be paid."""

import threading
import time
from collections.abc import Sequence

WEIGHT_OF_LATEST = 0.2

DECAY = 0.9

LAST_STEP = "payload"


class Costs:
    """A running mean of what each step costs a query, in milliseconds; safe between threads."""

    def __init__(self) -> None:
        self._mean_ms: dict[str, float] = {}
        self._lock = threading.Lock()

    def expect_ms(self, step: str) -> float:
        """Return the mean, 0 for what never ran: it is then tried."""
        return self._mean_ms.get(step, 0.0)

    def record(self, step: str, ms: float) -> None:
        """Take one more measurement into the mean."""
        with self._lock:
            mean = self._mean_ms.get(step, ms)
            self._mean_ms[step] = mean + WEIGHT_OF_LATEST * (ms - mean)

    def forgive(self, step: str) -> None:
        """Lower the mean of a step that was skipped, or one slow call would rule it out forever."""
        with self._lock:
            self._mean_ms[step] = DECAY * self._mean_ms.get(step, 0.0)


class Stopwatch:
    """Milliseconds per step, shared evenly by the queries that go through it together.

    Attributes:
        laps_ms: step -> milliseconds per query.
        skipped: stages that could not be paid, in the order in which they were refused.
    """

    def __init__(self, costs: Costs, *, queries: int, budget_ms: float | None) -> None:
        self._costs = costs
        self._queries = queries
        self._budget_ms = budget_ms
        self._start = self._last = time.perf_counter()
        self.laps_ms: dict[str, float] = {}
        self.skipped: list[str] = []

    def lap(self, step: str, *, cost_of: str | None = None) -> None:
        """End a step.

        Args:
            step: its name.
            cost_of: the optional stage that ran in it, where that has another name.
        """
        now = time.perf_counter()
        self.laps_ms[step] = ms = (now - self._last) * 1000.0 / self._queries
        self._last = now
        self._costs.record(cost_of or step, ms)

    def affords(self, stage: str, *, before: Sequence[str] = (), after: str | None = None) -> bool:
        """Say whether an optional stage, and the step after it, probably end within the budget.

        If not, the stage counts as skipped.

        Args:
            stage: its name.
            before: stages that have to fit as well.
            after: a stage without which this one is not worth its time.
        """
        if self._budget_ms is None:
            return True
        spent = (time.perf_counter() - self._start) * 1000.0 / self._queries
        expected = sum(self._costs.expect_ms(step) for step in (stage, *before, LAST_STEP))
        if spent + expected <= self._budget_ms and after not in self.skipped:
            return True
        self._costs.forgive(stage)
        self.skipped.append(stage)
        return False
