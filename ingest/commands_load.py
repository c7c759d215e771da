"""`ingest load`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from ingest.engine_flags import Bundle, opened_engine
from retriever.flags import Path_, Url

if TYPE_CHECKING:
    from retriever.engine import Engine


def load(
    data: Annotated[Path, typer.Argument(help="DATA folder that `ingest prepare` wrote.")],
    bundle: Bundle,
    collection: Annotated[str, typer.Option(help="Name that searches will use.")],
    options: Annotated[
        Path | None,
        typer.Option(help="YAML file whose section `collection:` says how to store it."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Only passages with field=value, field>=value (also > <= <), or field~words; "
            "again for more. The same field=… twice: either."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many of them, in DATA's order.")
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete points that DATA does not have.")
    ] = False,
    promote: Annotated[
        bool,
        typer.Option("--promote/--no-promote", help="Point the name to it once it is verified."),
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent and how large it will be.")
    ] = False,
    rate_limit: Annotated[float | None, typer.Option(help="Passages per second, at most.")] = None,
    retry_for: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for a server that went away.")
    ] = 120.0,
    take_over: Annotated[
        bool,
        typer.Option("--take-over", help="Load although another load seems to run; it will stop."),
    ] = False,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Encode the passages of DATA into a collection; run it again to go on or to update.

    Each bundle gets a collection of its own beside the others, named after both. Only missing and
    changed passages are sent, and only those with another title or text are encoded. The name
    moves to the new collection when it has been verified. With --where or --limit the collection
    is complete when it holds that selection; the next load may select more, or everything.
    """
    from ingest import collections, loader, verifier
    from ingest.estimate import estimate
    from ingest.opening import stored_options
    from ingest.patience import patient
    from ingest.selection import Selection, select
    from models.bundle import ModelBundle
    from models.data import Dataset
    from retriever.settings_file import read_file

    selection = Selection(tuple(where or ()), limit)
    if prune:
        selection.require_no_prune()
    settings = loader.LoadSettings(prune, rate_limit, retry_for, take_over)
    stored_as = read_file(options).collection if options else None
    dataset = select(Dataset.open(data), selection)
    encoder = ModelBundle.load(bundle)
    if dry_run:
        with _as_it_is(url, path) as engine:
            report = loader.plan(engine, dataset, encoder, name=collection, prune=prune)
            stored_as = stored_as or stored_options(engine, report.collection)
        typer.echo(f"{report.collection} would have {report.outcomes}")
        typer.echo(estimate(dataset, encoder, options=stored_as, points=report.points))
        return
    with opened_engine(url, path, create=True) as engine:
        report = loader.load(
            engine, dataset, encoder, name=collection, options=stored_as, settings=settings
        )
        typer.echo(report)
        lasting = patient(engine, retry_for_s=retry_for)
        typer.echo(verifier.verify(lasting, report.collection, dataset, encoder))
        if promote:
            collections.promote(lasting, collection, report.collection)
            typer.echo(f"{collection} -> {report.collection}")


@contextmanager
def _as_it_is(url: str | None, path: Path | None) -> Iterator["Engine"]:
    """Open an engine to look at; an embedded one that is not there yet is not made."""
    from retriever.engine import EngineAddress

    folder = EngineAddress.find(url=url, path=path).path
    with TemporaryDirectory() as empty:
        missing = folder is not None and not folder.exists()
        with opened_engine(url, Path(empty, "edge") if missing else path, create=missing) as engine:
            yield engine
