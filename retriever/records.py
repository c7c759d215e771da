"""What comes out of a search."""

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Run = dict[str, dict[str, float]]
"""query_id -> passage_id -> score, as in ir-measures and TREC run files."""


_SHOWN = reprlib.Repr()
_SHOWN.maxstring = 60


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage thought of one candidate.

    Attributes:
        score: in the stage's own unit (cosine, BM25, the cross-scorer's logit).
        rank: among that query's candidates, from 1.
    """

    score: float
    rank: int


@dataclass(frozen=True, slots=True, repr=False)
class Hit:
    """One search result; FastAPI and pydantic give it the JSON form that `to_dict` returns.

    Attributes:
        rank: position in the result, from 1.
        passage_id: the source's id.
        score: the last scoring stage's; comparable within one query only. Where the cross-scorer
            ran it is a calibrated log-odds: `1 / (1 + exp(-score))` estimates the chance that the
            passage answers. With diversity the order is not by score alone.
        title: may be empty.
        text: the passage.
        url: may be empty.
        stages: stage name -> its score and rank; a stage that did not see this passage is absent.
        payload: everything the collection holds about the passage.
    """

    rank: int
    passage_id: str
    score: float
    title: str
    text: str
    url: str
    stages: Mapping[str, Stage]
    payload: Mapping[str, Any]

    def __repr__(self) -> str:
        names = ("rank", "passage_id", "score", "title", "text")
        values = ", ".join(f"{name}={_SHOWN.repr(getattr(self, name))}" for name in names)
        return f"Hit({values}, …)"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, for `json.dumps` and as `retriever search --json` prints it."""
        return {
            "rank": self.rank,
            "passage_id": self.passage_id,
            "score": self.score,
            "title": self.title,
            "text": self.text,
            "url": self.url,
            "stages": {
                name: {"score": stage.score, "rank": stage.rank}
                for name, stage in self.stages.items()
            },
            "payload": dict(self.payload),
        }


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The hits of one query, what was done for them and where the time went.

    Attributes:
        query: as searched.
        hits: best first.
        timings_ms: step -> milliseconds. Queries searched together share the cost evenly.
        stages_run: the stages that took part, in their order: rewrite, legs, rerank, cross,
            groups, diversity.
        skipped: stages that the settings ask for and `budget_ms` leaves no time for; rewrite too
            where the language model gave no answer.
        answerable: the chance that the likeliest of the candidates answers the query; None where
            no cross-scorer read them.
        read_as: word of the query that no passage has -> the near word that it was read as.
    """

    query: str
    hits: list[Hit]
    timings_ms: Mapping[str, float]
    stages_run: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    answerable: float | None = None
    read_as: Mapping[str, str] = field(default_factory=dict)

    @property
    def searched(self) -> str:
        """The query, and what its unknown words were read as."""
        return " ".join([self.query, *self.read_as.values()])

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that `retriever search --json` prints."""
        return {
            "query": self.query,
            "hits": [hit.to_dict() for hit in self.hits],
            "timings_ms": {name: round(ms, 3) for name, ms in self.timings_ms.items()},
            "stages_run": list(self.stages_run),
            "skipped": list(self.skipped),
            "answerable": None if self.answerable is None else round(self.answerable, 4),
            "read_as": dict(self.read_as),
        }


def to_json(content: Any) -> str:
    """Return JSON on one line; a number that JSON cannot write becomes null."""
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(content), ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
