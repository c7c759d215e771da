"""The passages that a load reads: all of DATA or a part, from disk once where they are few.

A selection is DATA with fewer passages, read in the same way. The collection's metadata holds what
is needed to make it again.
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from pydantic import Field

from two_tower.models.config import configuration
from two_tower.models.data import Dataset, Passage
from two_tower.models.errors import ConfigError, DataError
from two_tower.retriever.collection.options import PLAIN_KINDS
from two_tower.retriever.engine.protocol import Kind
from two_tower.retriever.search.filters import parse_filters

PASSAGE_FIELDS = ("passage_id", "title", "text", "url")
BOUNDS: Mapping[str, Callable[[Any, Any], bool]] = {
    "gte": operator.ge,
    "gt": operator.gt,
    "lte": operator.le,
    "lt": operator.lt,
}

MOST_CACHED_BYTES = 2**26
PASSAGE_BYTES = 1000  # of a passage in memory, beside its text


@configuration()
class Selection:
    """Which passages.

    Attributes:
        where: conditions such as `kind=note`, `year>=2010` or `title~river`; all must hold, but of
            two field=… with the same field one is enough.
        limit: the first so many of them, in DATA's order.
    """

    where: tuple[str, ...] = ()
    limit: int | None = Field(default=None, ge=1)

    def require_no_prune(self) -> None:
        """Refuse `--prune` with a selection: what was not selected is not gone from DATA.

        Raises:
            ConfigError: something would be left out.
        """
        if not self.is_everything:
            raise ConfigError(
                "--prune with --where or --limit would delete what was not selected; prune with a "
                "load of all of DATA"
            )

    @property
    def is_everything(self) -> bool:
        """Whether nothing is left out."""
        return not self.where and self.limit is None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {"where": list(self.where), "limit": self.limit}


class CachedData(Dataset):
    """DATA whose passages stay in memory after the first reading, where they are few."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset.path, dataset.manifest)
        self._passages: list[Passage] | None = None

    def passages(self) -> Iterator[Passage]:
        """Stream the passages in stored order."""
        if self._passages is not None:
            yield from self._passages
            return
        few: list[Passage] = []
        size = 0
        for passage in super().passages():
            size += PASSAGE_BYTES + len(passage.content)
            if size <= MOST_CACHED_BYTES:
                few.append(passage)
            else:
                few.clear()
            yield passage
        if size <= MOST_CACHED_BYTES:
            self._passages = few


class SelectedData(Dataset):
    """DATA with the passages of a selection; queries and judgements are all of DATA's.

    Attributes:
        all_data: DATA itself.
    """

    def __init__(self, dataset: Dataset, selection: Selection) -> None:
        """Count what is selected.

        Raises:
            QueryError: a word of `where` is not understood.
            DataError: it names a field that DATA does not have, or selects nothing.
        """
        super().__init__(dataset.path, dict(dataset.manifest))
        self.all_data = cache(dataset)
        self._limit = selection.limit
        self._conditions = _parse_conditions(dataset, selection.where)
        count = sum(1 for _ in self.passages())
        if not count:
            raise DataError(f"{dataset.path} has no passage with {' '.join(selection.where)}")
        self.manifest["counts"] = {**dataset.manifest["counts"], "passages": count}
        self.manifest["selection"] = selection.to_dict()

    def passages(self) -> Iterator[Passage]:
        """Stream the selected passages in stored order."""
        selected = (
            passage
            for passage in self.all_data.passages()
            if all(_holds(passage, name, what) for name, what in self._conditions.items())
        )
        return islice(selected, self._limit)


def cache(dataset: Dataset) -> Dataset:
    """Return DATA that is read from disk once, where its passages take 64 MiB or less."""
    return dataset if isinstance(dataset, CachedData | SelectedData) else CachedData(dataset)


def select(dataset: Dataset, selection: Selection) -> Dataset:
    """Return the selected part of DATA; DATA itself where nothing is left out.

    Raises:
        QueryError: a word of `where` is not understood.
        DataError: it names a field that DATA does not have, or selects nothing.
    """
    return dataset if selection.is_everything else SelectedData(dataset, selection)


def _parse_conditions(dataset: Dataset, where: Sequence[str]) -> dict[str, Any]:
    census = dataset.manifest.get("fields", {})
    types = {name: field["type"] for name, field in census.items()}
    plain = {name: Kind(kind) for name, kind in types.items() if kind in PLAIN_KINDS}
    conditions = parse_filters(where, plain)
    known = [*PASSAGE_FIELDS, *census]
    if unknown := [name for name in conditions if name not in known]:
        raise DataError(
            f"{dataset.path} has no field {unknown[0]!r} to select by; it has: {', '.join(known)}"
        )
    return conditions


def _holds(passage: Passage, name: str, condition: Any) -> bool:
    """Say whether a field has one of the values, all of the words, or a value within bounds."""
    value = getattr(passage, name) if name in PASSAGE_FIELDS else passage.fields.get(name)
    values = value if isinstance(value, list) else [value]
    if isinstance(condition, list):
        return any(one in condition for one in values)
    if "text" in condition:
        words = _words(condition["text"])
        return any(words <= _words(str(one)) for one in values if one is not None)
    return any(_is_within(one, condition) for one in values)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _is_within(value: Any, bounds: Mapping[str, Any]) -> bool:
    try:
        return all(BOUNDS[name](value, bound) for name, bound in bounds.items())
    except TypeError:  # another type, or no value at all
        return False
