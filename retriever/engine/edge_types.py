"""Types of `qdrant_client.models` to and from those of `qdrant_edge`.

What the embedded engine cannot do, or what a Qdrant 1.16 server would silently ignore, is an
`EngineError` with the name of the type: an option is never dropped on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import orjson
import qdrant_edge as edge

from two_tower.retriever.engine.protocol import Kind
from two_tower.retriever.engine.qdrant_models import qm
from two_tower.retriever.engine.wire import (
    AnyPoint,
    PackedPoints,
    PayloadChange,
    Record,
    Request,
    Scored,
    SearchParams,
    SparseVector,
    is_sparse,
    require_storable,
)
from two_tower.retriever.errors import EngineError

if TYPE_CHECKING:
    from pydantic import BaseModel

EDGE_INDEXES: Mapping[str, edge.PayloadSchemaType] = {
    Kind.KEYWORD: edge.PayloadSchemaType.Keyword,
    Kind.INTEGER: edge.PayloadSchemaType.Integer,
    Kind.FLOAT: edge.PayloadSchemaType.Float,
    Kind.BOOL: edge.PayloadSchemaType.Bool,
    Kind.DATETIME: edge.PayloadSchemaType.Datetime,
    Kind.TEXT: edge.PayloadSchemaType.Text,
}

KINDS = {theirs: Kind(ours) for ours, theirs in EDGE_INDEXES.items()}

DEFAULT_LIMIT = 10
RRF_DEFAULT_K = 2
REQUEST_FIELDS = (
    *("prefetch", "query", "using", "filter", "params", "score_threshold", "limit"),
    *("offset", "with_vector", "with_payload"),  # of a whole query alone
)


def unsupported(value: object) -> EngineError:
    """Return the error for something the embedded engine does not do."""
    name = value if isinstance(value, str) else type(value).__name__
    return EngineError(f"the embedded engine does not support {name}; a server may: give --url")


def allow_only(model: BaseModel, *names: str) -> None:
    """Refuse a model that has any field set beside `names`."""
    for name in type(model).model_fields:
        if name not in names and getattr(model, name) is not None:
            raise unsupported(f"{type(model).__name__}.{name}")


def to_index(
    schema: qm.PayloadSchemaType | qm.TextIndexParams,
) -> edge.PayloadSchemaType | edge.TextIndexParams:
    """Return the payload index for a field."""
    if isinstance(schema, qm.TextIndexParams):
        allow_only(schema, "type", "tokenizer", "lowercase", "phrase_matching")
        if schema.tokenizer not in (None, qm.TokenizerType.WORD):
            raise unsupported(f"TokenizerType.{schema.tokenizer.name}")
        return edge.TextIndexParams(
            tokenizer=edge.TokenizerType.Word,
            lowercase=schema.lowercase,
            phrase_matching=schema.phrase_matching,
        )
    if not isinstance(schema, qm.PayloadSchemaType):
        raise unsupported(schema)
    if schema not in EDGE_INDEXES:
        raise unsupported(f"PayloadSchemaType.{schema.name}")
    return EDGE_INDEXES[schema]


def to_vector(vector: Any) -> Any:
    """Return one vector: dense (list of floats), sparse, or several dense ones (list of lists)."""
    if isinstance(vector, np.ndarray):
        return vector.tolist()
    if isinstance(vector, list | edge.SparseVector):
        return vector
    if isinstance(vector, SparseVector) or is_sparse(vector):
        return edge.SparseVector(vector.indices, vector.values)
    raise unsupported(vector)


def dense_widths(vector: object) -> set[int]:
    """Return the dimensions of a dense vector, or of several under one name; empty for a sparse."""
    if isinstance(vector, np.ndarray):
        return {int(vector.shape[-1])}
    if not isinstance(vector, list):
        return set()
    rows = vector if vector and isinstance(vector[0], list) else [vector]
    return {len(row) for row in rows}


def from_record(record: edge.Record) -> Record:
    """Return a stored point."""
    point_id = record.id if isinstance(record.id, int) else str(record.id)
    return Record(point_id, record.payload, _named(record.vector, SparseVector))


def from_scored(point: edge.ScoredPoint) -> qm.ScoredPoint:
    """Return a hit."""
    return qm.ScoredPoint.model_construct(
        version=point.version,
        score=point.score,
        id=point.id if isinstance(point.id, int) else str(point.id),
        payload=point.payload,
        vector=_named(point.vector, lambda i, v: qm.SparseVector(indices=i, values=v)),
    )


def _named(vectors: Any, sparse: Callable[[list[int], list[float]], Any]) -> Any:
    """Return the vectors of a point with the sparse ones made by `sparse`."""
    if not isinstance(vectors, dict):
        return vectors
    return {
        name: sparse(vector.indices, vector.values)
        if isinstance(vector, edge.SparseVector)
        else vector
        for name, vector in vectors.items()
    }


def to_point(point: AnyPoint) -> edge.Point:
    """Return a point with named vectors."""
    if not isinstance(point.vector, dict):
        raise unsupported("PointStruct with an unnamed vector")
    vectors = {name: to_vector(vector) for name, vector in point.vector.items()}
    require_storable(point.payload, of=f"point {point.id}")
    return edge.Point(id=point.id, vector=vectors, payload=point.payload or {})


def to_points(points: Sequence[AnyPoint]) -> list[edge.Point]:
    """Return points with named vectors; those that are packed were checked where that was done."""
    if not isinstance(points, PackedPoints):
        return [to_point(point) for point in points]
    indices, values = points.indices.tolist(), points.values.tolist()
    converted = []
    for row, (point_id, payload) in enumerate(zip(points.ids, points.payloads, strict=True)):
        terms = slice(points.terms[row], points.terms[row + 1])
        # A row at a time: Python gives the numbers the room of those of the row before.
        vector: dict[str, Any] = {name: part[row].tolist() for name, part in points.dense.items()}
        vector[points.sparse] = edge.SparseVector(indices[terms], values[terms])
        converted.append(edge.Point(id=point_id, vector=vector, payload=payload))
    return converted


def to_payload_change(operation: PayloadChange) -> edge.UpdateOperation:
    """Return the operation that replaces the payload of some points, or adds fields to it."""
    if isinstance(operation, qm.OverwritePayloadOperation):
        change, converted = operation.overwrite_payload, edge.UpdateOperation.overwrite_payload
    elif isinstance(operation, qm.SetPayloadOperation):
        change, converted = operation.set_payload, edge.UpdateOperation.set_payload
    else:
        raise unsupported(operation)
    allow_only(change, "payload", "points")
    require_storable(change.payload, of=f"points {', '.join(map(str, change.points or ()))}"[:100])
    return converted([*(change.points or ())], change.payload)


def to_selector(selector: Any) -> bool | list[str]:
    """Return a payload or vector selector: all, none or named fields."""
    if selector is None or isinstance(selector, bool):
        return bool(selector)
    if isinstance(selector, qm.PayloadSelectorInclude):
        return selector.include
    if isinstance(selector, Sequence) and not isinstance(selector, str):
        return list(selector)
    raise unsupported(selector)


def to_edge_filter(query_filter: qm.Filter) -> edge.Filter:
    """Return a filter."""
    min_should = None
    if few := query_filter.min_should:
        min_should = edge.MinShould(_edge_conditions(few.conditions) or [], few.min_count)
    return edge.Filter(
        must=_edge_conditions(query_filter.must),
        should=_edge_conditions(query_filter.should),
        must_not=_edge_conditions(query_filter.must_not),
        min_should=min_should,
    )


def _edge_conditions(conditions: Any) -> list[Any] | None:
    if conditions is None:
        return None
    conditions = conditions if isinstance(conditions, list) else [conditions]
    return [_convert(EDGE_CONDITIONS, condition) for condition in conditions]


def _convert(table: Mapping[str, Callable[[Any], Any]], value: Any) -> Any:
    """Translate a model by the name of its type, for the client's may not be loaded."""
    name = type(value).__name__
    if name not in table:
        raise unsupported(value)
    try:
        return table[name](value)
    except (TypeError, ValueError, OverflowError):  # e.g. an id that is neither number nor UUID
        raise EngineError(f"the embedded engine cannot read the value of a {name}") from None


def _field(condition: qm.FieldCondition) -> edge.FieldCondition:
    allow_only(condition, "key", "match", "range")
    match, bounds = condition.match, condition.range
    return edge.FieldCondition(
        condition.key,
        match=None if match is None else _convert(EDGE_MATCHES, match),
        range=None if bounds is None else _convert(EDGE_RANGES, bounds),
    )


def _exact(value: bool | int | str) -> Any:
    """Return a value as the binding takes it: it reads True as 1, and numpy's as a boolean."""
    return np.bool_(value) if isinstance(value, bool) else value


EDGE_MATCHES: Mapping[str, Callable[[Any], Any]] = {
    "MatchValue": lambda match: edge.MatchValue(_exact(match.value)),
    "MatchAny": lambda match: edge.MatchAny(match.any),
    "MatchExcept": lambda match: edge.MatchExcept(match.except_),
    "MatchText": lambda match: edge.MatchText(match.text),
    "MatchTextAny": lambda match: edge.MatchTextAny(match.text_any),
    "MatchPhrase": lambda match: edge.MatchPhrase(match.phrase),
}

EDGE_RANGES: Mapping[str, Callable[[Any], Any]] = {
    "Range": lambda bounds: edge.RangeFloat(**bounds.model_dump()),
    "DatetimeRange": lambda bounds: edge.RangeDateTime(
        **{name: value.isoformat() for name, value in bounds.model_dump(exclude_none=True).items()}
    ),
}

EDGE_CONDITIONS: Mapping[str, Callable[[Any], Any]] = {
    "Filter": to_edge_filter,
    "FieldCondition": _field,
    "HasIdCondition": lambda c: edge.HasIdCondition({*c.has_id}),
    "IsEmptyCondition": lambda c: edge.IsEmptyCondition(c.is_empty.key),
    "IsNullCondition": lambda c: edge.IsNullCondition(c.is_null.key),
    "HasVectorCondition": lambda c: edge.HasVectorCondition(c.has_vector),
    "NestedCondition": lambda c: edge.NestedCondition(
        c.nested.key, to_edge_filter(c.nested.filter)
    ),
}


def to_search(request: Request | qm.QueryRequest) -> edge.QueryRequest:
    """Return a search for ids and scores alone."""
    if not isinstance(request, Request):
        return to_request(request)
    return edge.QueryRequest(**_parts(request), with_vector=False, with_payload=False, offset=None)


def to_scored(points: Sequence[edge.ScoredPoint]) -> Scored:
    """Return the ids and scores of hits."""
    ids = orjson.loads(orjson.dumps([point.id for point in points]))  # quicker than `str` for each
    if not all(isinstance(point_id, str) for point_id in ids):
        ids = list(map(str, ids))
    return Scored(ids, [point.score for point in points])


def _parts(request: Request) -> dict[str, Any]:
    filter, params = request.filter, request.params
    return {
        "limit": request.limit,
        "query": edge.Query.Nearest(to_vector(request.query), using=request.using),
        "prefetches": [edge.Prefetch(**_parts(part)) for part in request.prefetch],
        "params": None if params is None else _search_params(params),
        "filter": None if filter is None else to_edge_filter(filter),
        "score_threshold": None,
    }


@lru_cache(maxsize=64)
def _search_params(params: SearchParams) -> edge.SearchParams:
    copies = edge.QuantizationSearchParams(
        ignore=bool(params.ignore), rescore=params.rescore, oversampling=params.oversampling
    )
    return edge.SearchParams(
        hnsw_ef=params.hnsw_ef, exact=bool(params.exact), quantization=copies, indexed_only=False
    )


@overload
def to_request(request: qm.QueryRequest) -> edge.QueryRequest: ...
@overload
def to_request(request: qm.Prefetch) -> edge.Prefetch: ...
def to_request(request: qm.QueryRequest | qm.Prefetch) -> edge.QueryRequest | edge.Prefetch:
    """Return one query, or one part of a query, with its prefetches."""
    allow_only(request, *REQUEST_FIELDS)
    legs = request.prefetch or []
    fields: dict[str, Any] = {
        "limit": DEFAULT_LIMIT if request.limit is None else request.limit,
        "query": _query(request.query, request.using),
        "prefetches": [to_request(leg) for leg in (legs if isinstance(legs, list) else [legs])],
        "params": _params(request.params),
        "filter": None if request.filter is None else to_edge_filter(request.filter),
        "score_threshold": request.score_threshold,
    }
    if isinstance(request, qm.Prefetch):
        return edge.Prefetch(**fields)
    return edge.QueryRequest(
        **fields,
        offset=request.offset,
        with_vector=to_selector(request.with_vector),
        with_payload=to_selector(request.with_payload),
    )


def _query(query: Any, using: str | None) -> Any:
    if query is None:
        return None
    if isinstance(query, qm.NearestQuery):
        allow_only(query, "nearest")
        query = query.nearest
    if isinstance(query, list | qm.SparseVector):
        return edge.Query.Nearest(to_vector(query), using=using)
    if isinstance(query, qm.RrfQuery):
        allow_only(query.rrf, "k")  # a 1.16 server ignores weights
        return edge.Fusion.Rrf(k=query.rrf.k or RRF_DEFAULT_K)
    if isinstance(query, qm.FusionQuery):
        rrf = query.fusion is qm.Fusion.RRF
        return edge.Fusion.Rrf(k=RRF_DEFAULT_K) if rrf else edge.Fusion.Dbsf()
    raise unsupported(query)


def _params(params: qm.SearchParams | None) -> edge.SearchParams | None:
    if params is None:
        return None
    allow_only(params, "hnsw_ef", "exact", "quantization", "indexed_only")
    quantization = None
    if copies := params.quantization:
        quantization = edge.QuantizationSearchParams(
            ignore=bool(copies.ignore), rescore=copies.rescore, oversampling=copies.oversampling
        )
    return edge.SearchParams(
        hnsw_ef=params.hnsw_ef,
        exact=bool(params.exact),
        quantization=quantization,
        indexed_only=bool(params.indexed_only),
    )
