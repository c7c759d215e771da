"""What the service counts, for Prometheus.

Each of several workers keeps its numbers in files of a folder that all read, under the worker's
number: one that takes a dead worker's place counts on, and no total ever falls.
"""

import os
import struct
import time
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from two_tower.retriever.records import SearchResult

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


MAKING_S = 1.0
"""For a worker to make a file that others read already; it takes microseconds."""


class Metrics:
    """Counters of one service, in a registry of their own; of several workers, their sums."""

    def __init__(self, shared: Path | None = None, *, worker: int = 0) -> None:
        """Begin at 0, or where the worker of the same number ended.

        Args:
            shared: the folder of all workers; it then serves every `Metrics` of this process.
            worker: its number.
        """
        if shared is not None:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(shared)
            values.ValueClass = values.MultiProcessValue(lambda: worker)  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        self._shared = shared
        self.requests = Counter(
            "retriever_requests",
            "Requests by path and HTTP status.",
            ["path", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "retriever_request_seconds",
            "Time from the request to the end of the answer.",
            ["path"],
            buckets=BUCKETS_S,
            registry=registry,
        )
        self.in_flight = Gauge(
            "retriever_requests_in_flight",
            "Requests being answered.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.workers = Gauge(
            "retriever_workers",
            "Processes that answer.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.workers.set(1)
        self.stage_seconds = Histogram(
            "retriever_stage_seconds",
            "Time that each step of a search took.",
            ["stage"],
            buckets=BUCKETS_S,
            registry=registry,
        )
        self.skipped = Counter(
            "retriever_skipped_stages",
            "Stages left out for want of time.",
            ["stage"],
            registry=registry,
        )

        self.log_records = Counter(
            "retriever_log_records",
            "Searches and events for the log, written or lost.",
            ["outcome"],
            registry=registry,
        )

    def record(self, result: SearchResult) -> None:
        """Count the time of each step of a search."""
        for stage, ms in result.timings_ms.items():
            self.stage_seconds.labels(stage).observe(ms / 1000.0)
        for stage in result.skipped:
            self.skipped.labels(stage).inc()

    def count_records(self, outcome: str, number: int) -> None:
        """Count records of the log that were written or lost."""
        self.log_records.labels(outcome).inc(number)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        if self._shared is None:
            return generate_latest(self._registry)
        sums = CollectorRegistry()
        MultiProcessCollector(sums, str(self._shared))  # type: ignore[no-untyped-call]
        until = time.monotonic() + MAKING_S
        while True:
            try:
                return generate_latest(sums)
            except (struct.error, RuntimeError):  # a worker that starts is making its files
                if time.monotonic() > until:
                    raise
                time.sleep(0.005)


def forget(worker: int, *, shared: Path) -> None:
    """Take from the sums what a worker that has ended was doing just then."""
    mark_process_dead(worker, str(shared))  # type: ignore[no-untyped-call]
