"""`ingest load`."""

from pathlib import Path
from typing import Annotated

import typer

from ingest.engine_flags import Bundle, opened_engine
from retriever.flags import Path_, Url


def load(
    data: Annotated[Path, typer.Argument(help="DATA folder that `ingest prepare` wrote.")],
    bundle: Bundle,
    collection: Annotated[str, typer.Option(help="Name that searches will use.")],
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete points that DATA does not have.")
    ] = False,
    promote: Annotated[
        bool,
        typer.Option("--promote/--no-promote", help="Point the name to it once it is verified."),
    ] = True,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Encode the passages of DATA into a collection; run it again to go on or to update.

    Each bundle gets a collection of its own beside the others, named after both. Only missing and
    changed passages are sent. The name moves to the new collection when it has been verified.
    """
    from ingest import collections, loader, verifier
    from models.bundle import ModelBundle
    from models.data import Dataset

    dataset = Dataset.open(data)
    encoder = ModelBundle.load(bundle)
    with opened_engine(url, path, create=True) as engine:
        report = loader.load(engine, dataset, encoder, name=collection, prune=prune)
        typer.echo(report)
        typer.echo(verifier.verify(engine, report.collection, dataset, encoder))
        if promote:
            collections.promote(engine, collection, report.collection)
            typer.echo(f"{collection} -> {report.collection}")
