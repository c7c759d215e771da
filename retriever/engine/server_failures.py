"""What goes wrong with a server: its client's failures told in one line."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import (
    ApiException,
    ResponseHandlingException,
    UnexpectedResponse,
)

from two_tower.retriever.engine.failures import one_line
from two_tower.retriever.errors import (
    CertificateRefused,
    CollectionNotFound,
    EngineBusy,
    EngineClosed,
    EngineError,
    EngineUnavailable,
    KeyRefused,
)


@contextmanager
def engine_errors(where: str) -> Iterator[None]:
    """Turn what a client raises into an `EngineError` that names the server by its URL."""
    try:
        yield
    except UnexpectedResponse as error:
        raise _from_status(error.status_code or 0, reason_of(error), where) from None
    except ResponseHandlingException as error:
        raise _no_answer(error.source, where) from None
    except json.JSONDecodeError:
        raise _unavailable(where, "the answer is not JSON") from None
    except ResourceExhaustedResponse as error:
        raise _from_status(429, one_line(error), where) from None
    except (ApiException, QdrantException) as error:
        raise EngineError(f"{where}: {one_line(error)}") from None


def reason_of(error: UnexpectedResponse) -> str:
    """Return why the server refused a request, in one line."""
    try:
        return one_line(json.loads(error.content)["status"]["error"])
    except (ValueError, KeyError, TypeError):
        return one_line(error.content.decode("utf-8", "replace"))


def _unavailable(where: str, reason: str) -> EngineUnavailable:
    return EngineUnavailable(
        f"no Qdrant answers at {where} ({reason}); start one (deploy/compose.yaml), "
        f"or leave --url and QDRANT_URL out to use the embedded engine"
    )


def _no_answer(cause: Exception, where: str) -> EngineError:
    reason = one_line(cause)
    if isinstance(cause, RuntimeError) and "closed" in reason:
        return EngineClosed(f"the connection to {where} was closed; open it again")
    refusal = re.search(r"certificate verify failed: (.*?)(?: \(_ssl\.c.*)?$", reason)
    if not refusal:
        return _unavailable(where, reason)
    return CertificateRefused(
        f"{where} shows a certificate that cannot be trusted ({refusal[1]}); renew it, or name the "
        "authority that signed it: QDRANT_CA_CERT=ca.pem"
    )


def _from_status(status: int, reason: str, where: str) -> EngineError:
    if status == 401:
        return KeyRefused(
            f"{where} refused the API key, or was given none (HTTP 401); "
            "set QDRANT_API_KEY to a valid one"
        )
    if status == 403:
        return KeyRefused(
            f"{where} refused the API key for this (HTTP 403): a read-only key may only read; "
            "set QDRANT_API_KEY to one that may write"
        )
    if status == 404:
        return CollectionNotFound(f"{where}: {reason}; see: ingest list")
    if status in (502, 503, 504):
        return _unavailable(where, f"HTTP {status}")
    kind = EngineBusy if status in (429, 500) else EngineError
    return kind(f"{where} answered HTTP {status}: {reason}")
