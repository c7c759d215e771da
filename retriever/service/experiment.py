"""Two ways to search, interleaved: what `--against` names beside the service's own."""

import hashlib
import logging
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from two_tower.models.bundle.files import CARD
from two_tower.models.errors import ConfigError, TwoTowerError
from two_tower.retriever.behaviour.interleaving import team_draft
from two_tower.retriever.errors import CollectionNotFound
from two_tower.retriever.records import SearchResult
from two_tower.retriever.search.bundles import find_bundle, load_bundle
from two_tower.retriever.search.filters import FilterLike
from two_tower.retriever.search.retriever import Retriever
from two_tower.retriever.search.settings import SearchSettings, read_settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class InterleavedResult(SearchResult):
    """A result of two rankings.

    Attributes:
        own: the name of the service's own way to search.
        other: the name of the other.
        teams: for each hit, which of the two put it there.
    """

    own: str = ""
    other: str = ""
    teams: tuple[str, ...] = ()


class Experiment:
    """Searches the other way as well, and interleaves; threads may share one."""

    def __init__(self, against: str, *, share: float) -> None:
        """Open nothing yet.

        Args:
            against: a settings file, a bundle that fits the collection, or a collection.
            share: of the searches that are interleaved.
        """
        self._against = against
        self._share = share
        self._other: Retriever | None = None
        self._is_failing = False
        self._lock = threading.Lock()

    def takes(self, seed: bytes) -> bool:
        """Say whether the search with this seed is interleaved."""
        return int.from_bytes(seed[:8], "big") < self._share * 2**64

    def open(self, retriever: Retriever) -> Retriever:
        """Return the other way to search, on the engine of the service's own.

        Raises:
            ConfigError: it is nothing of all that, or the collection cannot do what a file says.
            BundleError: it is a broken bundle.
            EngineError: a collection of another bundle.
        """
        with self._lock:
            if self._other is None:
                self._other = self._opened(retriever)
            return self._other

    def _opened(self, own: Retriever) -> Retriever:
        path = Path(self._against)
        if path.is_file():
            return own.with_settings(read_settings(path))
        bundle = load_bundle(path) if (path / CARD).is_file() else None
        name = self._against if bundle is None else own.name
        try:
            own.engine.resolve(name)
        except CollectionNotFound as error:
            raise ConfigError(
                f"--against names {name!r}, which is no settings file, no bundle and no "
                f"collection: {error}"
            ) from None
        return Retriever(
            own.engine, name, bundle or find_bundle(own.engine, name), settings=own.settings
        )

    def interleave(
        self,
        retriever: Retriever,
        own: SearchResult,
        *,
        k: int,
        filter: "FilterLike | None",
        budget_ms: float | None,
        seed: bytes,
    ) -> SearchResult:
        """Return `own` with the other ranking drafted in; alone where the other search fails."""
        try:
            other = self.open(retriever)
            result = other.explain(
                own.query, k=min(k, other.size), filter=filter, budget_ms=budget_ms
            )
        except TwoTowerError as error:
            if not self._is_failing:
                log.warning("nothing is interleaved: %s", error)
            self._is_failing = True
            return own
        self._is_failing = False
        # What both found keeps the scores of the service's own search.
        hits = {hit.passage_id: hit for hit in (*result.hits, *own.hits)}
        ids = [[hit.passage_id for hit in ranking.hits] for ranking in (own, result)]
        draft = team_draft(*ids, k=k, seed=seed)
        return InterleavedResult(
            query=own.query,
            hits=[replace(hits[p], rank=rank) for rank, p in enumerate(draft.ids, 1)],
            timings_ms={**own.timings_ms, "against": sum(result.timings_ms.values())},
            stages_run=own.stages_run,
            skipped=own.skipped,
            answerable=own.answerable,
            read_as=own.read_as,
            own=_label(retriever.collection, retriever.settings),
            other=_label(f"{self._against} on {other.collection}", other.settings),
            teams=tuple(draft.teams),
        )


def _label(name: str, settings: SearchSettings) -> str:
    """Return a name that changes with the settings."""
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()
    return f"{name} (settings {digest[:8]})"
