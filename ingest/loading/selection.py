"""A part of DATA: `--where` on the fields of a passage, and `--limit`.

A selection is DATA with fewer passages: what reads DATA reads it the same way. Its form in the
collection's metadata is enough to make it again.
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from qdrant_client import models as qm

from two_tower.models.data import Dataset, Passage
from two_tower.models.errors import ConfigError, DataError
from two_tower.retriever.search.filters import parse_filters

OWN = ("passage_id", "title", "text", "url")

TYPES = {
    "keyword": qm.PayloadSchemaType.KEYWORD,
    "integer": qm.PayloadSchemaType.INTEGER,
    "float": qm.PayloadSchemaType.FLOAT,
    "bool": qm.PayloadSchemaType.BOOL,
}

BOUNDS: Mapping[str, Callable[[Any, Any], bool]] = {
    "gte": operator.ge,
    "gt": operator.gt,
    "lte": operator.le,
    "lt": operator.lt,
}


@dataclass(frozen=True)
class Selection:
    """Which passages.

    Attributes:
        where: words such as `kind=note`, `year>=2010` or `title~river`, which must all hold; the
            same field=… twice: either.
        limit: the first so many of them, in DATA's order.
    """

    where: tuple[str, ...] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit is {self.limit}, expected 1 or more")

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

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any] | None) -> "Selection":
        """Return what `to_dict` gave; everything for None."""
        stored = stored or {}
        return cls(tuple(stored.get("where", ())), stored.get("limit"))


class SelectedData(Dataset):
    """DATA with the passages of a selection; queries and judgements are all of DATA's.

    Attributes:
        whole: DATA itself.
    """

    def __init__(self, dataset: Dataset, selection: Selection) -> None:
        """Count what is selected.

        Raises:
            QueryError: a word of `where` is not understood.
            DataError: it names a field that DATA does not have, or selects nothing.
        """
        super().__init__(dataset.path, dict(dataset.manifest))
        self.whole = dataset
        self._selection = selection
        self._wanted = _parse(dataset, selection.where)
        count = sum(1 for _ in self.passages())
        if not count:
            raise DataError(f"{dataset.path} has no passage with {' '.join(selection.where)}")
        self.manifest["counts"] = {**dataset.manifest["counts"], "passages": count}
        self.manifest["selection"] = selection.to_dict()

    def passages(self, *, batch_size: int = 2048) -> Iterator[Passage]:
        """Stream the selected passages in stored order."""
        found = (
            passage
            for passage in self.whole.passages(batch_size=batch_size)
            if all(_holds(passage, name, wanted) for name, wanted in self._wanted.items())
        )
        return islice(found, self._selection.limit)


def select(dataset: Dataset, selection: Selection) -> Dataset:
    """Return the selected part of DATA; DATA itself where nothing is left out.

    Raises:
        QueryError: a word of `where` is not understood.
        DataError: it names a field that DATA does not have, or selects nothing.
    """
    return dataset if selection.is_everything else SelectedData(dataset, selection)


def _parse(dataset: Dataset, where: Sequence[str]) -> dict[str, Any]:
    census = dataset.manifest.get("fields", {})
    types = {name: TYPES[field["type"]] for name, field in census.items() if field["type"] in TYPES}
    wanted = parse_filters(where, types)
    known = [*OWN, *census]
    if unknown := [name for name in wanted if name not in known]:
        raise DataError(
            f"{dataset.path} has no field {unknown[0]!r} to select by; it has: {', '.join(known)}"
        )
    return wanted


def _holds(passage: Passage, name: str, wanted: Any) -> bool:
    value = getattr(passage, name) if name in OWN else passage.fields.get(name)
    values = value if isinstance(value, list) else [value]
    if isinstance(wanted, list):
        return any(one in wanted for one in values)
    if "text" in wanted:
        return any(_words(wanted["text"]) <= _words(str(one)) for one in values if one is not None)
    return any(_within(one, wanted) for one in values)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _within(value: Any, bounds: Mapping[str, Any]) -> bool:
    try:
        return all(BOUNDS[name](value, bound) for name, bound in bounds.items())
    except TypeError:  # another type, or no value at all
        return False
