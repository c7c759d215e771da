"""Commands of `ingest` that save collections and bring them elsewhere: snapshot, restore, copy."""

from pathlib import Path
from typing import Annotated

import typer

from ingest.engine_flags import Name, opened_engine
from retriever.flags import Path_, Url

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
    from ingest import snapshots

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
    from ingest import collections, snapshots
    from retriever.schema import base_name

    with opened_engine(url, path, create=True) as engine:
        made = snapshots.restore(engine, file, name=collection)
        typer.echo(f"{made.collection}: restored and verified {made.points:,} points")
        if promote:
            name = base_name(made.collection)
            typer.echo(f"{name} -> {collections.promote(engine, name, made.collection)}")
