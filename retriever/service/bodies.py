"""What goes over the wire: the bodies of requests and answers, as OpenAPI shows them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from two_tower.retriever.collection.schema import RESERVED, point_id
from two_tower.retriever.records import Hit, SearchResult
from two_tower.retriever.search.settings import MOST_CROSS_CANDIDATES, SearchSettings
from two_tower.retriever.search.snippets import Segment, highlight, snippet
from two_tower.retriever.service.failures import Failure, ServiceFailure

LONGEST_QUERY = 10_000

MOST_PER_GROUP = 1_000

PLAIN_NAME = r"^[A-Za-z0-9_\-]+$"

Hits = Annotated[int, Field(ge=1, description="Number of hits; the service sets the most.")]

FilterBody = Annotated[
    dict[str, JsonValue],
    Field(
        description="field -> value (equals), list (any of), {gte, gt, lte, lt} (range) or "
        "{text} (full text); GET /collection lists the fields.",
        examples=[{"kind": "function"}],
    ),
]

Query = Annotated[str, Field(min_length=1, max_length=LONGEST_QUERY)]

Budget = Annotated[
    float,
    Field(gt=0, allow_inf_nan=False, description="Optional stages that cost more are skipped."),
]


class Body(BaseModel):
    """A request body: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid")


class SettingsBody(Body):
    """`SearchSettings` of one request, but `ann`; what is left out keeps the service's default."""

    legs: dict[str, Annotated[int, Field(ge=1)]] | None = Field(
        None, description="Vector name -> candidates.", examples=[{"dense": 100, "bm25": 100}]
    )
    fusion: Literal["learnt", "weighted", "rrf"] | None = None
    tower_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    rerank: bool | None = None
    cross: bool | None = None
    cross_candidates: Annotated[int, Field(ge=1, le=MOST_CROSS_CANDIDATES)] | None = None
    diversity: Annotated[float, Field(ge=0, le=1)] | None = None
    group_by: Annotated[str, Field(pattern=PLAIN_NAME, max_length=100)] | None = None
    group_size: Annotated[int, Field(ge=1, le=MOST_PER_GROUP)] | None = None

    def settings(self, default: SearchSettings, *, most_candidates: int) -> SearchSettings:
        """Return them as the retriever takes them, over the service's `default`.

        Raises:
            ConfigError: they make no sense.
            ServiceFailure: a leg asks for more candidates than the service allows.
        """
        given = self.model_dump(exclude_none=True)
        if max(given.get("legs", {"": 0}).values(), default=0) > most_candidates:
            message = f"a leg asks for more than {most_candidates} candidates"
            raise ServiceFailure(Failure(400, "invalid_settings", message))
        return replace(default, **given)


class SearchBody(Body):
    """One search; the fields are the arguments of `Retriever.explain`."""

    query: Query
    k: Hits = 10
    filter: FilterBody | None = None
    settings: SettingsBody | None = None
    budget_ms: Budget | None = None


class SimilarBody(Body):
    """Passages like one that is in the collection."""

    passage_id: Annotated[str, Field(min_length=1, max_length=LONGEST_QUERY)]
    k: Hits = 10
    filter: FilterBody | None = None


class SegmentAnswer(BaseModel):
    """A piece of text that matches the query, or does not."""

    text: str
    is_match: bool


class StageAnswer(BaseModel):
    """What one stage thought of a hit."""

    score: float
    rank: int


class HitAnswer(BaseModel):
    """One hit; its text is plain text, never markup."""

    rank: int
    passage_id: str
    score: float
    title: str
    text: str
    url: str
    stages: dict[str, StageAnswer]
    point_id: str
    fields: dict[str, JsonValue]
    marked_title: list[SegmentAnswer]
    snippet: list[SegmentAnswer]


class SearchAnswer(BaseModel):
    """The hits of a query, where the time went, what ran."""

    query: str
    hits: list[HitAnswer]
    timings_ms: dict[str, float]
    stages_run: list[str]
    skipped: list[str]


class SimilarAnswer(BaseModel):
    """The passages nearest to one."""

    passage_id: str
    hits: list[HitAnswer]


class HealthAnswer(BaseModel):
    """The service can search."""

    status: Literal["ready"]
    collection: str
    fingerprint: str
    passages: int
    is_current: bool


class CollectionAnswer(BaseModel):
    """What there is to search, filter by and switch."""

    name: str
    collection: str
    passages: int
    fields: dict[str, str]
    most_hits: int
    modes: dict[str, dict[str, JsonValue]]
    examples: list[str]
    dashboard: str | None


class ErrorDetail(BaseModel):
    """What went wrong: a stable code for programs, a sentence for people."""

    code: str
    message: str


class ErrorAnswer(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def search_answer(result: SearchResult) -> dict[str, Any]:
    """Return a `SearchAnswer`."""
    return {
        **result.to_dict(),
        "hits": [hit_answer(hit, result.query) for hit in result.hits],
    }


def hit_answer(hit: Hit, query: str) -> dict[str, Any]:
    """Return a `HitAnswer`, marked by the words of `query`."""
    return {
        **hit.to_dict(),
        "point_id": point_id(hit.passage_id),
        "fields": _fields(hit.payload),
        "marked_title": [_segment(s) for s in highlight(hit.title, query)],
        "snippet": [_segment(s) for s in snippet(hit.text, query, width=240)],
    }


def _fields(payload: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in payload.items() if name not in RESERVED}


def _segment(segment: Segment) -> dict[str, Any]:
    return {"text": segment.text, "is_match": segment.is_match}
