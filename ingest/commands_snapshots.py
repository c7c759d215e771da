"""Commands of `ingest` that save collections and bring them elsewhere: snapshot, restore, copy."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from two_tower.ingest.engine_flags import Name, opened_engine
from two_tower.retriever.commands.flags import Path_, Url

if TYPE_CHECKING:
    from two_tower.retriever.engine.address import EngineAddress

FROM_KEY = "QDRANT_FROM_API_KEY"
TO_KEY = "QDRANT_TO_API_KEY"
Promote = Annotated[
    bool, typer.Option("--promote", help="Point the name to it once it is verified.")
]


def snapshot(
    name: Name,
    out: Annotated[Path, typer.Option(help="Folder for the file.")],
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Save a collection, points, indexes and metadata, to one file with checksums.

    The file is named after the collection and the time. A server's is Qdrant's own snapshot in a
    zip, the embedded engine's a zip of its folder; each goes back to its own kind. A collection
    that is spread over a cluster is saved with `ingest copy` instead.
    """
    from two_tower.ingest import snapshots

    with opened_engine(url, path) as engine:
        saved = snapshots.snapshot(engine, name, out)
    typer.echo(
        f"{saved.file}: {saved.points:,} points of {saved.collection}, "
        f"{saved.file.stat().st_size / 2**20:,.1f} MiB"
    )


def restore(
    file: Annotated[Path, typer.Argument(help="File that `ingest snapshot` wrote.")],
    collection: Annotated[
        str | None,
        typer.Option(help="Name that searches will use; the one that it had by default."),
    ] = None,
    promote: Promote = False,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Make a collection of a snapshot, after every checksum in it has been found right.

    A collection that is there is never overwritten, and no name moves without --promote.
    """
    from two_tower.ingest import collections, snapshots
    from two_tower.retriever.collection.schema import base_name

    with opened_engine(url, path, create=True) as engine:
        made = snapshots.restore(engine, file, name=collection)
        typer.echo(f"{made.collection}: restored and verified {made.points:,} points")
        if promote:
            name = base_name(made.collection)
            typer.echo(f"{name} -> {collections.promote(engine, name, made.collection)}")


def copy(
    name: Name,
    from_path: Annotated[
        Path | None, typer.Option(help="Embedded engine to copy from.", show_default=".qdrant")
    ] = None,
    from_url: Annotated[str | None, typer.Option(help="Server or cluster to copy from.")] = None,
    to_path: Annotated[Path | None, typer.Option(help="Embedded engine to copy to.")] = None,
    to_url: Annotated[str | None, typer.Option(help="Server or cluster to copy to.")] = None,
    options: Annotated[
        Path | None,
        typer.Option(
            help="YAML file whose section `collection:` says how to store it there, in how many "
            "shards and replicas for instance; as it is stored here by default."
        ),
    ] = None,
    promote: Promote = False,
) -> None:
    """Copy a collection between embedded engine, server and cluster, and verify the copy.

    Ids, vectors, payload, indexes and metadata stay the same. Run it again to go on after a stop:
    only what is missing or different is sent. QDRANT_API_KEY is the key of the one server; of
    two, QDRANT_FROM_API_KEY and QDRANT_TO_API_KEY (each with _FILE for a file that holds it).
    """
    from two_tower.ingest import collections, copying
    from two_tower.retriever.collection.schema import base_name
    from two_tower.retriever.engine.address import EngineAddress
    from two_tower.retriever.engine.address import read_key as api_key
    from two_tower.retriever.search.settings import read_file

    if (to_path is None) == (to_url is None):
        raise typer.BadParameter("give one of --to-path and --to-url")
    _require_two(
        EngineAddress.find(url=from_url, path=from_path),
        EngineAddress.find(url=to_url, path=to_path),
    )
    stored_as = read_file(options).collection if options else None
    with (
        opened_engine(from_url, from_path, api_key=api_key(FROM_KEY)) as source,
        opened_engine(to_url, to_path, api_key=api_key(TO_KEY), create=True) as target,
    ):
        report = copying.copy(source, target, name, options=stored_as)
        typer.echo(report)
        if promote:
            alias = base_name(report.collection)
            typer.echo(f"{alias} -> {collections.promote(target, alias, report.collection)}")


def _require_two(source: "EngineAddress", target: "EngineAddress") -> None:
    """Refuse one place as both, and one key for two servers: it would be shown to the wrong one."""
    from two_tower.models.errors import ConfigError
    from two_tower.retriever.engine.address import read_key as api_key

    if str(source) == str(target):
        raise ConfigError(f"found {source} as both source and target; expected two engines")
    if source.url and target.url and api_key() and not (api_key(FROM_KEY) and api_key(TO_KEY)):
        raise ConfigError(
            f"found QDRANT_API_KEY and two servers; set {FROM_KEY} and {TO_KEY}, or these names "
            "with _FILE, so that neither server is sent the other's key"
        )
