"""Failures as HTTP answers: always `{"error": {"code", "message"}}`, never a traceback.

What an engine's error tells about addresses and other collections stays in the log.
"""

import logging
from typing import NamedTuple

from starlette.responses import JSONResponse

from two_tower.models.errors import ConfigError, DataError, EndpointError
from two_tower.retriever.errors import (
    CollectionMismatch,
    CollectionNotFound,
    EngineError,
    EngineLocked,
    EngineUnavailable,
    PassageNotFound,
    QueryError,
    VersionNotFollowed,
)

log = logging.getLogger(__name__)

LONGEST_MESSAGE = 500


class Failure(NamedTuple):
    """One HTTP error.

    Attributes:
        status: HTTP status.
        code: stable name for programs.
        message: one sentence for people.
        retry_after_s: when another try makes sense; None where it is not.
    """

    status: int
    code: str
    message: str
    retry_after_s: int | None = None

    def response(self) -> JSONResponse:
        """Return it as an answer."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        # One line of bounded length, whatever the client's own words in it are.
        message = " ".join(self.message.split())[:LONGEST_MESSAGE]
        body = {"error": {"code": self.code, "message": message}}
        return JSONResponse(body, self.status, headers=headers)


class ServiceFailure(Exception):  # noqa: N818
    """Raised by the service itself; carries the answer."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


OVERLOADED = Failure(429, "overloaded", "too many searches at once; try again in a moment", 1)

TIMED_OUT = Failure(504, "timeout", "the search took longer than the service allows")

UNAUTHORIZED = Failure(401, "unauthorized", "expected the header Authorization: Bearer <key>")

INTERNAL = Failure(500, "internal", "the service failed; its log says why")


def failure_of(error: Exception, *, collection: str) -> Failure:
    """Return the answer for one of our errors, and log what the client is not told."""
    if isinstance(error, PassageNotFound):
        return Failure(404, "not_found", str(error))
    if isinstance(error, QueryError):
        return Failure(400, "invalid_query", str(error))
    if isinstance(error, DataError):
        return Failure(400, "invalid_passage", str(error))
    if isinstance(error, ConfigError):
        return Failure(400, "invalid_settings", str(error))
    log.warning("%s: %s", type(error).__name__, error)
    if isinstance(error, EngineUnavailable):
        message = "the vector engine does not answer; searches work again as soon as it does"
        return Failure(503, "engine_unavailable", message, 2)
    if isinstance(error, EngineLocked):
        message = f"collection {collection!r} is being loaded; change it when that has ended"
        return Failure(503, "loading", message, 10)
    if isinstance(error, EndpointError):
        message = "the model that reads queries does not answer; a budget_ms goes on without it"
        return Failure(503, "encoder_unavailable", message, 2)
    if isinstance(error, CollectionNotFound):
        message = f"there is no collection {collection!r}; it has to be loaded first"
        return Failure(503, "collection_missing", message, 10)
    if isinstance(error, VersionNotFollowed):
        message = f"{collection!r} is another version now, whose bundle this service does not find"
        return Failure(503, "bundle_missing", message, 10)
    if isinstance(error, CollectionMismatch):
        message = f"collection {collection!r} was loaded with another bundle than this service has"
        return Failure(503, "bundle_mismatch", message, 10)
    if isinstance(error, EngineError):
        return Failure(502, "engine_error", "the vector engine refused the search")
    return INTERNAL
