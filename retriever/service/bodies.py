"""The bodies of requests and answers, as OpenAPI shows them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, JsonValue, create_model

from two_tower.models.language import ENGLISH
from two_tower.retriever.collection.schema import RESERVED, point_id
from two_tower.retriever.records import Hit, SearchResult
from two_tower.retriever.search.queries import MAX_QUERY_CHARS
from two_tower.retriever.search.settings import SearchSettings
from two_tower.retriever.search.snippets import LOOKED_AT, Segment, highlight, snippet
from two_tower.retriever.service.config import MOST_CANDIDATES
from two_tower.retriever.service.failures import Failure, ServiceFailure

SNIPPET_CHARS = 240

LOOKED_AT_TOGETHER = 10 * LOOKED_AT
"""Characters of all texts of an answer: a hundred hits take no longer than ten."""

HitCount = Annotated[int, Field(ge=1, description="Number of hits; the service sets the most.")]

Filter = Annotated[
    dict[str, JsonValue],
    Field(
        description="field -> value (equals), list (any of), {gte, gt, lte, lt} (range) or "
        "{text} (full text); GET /collection lists the fields.",
        examples=[{"kind": "function"}],
    ),
]

QueryText = Annotated[str, Field(min_length=1, max_length=MAX_QUERY_CHARS)]

BudgetMs = Annotated[
    float,
    Field(gt=0, allow_inf_nan=False, description="Optional stages that cost more are skipped."),
]


PersonId = Annotated[
    str,
    Field(
        min_length=1,
        max_length=100,
        description="Who searches, a browser or a person; a log has a keyed hash of it alone.",
    ),
]

PERSONAL = frozenset({"query", "q", "client_id", "user_id", "session_id", "message"})
"""Words of a request that no answer repeats."""


class Body(BaseModel):
    """A request body: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid")


class PartialSettings(Body):
    """The settings of a request; `SettingsBody` adds the fields."""

    def settings(self, default: SearchSettings) -> SearchSettings:
        """Return the service's `default` with the changes of this request.

        Raises:
            ConfigError: they do not fit together.
            ServiceFailure: a leg asks for more candidates than the service allows.
        """
        changes = self.model_dump(exclude_none=True)
        if max(changes.get("legs", {}).values(), default=0) > MOST_CANDIDATES:
            message = f"a leg asks for more than {MOST_CANDIDATES} candidates"
            raise ServiceFailure(Failure(400, "invalid_settings", message))
        return replace(default, **changes)


OPTIONAL_FIELDS: dict[str, Any] = {
    name: (annotation | None, None)
    for name, annotation in get_type_hints(SearchSettings, include_extras=True).items()
    # A stranger could overload the engine by exact search, and name any URL to be asked.
    if name not in ("ann", "rewrite")
}

SettingsBody = create_model(
    "SettingsBody",
    __base__=PartialSettings,
    __doc__="`SearchSettings` of one request; what is left out keeps the service's default.",
    **OPTIONAL_FIELDS,
)


class SearchBody(Body):
    """One search; the fields are the arguments of `Retriever.explain`."""

    query: QueryText
    k: HitCount = 10
    filter: Filter | None = None
    settings: SettingsBody | None = None  # type: ignore[valid-type]  # made from SearchSettings
    budget_ms: BudgetMs | None = None
    client_id: PersonId | None = None


class SimilarBody(Body):
    """Passages like one that is in the collection."""

    passage_id: QueryText
    k: HitCount = 10
    filter: Filter | None = None


class PassageBody(Body):
    """One passage to add; one whose id is there already takes the place of the old one."""

    passage_id: Annotated[str, Field(min_length=1)]
    text: str
    title: str = ""
    url: str = ""
    fields: dict[str, JsonValue] = Field(default_factory=dict)


class PassagesBody(Body):
    """Passages to add to the collection."""

    passages: Annotated[list[PassageBody], Field(min_length=1)]


class ChangeAnswer(BaseModel):
    """What a change did; it can be searched now."""

    collection: str
    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    deleted: int = 0


class EventObject(BaseModel):
    """The hit that an event is about."""

    object_id: Annotated[str, Field(min_length=1, max_length=MAX_QUERY_CHARS)] | int


class EventPosition(BaseModel):
    """Where the hit stood."""

    ordinal: Annotated[int, Field(ge=1, description="Rank of the hit, from 1.")]


class EventAttributes(BaseModel):
    """What an event is about; more is passed over."""

    object: EventObject
    position: EventPosition | None = None
    rating: Annotated[int, Field(ge=-1, le=10)] | None = None


class EventBody(Body):
    """An event as User Behavior Insights 1.3 has it; `message` and times are not kept."""

    action_name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=100,
            description="click; answers, of a passage that does; rate, with a rating, above 0 for "
            "an answer; or any other.",
        ),
    ]
    query_id: Annotated[str, Field(max_length=100, description="That /search answered with.")]
    event_attributes: EventAttributes
    client_id: PersonId | None = None
    user_id: PersonId | None = None
    session_id: PersonId | None = None
    application: str | None = None
    timestamp: str | None = None
    message_type: str | None = None
    message: str | None = None


class EventAnswer(BaseModel):
    """The event is kept."""

    status: Literal["accepted"]


class SegmentAnswer(BaseModel):
    """A piece of a text, and whether it matches the query."""

    text: str
    is_match: bool


class StageAnswer(BaseModel):
    """Score and rank of a hit in one stage."""

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
    payload: dict[str, JsonValue]
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
    answerable: float | None = None
    read_as: dict[str, str]
    query_id: str | None = None


class SimilarAnswer(BaseModel):
    """The passages nearest to one."""

    passage_id: str
    hits: list[HitAnswer]


class ValueAnswer(BaseModel):
    """A value of a field, and how many passages have it."""

    value: JsonValue
    passages: int


class FieldAnswer(BaseModel):
    """The most frequent values of a field, the most frequent first."""

    field: str
    values: list[ValueAnswer]


class HealthAnswer(BaseModel):
    """The service can search: its collection, and the bundle of both.

    `is_current` is false from when the alias points to another collection until the service has
    followed it, some seconds; `note` says why it cannot. `warnings` say what does not stop searches
    and still asks for somebody.
    """

    status: Literal["ready"]
    collection: str
    fingerprint: str
    passages: int
    is_current: bool
    note: str | None = None
    warnings: list[str]


class CollectionAnswer(BaseModel):
    """The collection: fields to filter by, modes, example queries."""

    name: str
    collection: str
    passages: int
    fields: dict[str, str]
    most_hits: int
    modes: dict[str, dict[str, JsonValue]]
    examples: list[str]
    dashboard: str | None
    keeps_log: bool


class ErrorDetail(BaseModel):
    """What went wrong: a stable code for programs, a sentence for people."""

    code: str
    message: str


class ErrorAnswer(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def search_answer(result: SearchResult, *, language: str) -> dict[str, Any]:
    """Return a `SearchAnswer`; its marks are those of a language, as `Bm25Config` has it."""
    looked_at = LOOKED_AT_TOGETHER // max(10, len(result.hits))
    marked = partial(hit_answer, query=result.searched, language=language, looked_at=looked_at)
    hits = [marked(hit) for hit in result.hits]
    return {**result.to_dict(), "hits": hits}


def hit_answer(
    hit: Hit, query: str, *, language: str = ENGLISH, looked_at: int = LOOKED_AT
) -> dict[str, Any]:
    """Return a `HitAnswer`, marked by the words of `query`.

    The snippet is of the text's first `looked_at` characters.
    """
    text = snippet(hit.text, query, width=SNIPPET_CHARS, language=language, looked_at=looked_at)
    title = highlight(hit.title, query, language=language)
    return {
        **hit.to_dict(),
        "point_id": point_id(hit.passage_id),
        "fields": {name: value for name, value in hit.payload.items() if name not in RESERVED},
        "marked_title": _segments(title),
        "snippet": _segments(text),
    }


def _segments(parts: Sequence[Segment]) -> list[dict[str, Any]]:
    return [{"text": text, "is_match": is_match} for text, is_match in parts]
