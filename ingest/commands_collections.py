"""Commands of `ingest` that look after collections: promote, rollback, list, drop."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from two_tower.ingest.engine_flags import Name, opened_engine
from two_tower.retriever.commands.flags import Path_, Url

if TYPE_CHECKING:
    from two_tower.ingest.collections import Version


def promote(
    name: Annotated[str, typer.Argument(help="Name that searches use.")],
    to: Annotated[
        str | None, typer.Option(help="Versioned collection; the newest by default.")
    ] = None,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Point a name to another version of its collection, in one step."""
    from two_tower.ingest import collections

    with opened_engine(url, path) as engine:
        typer.echo(f"{name} -> {collections.promote(engine, name, to)}")


def rollback(
    name: Annotated[str, typer.Argument(help="Name that searches use.")],
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Point a name back to the version it stood for before; once more undoes that."""
    from two_tower.ingest import collections

    with opened_engine(url, path) as engine:
        typer.echo(f"{name} -> {collections.rollback(engine, name)}")


def list_collections(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """List collections, newest version first.

    * marks the one that the name stands for, - the one that `ingest rollback` would return to;
    a load that was not finished shows how many points there are of how many.
    """
    from two_tower.ingest import collections
    from two_tower.retriever.engine.address import EngineAddress

    with opened_engine(url, path) as engine:
        found = collections.versions(engine)
    if as_json:
        typer.echo(json.dumps([version.to_dict() for version in found]))
    elif found:
        typer.echo(_table(found))
    else:
        where = EngineAddress.find(url=url, path=path)
        typer.echo(
            f"No collection of ingest load at {where}; to make one run: "
            "ingest load DATA --bundle BUNDLE --collection NAME",
            err=True,
        )


def drop(
    name: Name,
    yes: Annotated[
        bool, typer.Option("--yes", help="Also what is in use; of an alias, every version.")
    ] = False,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Delete a version that is not in use, or with --yes a name and all its versions."""
    from two_tower.ingest import collections

    with opened_engine(url, path) as engine:
        for collection in collections.drop(engine, name, yes=yes):
            typer.echo(f"Dropped {collection}")


def _table(found: "list[Version]") -> str:
    before = {version.previous for version in found if version.in_use}
    rows = [["", "NAME", "COLLECTION", "POINTS", "BUNDLE", "AGE"]]
    for version in found:
        expected = "" if version.complete else f" of {version.metadata.expected_points:,}"
        rows.append(
            [
                "*" if version.in_use else "-" if version.collection in before else "",
                version.name,
                version.collection,
                f"{version.points:,}{expected}",
                version.metadata.bundle_fingerprint[:12],
                _age(version.metadata.age_s),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _age(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
