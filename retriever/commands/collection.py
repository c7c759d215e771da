"""`retriever info`, `fields` and `similar`: what is in a collection, without a query."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from two_tower.models.console import name_next, print_pairs, print_table
from two_tower.retriever.commands.flags import Bundle, Name, Path_, Url, at, opened_engine
from two_tower.retriever.commands.search import Filters

if TYPE_CHECKING:
    from two_tower.retriever.search.facets import FieldValue

NAMES_WIDTH = 14

SHOWN_VALUES = 5

ID = "passage_id"  # whose values say nothing: each is that of one passage

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def info(name: Name, as_json: AsJson = False, url: Url = None, path: Path_ = None) -> None:
    """Say what a collection holds, what it was made of and which bundle it needs."""
    from two_tower.retriever.collection.describe import describe
    from two_tower.retriever.collection.schema import read_metadata

    with opened_engine(url, path) as engine:
        content = describe(engine, name)
        loaded_from = read_metadata(engine, content["collection"]).bundle_path
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False))
        return
    expected = content["expected_passages"]
    missing = "" if content["passages"] == expected else f" of {expected:,}: a load is unfinished"
    pairs = {
        "collection": content["collection"],
        "at": content["at"],
        "aliases": ", ".join(content["aliases"]) or "none",
        "passages": f"{content['passages']:,}{missing}",
        "bundle": f"{content['bundle'] or 'none: BM25 alone'}"
        + (f", loaded from {loaded_from}" if loaded_from else ""),
        "created": content["created_at"],
        "source": _text(content["source"]),
        "vectors": ", ".join(f"{name} {width}" for name, width in content["vectors"].items()),
        "language": _text(content["language"]),
        "fields": ", ".join(f"{name} ({kind})" for name, kind in content["fields"].items()),
    }
    print_pairs(pairs.items(), width=NAMES_WIDTH)
    name_next("retriever", "fields", name, *at(url, path))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def fields(
    name: Name,
    field: Annotated[
        str | None, typer.Argument(help="A field, for its values alone; all fields by default.")
    ] = None,
    k: Annotated[int | None, typer.Option("-k", help="Values of a field at most.", min=1)] = None,
    filters: Filters = None,
    as_json: AsJson = False,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """List the fields that can be filtered by, and their most frequent values with counts.

    Values are counted for fields with a keyword, integer, bool or uuid index.
    """
    from two_tower.retriever.search.facets import COUNTED, field_values
    from two_tower.retriever.search.filters import parse_filters, to_filter

    with opened_engine(url, path) as engine:
        collection = engine.resolve(name)
        known = engine.overview(collection).fields
        condition = to_filter(parse_filters(filters or [], known), known)

        def count(one: str, limit: int) -> "list[FieldValue]":
            return field_values(
                engine, collection, one, fields=known, limit=limit, filter=condition
            )

        if field is not None:
            values = count(field, k or 1000)
            if as_json:
                typer.echo(json.dumps({field: [one._asdict() for one in values]}))
            else:
                rows = [
                    [field, "PASSAGES"],
                    *([_shown(v.value), f"{v.passages:,}"] for v in values),
                ]
                print_table(rows, align="lr")
            return
        listed = {
            one: (kind, count(one, k or SHOWN_VALUES) if kind in COUNTED and one != ID else [])
            for one, kind in known.items()
        }
    if as_json:
        content = {
            one: {"type": kind.value, "values": [value._asdict() for value in values]}
            for one, (kind, values) in listed.items()
        }
        typer.echo(json.dumps(content))
        return
    rows = [["FIELD", "TYPE", "VALUES"]]
    for one, (kind, values) in listed.items():
        shown = ", ".join(f"{_shown(value.value)} {value.passages:,}" for value in values)
        rows.append([one, kind.value, shown])
    print_table(rows, align="lll")
    name_next("retriever", "search", name, "QUERY", "--filter", "FIELD=VALUE", *at(url, path))


def similar(
    name: Name,
    passage_id: Annotated[str, typer.Argument(help="Id of a passage of the collection.")],
    bundle: Bundle = None,
    k: Annotated[int | None, typer.Option("-k", help="Number of hits.", show_default="10")] = None,
    filters: Filters = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """List the passages nearest to one of the collection, by the tower's vectors."""
    from two_tower.retriever.commands.terminal import print_result
    from two_tower.retriever.records import SearchResult
    from two_tower.retriever.search.filters import parse_filters
    from two_tower.retriever.search.retriever import Retriever

    with Retriever.open(name, bundle=bundle, url=url, path=path) as retriever:
        conditions = parse_filters(filters or [], retriever.fields)
        hits = retriever.similar(passage_id, k=k, filter=conditions)
        language = retriever.metadata.language
    if as_json:
        content = {"passage_id": passage_id, "hits": [hit.to_dict() for hit in hits]}
        typer.echo(json.dumps(content, ensure_ascii=False))
    else:
        print_result(SearchResult(passage_id, hits, {}), language=language, explain=False)


def _shown(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
