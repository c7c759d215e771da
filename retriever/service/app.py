"""The HTTP service and the search page.

POST /search      {"query", "k", "filter", "settings", "budget_ms"}: Retriever.explain
GET  /search?q=…  the same for simple cases
POST /similar     {"passage_id", "k", "filter"}; GET /similar?passage_id=… as well
POST /events      a click or a rating, for the log
GET  /fields?field=…  the most frequent values of a field, with counts
POST /passages    adds or replaces passages; DELETE /passages?passage_id=… deletes; both need a key
GET  /collection  fields to filter by, modes, example queries
GET  /health      200 when engine and bundle fit, else 503
GET  /metrics     for Prometheus
GET  /            the page; GET /openapi.json describes the rest
"""

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, FastAPI, Query
from fastapi.exceptions import RequestValidationError
from pydantic import StringConstraints
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from two_tower.models.config import refusal
from two_tower.models.data import Passage
from two_tower.models.errors import TwoTowerError
from two_tower.retriever.records import SearchResult, to_json
from two_tower.retriever.search.filters import FilterLike, parse_filters
from two_tower.retriever.search.retriever import DEFAULT_VALUES, Retriever
from two_tower.retriever.service import bodies
from two_tower.retriever.service.backend import Backend, Changeable
from two_tower.retriever.service.bodies import PERSONAL
from two_tower.retriever.service.config import MOST_BODY_BYTES, MOST_HITS
from two_tower.retriever.service.failures import INTERNAL, Failure, ServiceFailure, failure_of
from two_tower.retriever.service.metrics import Metrics
from two_tower.retriever.service.middleware import (
    BEARER,
    BearerKey,
    BodyLimit,
    Head,
    KnownHost,
    Measured,
    SecurityHeaders,
)
from two_tower.retriever.service.recording import Recording, add_events

PAGE = Path(__file__).parent / "page"

OPEN_PATHS = ("/", "/page/", "/health", "/openapi.json")

PATHS = (
    *("/", "/search", "/similar", "/events", "/fields", "/passages", "/collection"),
    *("/health", "/metrics", "/openapi.json"),
)

BODIES: Mapping[str, type[bodies.Body]] = {
    "/similar": bodies.SimilarBody,
    "/passages": bodies.PassagesBody,
    "/events": bodies.EventBody,
}

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": bodies.ErrorAnswer, "description": meaning}
    for status, meaning in {
        400: "The query, filter or settings make no sense.",
        401: "The key is missing or wrong.",
        403: "This needs a service with a key, or with a log.",
        404: "There is no such path, passage or search.",
        421: "The service was asked by a name that it does not have.",
        413: "The body is too large.",
        422: "The request has not the right form.",
        429: "Too many searches at once; see Retry-After.",
        502: "The engine refused the search.",
        503: "The engine or the collection is not there.",
        504: "The search took too long.",
    }.items()
}

Word = Annotated[str, StringConstraints(max_length=1000)]

PassageIds = Annotated[list[bodies.QueryText], Query(min_length=1, max_length=100)]

Words = Annotated[
    list[Word] | None,
    Query(max_length=32, description="As on the command line, e.g. kind=function or year>=2010."),
]


def create_app(backend: Backend, metrics: Metrics) -> ASGIApp:
    """Return the service around `backend`, which it closes when it ends."""
    config = backend.config
    recording = Recording(config, metrics)
    if recording.experiment is not None and backend.is_open:
        recording.experiment.open(backend.open())
    app = FastAPI(
        title="two-tower-search",
        description=f"Search in {config.name}.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would lead to whatever host the client named
        lifespan=partial(_lifespan, backend, recording),
        responses=ERRORS,
    )
    # The scheme only declares the key; `BearerKey` asks for it before a request is read.
    guarded = APIRouter(dependencies=[Depends(BEARER)] if config.key else [])
    _add_search(guarded, backend, metrics, recording)
    _add_similar(guarded, backend)
    add_events(guarded, recording, check=_known_parameters)
    _add_changes(guarded, backend)
    _add_state(app, guarded, backend, metrics)
    app.include_router(guarded)
    _add_page(app)
    _add_failures(app, collection=config.name)
    return _guard(app, backend, metrics)


def _guard(app: ASGIApp, backend: Backend, metrics: Metrics) -> ASGIApp:
    """Wrap the application in its middleware, the innermost first."""
    config = backend.config
    app = BodyLimit(app, most_bytes=MOST_BODY_BYTES, timeout_s=config.timeout_s)
    if config.key is not None:
        app = BearerKey(app, key=config.key, open_paths=OPEN_PATHS)
    if config.origins:
        app = CORSMiddleware(
            app,
            allow_origins=config.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After"],
        )
    if config.hosts:
        app = KnownHost(app, hosts=config.hosts)
    return SecurityHeaders(Measured(Head(app), metrics, paths=PATHS))


@asynccontextmanager
async def _lifespan(backend: Backend, recording: Recording, _: FastAPI) -> AsyncIterator[None]:
    yield
    backend.close()
    recording.close()


def _known_parameters(request: Request) -> None:
    """Refuse words of the address that nothing reads: a misspelt filter would filter nothing."""
    known = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            listed = f"known: {', '.join(known)}" if known else "a body has them all"
            message = f"unknown parameter query.{name[:100]}; {listed}"
            raise ServiceFailure(Failure(422, "invalid_request", message))


def _add_search(
    router: APIRouter, backend: Backend, metrics: Metrics, recording: Recording
) -> None:
    own = backend.config.settings

    def search(body: bodies.SearchBody, words: Words = None) -> Awaitable[Response]:
        _check_k(body.k)
        settings = body.settings and body.settings.settings(own)
        seed = recording.seed(body.query, body.client_id) if settings in (None, own) else None

        def ask(retriever: Retriever, queries: Sequence[str]) -> list[SearchResult]:
            k, filter = min(body.k, retriever.size), _filter(body.filter, words, retriever)
            results = retriever.explain_many(
                queries, k=k, filter=filter, settings=settings, budget_ms=body.budget_ms
            )
            if seed is None or recording.experiment is None:
                return results
            interleave = partial(
                recording.experiment.interleave,
                retriever,
                k=body.k,
                filter=filter,
                budget_ms=body.budget_ms,
                seed=seed,
            )
            return [interleave(result) for result in results]

        def show(result: SearchResult) -> Response:
            metrics.record(result)
            retriever = backend.open()
            kept = recording.search(result, body, body.filter or words, retriever)
            shown = bodies.search_answer(result, language=retriever.metadata.language)
            return _json({**shown, **kept})

        # As text, for 1 and true are equal otherwise.
        key = repr((body.k, body.filter, words, settings, body.budget_ms, seed))
        return backend.answer(body.query, key, settings=settings, ask=ask, show=show)

    @router.post(
        "/search", response_model=bodies.SearchAnswer, dependencies=[Depends(_known_parameters)]
    )
    async def search_by_body(body: bodies.SearchBody) -> Response:
        """Search, best hits first."""
        return await search(body)

    @router.get(
        "/search", response_model=bodies.SearchAnswer, dependencies=[Depends(_known_parameters)]
    )
    async def search_by_query(
        query: bodies.QueryText | None = None,
        q: bodies.QueryText | None = None,
        k: bodies.HitCount = 10,
        filter: Words = None,
        budget_ms: bodies.BudgetMs | None = None,
    ) -> Response:
        """Search with the default settings; `q` is short for `query`."""
        text = query if q is None else q
        if text is None or (query is not None and q is not None):
            message = "expected query, or q for short, and one of them alone"
            raise ServiceFailure(Failure(422, "invalid_request", message))
        return await search(bodies.SearchBody(query=text, k=k, budget_ms=budget_ms), filter)


def _add_similar(router: APIRouter, backend: Backend) -> None:
    def similar(body: bodies.SimilarBody, words: Words = None) -> Awaitable[Response]:
        _check_k(body.k)

        def job(retriever: Retriever) -> Response:
            filter = _filter(body.filter, words, retriever)
            hits = retriever.similar(body.passage_id, k=min(body.k, retriever.size), filter=filter)
            answers = [bodies.hit_answer(hit, "") for hit in hits]
            return _json({"passage_id": body.passage_id, "hits": answers})

        return backend.search(job)

    @router.post(
        "/similar", response_model=bodies.SimilarAnswer, dependencies=[Depends(_known_parameters)]
    )
    async def similar_by_body(body: bodies.SimilarBody) -> Response:
        """Return the passages nearest to one, without itself."""
        return await similar(body)

    @router.get(
        "/similar", response_model=bodies.SimilarAnswer, dependencies=[Depends(_known_parameters)]
    )
    async def similar_by_query(
        passage_id: bodies.QueryText, k: bodies.HitCount = 10, filter: Words = None
    ) -> Response:
        """Return the passages nearest to one, without itself."""
        return await similar(bodies.SimilarBody(passage_id=passage_id, k=k), filter)


def _add_changes(router: APIRouter, backend: Backend) -> None:
    def require_key() -> None:
        if backend.config.key is None:
            message = "passages are changed with a key alone: start the service with one"
            raise ServiceFailure(Failure(403, "key_required", message))

    checks = [Depends(_known_parameters), Depends(require_key)]

    @router.post("/passages", response_model=bodies.ChangeAnswer, dependencies=checks)
    async def add(body: bodies.PassagesBody) -> Response:
        """Add passages, or replace those of the same ids; they can be searched then."""
        passages = [Passage(**passage.model_dump()) for passage in body.passages]

        def job(collection: Changeable) -> Response:
            report = collection.add(passages)
            counts = {"added": report.added, "unchanged": report.unchanged}
            counts["replaced"] = report.replaced + report.payload_only
            return _json({"collection": collection.name, **counts, "deleted": 0})

        return await backend.change(job)

    @router.delete("/passages", response_model=bodies.ChangeAnswer, dependencies=checks)
    async def delete(passage_id: PassageIds) -> Response:
        """Delete passages by their ids; an id that is not there is passed over."""

        def job(collection: Changeable) -> Response:
            deleted = collection.delete(passage_id)
            none = dict.fromkeys(("added", "replaced", "unchanged"), 0)
            return _json({"collection": collection.name, **none, "deleted": deleted})

        return await backend.change(job)


def _check_k(k: int) -> None:
    if k > MOST_HITS:
        message = f"k is {k}; this service gives at most {MOST_HITS} hits"
        raise ServiceFailure(Failure(400, "invalid_query", message))


def _filter(body: bodies.Filter | None, words: Words, retriever: Retriever) -> "FilterLike | None":
    return parse_filters(words, retriever.fields) if words else body


def _add_state(app: FastAPI, guarded: APIRouter, backend: Backend, metrics: Metrics) -> None:
    @app.get("/health", response_model=bodies.HealthAnswer)
    async def health() -> Response:
        """Say whether this service can search: the engine answers, the bundle fits."""
        return _json(await backend.health())

    @guarded.get("/collection", response_model=bodies.CollectionAnswer)
    async def collection() -> Response:
        """Describe the collection: fields to filter by, modes, example queries."""
        return _json(await backend.search(lambda _: backend.describe()))

    @guarded.get(
        "/fields", response_model=bodies.FieldAnswer, dependencies=[Depends(_known_parameters)]
    )
    async def values(
        field: bodies.QueryText, k: bodies.HitCount = DEFAULT_VALUES, filter: Words = None
    ) -> Response:
        """Count the most frequent values of a field, in all passages or those of a filter."""
        _check_k(k)

        def job(retriever: Retriever) -> Response:
            found = retriever.values(field, k=k, filter=_filter(None, filter, retriever))
            return _json({"field": field, "values": [value._asdict() for value in found]})

        return await backend.search(job)

    @guarded.get("/metrics", response_class=Response)
    async def measured() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _json(content: dict[str, Any]) -> Response:
    try:
        body = orjson.dumps(content)
    except TypeError:  # half of a surrogate pair, or a whole number beyond 64 bits
        body = to_json(content).encode("utf-8", "replace")
    return Response(body, media_type="application/json")


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/page", StaticFiles(directory=PAGE))


def _add_failures(app: FastAPI, *, collection: str) -> None:
    @app.exception_handler(ServiceFailure)
    async def own(_: Request, error: ServiceFailure) -> Response:
        return error.failure.response()

    @app.exception_handler(TwoTowerError)
    async def known(_: Request, error: TwoTowerError) -> Response:
        return failure_of(error, collection=collection).response()

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        body = BODIES.get(request.url.path, bodies.SearchBody)
        return Failure(422, "invalid_request", _refusal(error, body)).response()

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        response = Failure(error.status_code, code, str(error.detail)).response()
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def unknown(_: Request, __: Exception) -> Response:
        return INTERNAL.response()


class _Unrepeated:
    """Stands in a message for what a person typed."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __repr__(self) -> str:
        value = self._value
        return (
            f"text of {len(value):,} characters" if isinstance(value, str) else type(value).__name__
        )


def _refusal(error: RequestValidationError, body: type[bodies.Body]) -> str:
    """Return in our words what is wrong with a request whose body should be a `body`."""
    first = error.errors()[0]
    place, *path = first["loc"]
    if first["input"] and PERSONAL.intersection(path):
        first = {**first, "input": _Unrepeated(first["input"])}
    if first["type"] == "json_invalid":
        return f"the body is not JSON ({first['ctx']['error']} at character {path[0]})"
    owner = body if place == "body" else object
    sentence = refusal({**first, "loc": path}, owner, f"{place}.")
    # A client's own words may hold what is no text.
    return sentence.encode("utf-8", "backslashreplace").decode()
