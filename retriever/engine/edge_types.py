"""Types of `qdrant_client.models` to and from those of `qdrant_edge`.

What the embedded engine cannot do, or what a Qdrant 1.16 server would silently ignore, is an
`EngineError` with the name of the type: an option is never dropped on the way.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

import numpy as np
import qdrant_edge as edge
from pydantic import BaseModel
from qdrant_client import models as qm

from two_tower.retriever.engine.wire import AnyPoint
from two_tower.retriever.errors import EngineError

DISTANCES = {
    qm.Distance.COSINE: edge.Distance.Cosine,
    qm.Distance.DOT: edge.Distance.Dot,
    qm.Distance.EUCLID: edge.Distance.Euclid,
    qm.Distance.MANHATTAN: edge.Distance.Manhattan,
}

INDEXES = {
    qm.PayloadSchemaType.KEYWORD: edge.PayloadSchemaType.Keyword,
    qm.PayloadSchemaType.INTEGER: edge.PayloadSchemaType.Integer,
    qm.PayloadSchemaType.FLOAT: edge.PayloadSchemaType.Float,
    qm.PayloadSchemaType.BOOL: edge.PayloadSchemaType.Bool,
    qm.PayloadSchemaType.DATETIME: edge.PayloadSchemaType.Datetime,
    qm.PayloadSchemaType.TEXT: edge.PayloadSchemaType.Text,
}

INDEX_TYPES = {theirs: ours for ours, theirs in INDEXES.items()}

DEFAULT_LIMIT = 10

RRF_DEFAULT_K = 2


def unsupported(value: object) -> EngineError:
    """Return the error for something the embedded engine does not do."""
    name = value if isinstance(value, str) else type(value).__name__
    return EngineError(f"the embedded engine does not support {name}; a server may: give --url")


def only(model: BaseModel, *names: str) -> None:
    """Refuse a model that has any field set beside `names`."""
    for name in type(model).model_fields:
        if name not in names and getattr(model, name) is not None:
            raise unsupported(f"{type(model).__name__}.{name}")


def to_index(
    schema: qm.PayloadSchemaType | qm.TextIndexParams,
) -> edge.PayloadSchemaType | edge.TextIndexParams:
    """Return the payload index for a field."""
    if isinstance(schema, qm.TextIndexParams):
        only(schema, "type", "tokenizer", "lowercase", "phrase_matching")
        if schema.tokenizer not in (None, qm.TokenizerType.WORD):
            raise unsupported(f"TokenizerType.{schema.tokenizer.name}")
        return edge.TextIndexParams(
            tokenizer=edge.TokenizerType.Word,
            lowercase=schema.lowercase,
            phrase_matching=schema.phrase_matching,
        )
    if not isinstance(schema, qm.PayloadSchemaType):
        raise unsupported(schema)
    if schema not in INDEXES:
        raise unsupported(f"PayloadSchemaType.{schema.name}")
    return INDEXES[schema]


def to_vector(vector: Any) -> Any:
    """Return one dense (list of floats) or sparse vector."""
    if isinstance(vector, np.ndarray):
        return vector.tolist()
    if isinstance(vector, edge.SparseVector):
        return vector
    if isinstance(vector, qm.SparseVector):
        return edge.SparseVector(vector.indices, vector.values)
    if isinstance(vector, list) and not (vector and isinstance(vector[0], list)):
        return vector
    raise unsupported(vector)


def from_vector(vector: Any) -> Any:
    """Return a stored named-vector mapping in the client's types."""
    if not isinstance(vector, dict):
        return vector
    return {
        name: qm.SparseVector(indices=v.indices, values=v.values)
        if isinstance(v, edge.SparseVector)
        else v
        for name, v in vector.items()
    }


def from_id(point_id: int | str | UUID) -> int | str:
    """Return a point id as the client gives it: an int or a UUID in text."""
    return str(point_id) if isinstance(point_id, UUID) else point_id


def to_point(point: AnyPoint) -> edge.Point:
    """Return a point with named vectors."""
    if not isinstance(point.vector, dict):
        raise unsupported("PointStruct with an unnamed vector")
    vectors = {name: to_vector(vector) for name, vector in point.vector.items()}
    return edge.Point(id=from_id(point.id), vector=vectors, payload=point.payload or {})


def to_payload_change(
    operation: qm.OverwritePayloadOperation | qm.SetPayloadOperation,
) -> edge.UpdateOperation:
    """Return the operation that replaces the payload of some points, or adds fields to it."""
    if isinstance(operation, qm.OverwritePayloadOperation):
        change, converted = operation.overwrite_payload, edge.UpdateOperation.overwrite_payload
    elif isinstance(operation, qm.SetPayloadOperation):
        change, converted = operation.set_payload, edge.UpdateOperation.set_payload
    else:
        raise unsupported(operation)
    only(change, "payload", "points")
    return converted([from_id(point) for point in change.points or ()], change.payload)


def to_selector(selector: Any) -> bool | list[str]:
    """Return a payload or vector selector: all, none or named fields."""
    if selector is None or isinstance(selector, bool):
        return bool(selector)
    if isinstance(selector, qm.PayloadSelectorInclude):
        return selector.include
    if isinstance(selector, Sequence) and not isinstance(selector, str):
        return list(selector)
    raise unsupported(selector)


def to_filter(query_filter: qm.Filter) -> edge.Filter:
    """Return a filter."""
    return edge.Filter(
        must=_conditions(query_filter.must),
        should=_conditions(query_filter.should),
        must_not=_conditions(query_filter.must_not),
        min_should=None if (few := query_filter.min_should) is None else _min_should(few),
    )


def _min_should(given: qm.MinShould) -> edge.MinShould:
    return edge.MinShould(_conditions(given.conditions) or [], given.min_count)


def to_filter_if_any(query_filter: qm.Filter | None) -> edge.Filter | None:
    """Return a filter; None stays None."""
    return None if query_filter is None else to_filter(query_filter)


def _conditions(conditions: Any) -> list[Any] | None:
    if conditions is None:
        return None
    many = conditions if isinstance(conditions, list) else [conditions]
    return [_convert(CONDITIONS, condition) for condition in many]


def _convert(table: Mapping[type, Callable[[Any], Any]], value: Any) -> Any:
    if type(value) not in table:
        raise unsupported(value)
    try:
        return table[type(value)](value)
    except (TypeError, ValueError, OverflowError):  # e.g. an id that is neither number nor UUID
        name = type(value).__name__
        raise EngineError(f"the embedded engine cannot read the value of a {name}") from None


def _field(condition: qm.FieldCondition) -> edge.FieldCondition:
    only(condition, "key", "match", "range")
    match, bounds = condition.match, condition.range
    return edge.FieldCondition(
        condition.key,
        match=None if match is None else _convert(MATCHES, match),
        range=None if bounds is None else _convert(RANGES, bounds),
    )


def _datetime_range(bounds: qm.DatetimeRange) -> edge.RangeDateTime:
    given = bounds.model_dump(exclude_none=True)
    return edge.RangeDateTime(**{name: value.isoformat() for name, value in given.items()})


MATCHES: Mapping[type, Callable[[Any], Any]] = {
    qm.MatchValue: lambda match: edge.MatchValue(match.value),
    qm.MatchAny: lambda match: edge.MatchAny(match.any),
    qm.MatchExcept: lambda match: edge.MatchExcept(match.except_),
    qm.MatchText: lambda match: edge.MatchText(match.text),
    qm.MatchTextAny: lambda match: edge.MatchTextAny(match.text_any),
    qm.MatchPhrase: lambda match: edge.MatchPhrase(match.phrase),
}

RANGES: Mapping[type, Callable[[Any], Any]] = {
    qm.Range: lambda bounds: edge.RangeFloat(**bounds.model_dump()),
    qm.DatetimeRange: _datetime_range,
}

CONDITIONS: Mapping[type, Callable[[Any], Any]] = {
    qm.Filter: to_filter,
    qm.FieldCondition: _field,
    qm.HasIdCondition: lambda c: edge.HasIdCondition({from_id(i) for i in c.has_id}),
    qm.IsEmptyCondition: lambda c: edge.IsEmptyCondition(c.is_empty.key),
    qm.IsNullCondition: lambda c: edge.IsNullCondition(c.is_null.key),
    qm.HasVectorCondition: lambda c: edge.HasVectorCondition(c.has_vector),
    qm.NestedCondition: lambda c: edge.NestedCondition(c.nested.key, to_filter(c.nested.filter)),
}


def to_request(request: qm.QueryRequest) -> edge.QueryRequest:
    """Return one query with its prefetches."""
    only(
        request,
        *("prefetch", "query", "using", "filter", "params", "score_threshold"),
        *("limit", "offset", "with_vector", "with_payload"),
    )
    return edge.QueryRequest(
        limit=DEFAULT_LIMIT if request.limit is None else request.limit,
        offset=request.offset,
        query=_query(request.query, request.using),
        prefetches=_prefetches(request.prefetch),
        with_vector=to_selector(request.with_vector),
        with_payload=to_selector(request.with_payload),
        filter=to_filter_if_any(request.filter),
        score_threshold=request.score_threshold,
        params=_params(request.params),
    )


def _prefetches(prefetch: qm.Prefetch | list[qm.Prefetch] | None) -> list[edge.Prefetch]:
    if prefetch is None:
        return []
    return [_prefetch(one) for one in (prefetch if isinstance(prefetch, list) else [prefetch])]


def _prefetch(prefetch: qm.Prefetch) -> edge.Prefetch:
    only(prefetch, "prefetch", "query", "using", "filter", "params", "score_threshold", "limit")
    return edge.Prefetch(
        limit=DEFAULT_LIMIT if prefetch.limit is None else prefetch.limit,
        query=_query(prefetch.query, prefetch.using),
        prefetches=_prefetches(prefetch.prefetch),
        params=_params(prefetch.params),
        filter=to_filter_if_any(prefetch.filter),
        score_threshold=prefetch.score_threshold,
    )


def _query(query: Any, using: str | None) -> Any:
    if query is None:
        return None
    if isinstance(query, qm.NearestQuery):
        only(query, "nearest")
        query = query.nearest
    if isinstance(query, list | qm.SparseVector):
        return edge.Query.Nearest(to_vector(query), using=using)
    if isinstance(query, qm.RrfQuery):
        only(query.rrf, "k")  # a 1.16 server ignores weights
        return edge.Fusion.Rrf(k=query.rrf.k or RRF_DEFAULT_K)
    if isinstance(query, qm.FusionQuery):
        rrf = query.fusion is qm.Fusion.RRF
        return edge.Fusion.Rrf(k=RRF_DEFAULT_K) if rrf else edge.Fusion.Dbsf()
    raise unsupported(query)


def _params(params: qm.SearchParams | None) -> edge.SearchParams | None:
    if params is None:
        return None
    only(params, "hnsw_ef", "exact", "quantization", "indexed_only")
    return edge.SearchParams(
        hnsw_ef=params.hnsw_ef,
        exact=bool(params.exact),
        quantization=_quantization(params.quantization),
        indexed_only=bool(params.indexed_only),
    )


def _quantization(
    params: qm.QuantizationSearchParams | None,
) -> edge.QuantizationSearchParams | None:
    if params is None:
        return None
    return edge.QuantizationSearchParams(
        ignore=bool(params.ignore), rescore=params.rescore, oversampling=params.oversampling
    )
