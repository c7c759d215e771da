"""Failures of client libraries, told in one line."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import (
    ApiException,
    ResponseHandlingException,
    UnexpectedResponse,
)

from two_tower.retriever.errors import (
    CertificateRefused,
    CollectionNotFound,
    EngineBusy,
    EngineError,
    EngineUnavailable,
    KeyRefused,
)

LONGEST = 300


@contextmanager
def engine_errors(where: str) -> Iterator[None]:
    """Turn what a client raises into an `EngineError` that names the engine.

    Args:
        where: URL or folder, as the user may see it.
    """
    try:
        yield
    except UnexpectedResponse as error:
        raise _from_status(error.status_code or 0, _reason(error.content), where) from None
    except ResponseHandlingException as error:
        raise _no_answer(error.source, where) from None
    except json.JSONDecodeError:
        raise _unavailable(where, "the answer is not JSON") from None
    except ResourceExhaustedResponse as error:
        raise _from_status(429, _one_line(error), where) from None
    except (ApiException, QdrantException) as error:
        raise EngineError(f"{where}: {_one_line(error)}") from None
    except grpc.RpcError as error:
        raise _from_grpc(error, where) from None
    except Exception as error:
        if type(error) is Exception:  # all that Edge's bindings ever raise
            raise EngineError(f"{where}: {_one_line(error)}") from None
        raise


def _unavailable(where: str, reason: str) -> EngineUnavailable:
    return EngineUnavailable(
        f"no Qdrant answers at {where} ({reason}); start one (deploy/compose.yaml), "
        f"or leave --url and QDRANT_URL out to use the embedded engine"
    )


def _no_answer(cause: Exception, where: str) -> EngineUnavailable:
    reason = _one_line(cause)
    found = re.search(r"certificate verify failed: (.*?)(?: \(_ssl\.c.*)?$", reason)
    if not found:
        return _unavailable(where, reason)
    return CertificateRefused(
        f"{where} shows a certificate that cannot be trusted ({found[1]}); renew it, or name the "
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


def _from_grpc(error: grpc.RpcError, where: str) -> EngineError:
    code = getattr(error, "code", lambda: grpc.StatusCode.UNKNOWN)()
    reason = _one_line(getattr(error, "details", lambda: error)())
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return _from_status(401, reason, where)
    if code is grpc.StatusCode.NOT_FOUND:
        return _from_status(404, reason, where)
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return _unavailable(where, reason)
    busy = code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED)
    kind = EngineBusy if busy else EngineError
    return kind(f"{where} answered gRPC {code.name}: {reason}")


def _reason(content: bytes) -> str:
    try:
        return _one_line(json.loads(content)["status"]["error"])
    except (ValueError, KeyError, TypeError):
        return _one_line(content.decode("utf-8", "replace"))


def _one_line(reason: object) -> str:
    text = " ".join(str(reason).split()) or type(reason).__name__
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"
