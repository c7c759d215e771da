"""`ingest load`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from two_tower.retriever.commands.flags import Bundle, Name, Path_, Url, opened_engine

if TYPE_CHECKING:
    from two_tower.ingest.loading.loader import LoadSettings
    from two_tower.models.bundle.bundle import ModelBundle
    from two_tower.models.data import Dataset
    from two_tower.retriever.collection.options import CollectionOptions
    from two_tower.retriever.engine.protocol import Engine


Options = Annotated[
    Path | None,
    typer.Option(help="YAML file whose section `collection:` says how to store it."),
]

Where = Annotated[
    list[str] | None,
    typer.Option(
        help="Only passages with field=value, field>=value (also > <= <), or field~words; "
        "again for more. The same field=… twice: either."
    ),
]

Limit = Annotated[
    int | None, typer.Option(min=1, help="Only the first so many of them, in DATA's order.")
]

Prune = Annotated[bool, typer.Option("--prune", help="Delete points that DATA does not have.")]

Promote = Annotated[
    bool,
    typer.Option("--promote/--no-promote", help="Point the name to it once it is verified."),
]

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be sent and how large it will be.")
]

RateLimit = Annotated[float | None, typer.Option(help="Passages per second, at most.")]

RetryFor = Annotated[
    float, typer.Option(min=0, help="Seconds to wait for a server that went away.")
]

TakeOver = Annotated[
    bool,
    typer.Option("--take-over", help="Load although another load seems to run; it will stop."),
]


def load(
    data: Annotated[Path, typer.Argument(help="DATA folder that `ingest prepare` wrote.")],
    bundle: Bundle,
    collection: Annotated[str, typer.Option(help="Name that searches will use.")],
    options: Options = None,
    where: Where = None,
    limit: Limit = None,
    prune: Prune = False,
    promote: Promote = True,
    dry_run: DryRun = False,
    rate_limit: RateLimit = None,
    retry_for: RetryFor = 120.0,
    take_over: TakeOver = False,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Encode the passages of DATA into a collection; run it again to go on or to update.

    Each bundle gets a collection of its own beside the others, named after both. Only missing and
    changed passages are sent, and only those with another title or text are encoded. The name
    moves to the new collection when it has been verified. With --where or --limit the collection
    is complete when it holds that selection; the next load may select more, or everything.
    What --options changes of a collection that is there changes in place, and is said, or refused.
    """
    from two_tower.ingest.loading.loader import LoadSettings
    from two_tower.ingest.loading.selection import Selection, cache, select
    from two_tower.models.bundle.bundle import ModelBundle
    from two_tower.models.data import Dataset
    from two_tower.retriever.search.settings import read_file

    selection = Selection(tuple(where or ()), limit)
    if prune:
        selection.require_no_prune()
    settings = LoadSettings(prune, rate_limit, retry_for, take_over)
    stored_as = read_file(options).collection if options else None
    job = _Job(select(cache(Dataset.open(data)), selection), ModelBundle.load(bundle), collection)
    if dry_run:
        with _as_it_is(url, path) as engine:
            _plan(engine, job, stored_as, prune=prune)
    else:
        with opened_engine(url, path, create=True) as engine:
            _load(engine, job, stored_as, settings, promote=promote)


class _Job(NamedTuple):
    """What is loaded, and the name that it is loaded for."""

    dataset: "Dataset"
    encoder: "ModelBundle"
    name: str


def _plan(engine: "Engine", job: _Job, options: "CollectionOptions | None", *, prune: bool) -> None:
    """Print what a load would do."""
    from two_tower.ingest.loading import loader
    from two_tower.ingest.loading.estimate import estimate
    from two_tower.ingest.loading.setup import option_changes, stored_options

    report = loader.plan(engine, job.dataset, job.encoder, name=job.name, prune=prune)
    found = stored_options(engine, report.collection)
    changes: list[str] = []
    if options is not None and engine.collection_exists(report.collection):
        changes = option_changes(report.collection, found, options)
    typer.echo(f"{report.collection} would have {report.outcomes}")
    for change in changes:
        typer.echo(f"{report.collection} would have {change}")
    typer.echo(
        estimate(
            job.dataset,
            job.encoder,
            options=options or found,
            points=report.points,
            embedded=engine.is_embedded,
        )
    )


def _load(
    engine: "Engine",
    job: _Job,
    options: "CollectionOptions | None",
    settings: "LoadSettings",
    *,
    promote: bool,
) -> None:
    """Load, verify and give the name to what has been loaded."""
    from two_tower.ingest.loading import loader
    from two_tower.ingest.loading import verify as verifier
    from two_tower.ingest.versions import versions as collections

    report = loader.load(
        engine, job.dataset, job.encoder, name=job.name, options=options, settings=settings
    )
    typer.echo(report)
    patient = engine.with_retry(settings.retry_for_s)
    typer.echo(verifier.verify(patient, report.collection, job.dataset, job.encoder))
    if promote:
        collections.promote(patient, job.name, report.collection)
        typer.echo(f"{job.name} -> {report.collection}")


@contextmanager
def _as_it_is(url: str | None, path: Path | None) -> Iterator["Engine"]:
    """Open an engine to look at; an embedded one that is not there yet is not made."""
    from two_tower.retriever.engine.address import EngineAddress

    folder = EngineAddress.find(url=url, path=path).path
    with TemporaryDirectory() as empty:
        missing = folder is not None and not folder.exists()
        with opened_engine(url, Path(empty, "edge") if missing else path, create=missing) as engine:
            yield engine


def verify(
    name: Name,
    data: Annotated[Path | None, typer.Option(help="DATA to compare with.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Bundle to compare with.")] = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Compare every passage in full and send again what is not right."
        ),
    ] = False,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Check a collection: its count, and with --data and --bundle every passage and a sample.

    The sample is encoded anew and compared, vectors and payload. In a cluster a passage counts
    where all replicas agree on it; --repair makes them agree again.
    """
    from two_tower.ingest.loading import verify as verifier

    if (data is None) != (bundle is None):
        raise typer.BadParameter("--data and --bundle go together")
    if repair and data is None:
        raise typer.BadParameter("--repair needs --data and --bundle")
    with opened_engine(url, path) as engine:
        collection = engine.resolve(name)
        if data is None or bundle is None:
            typer.echo(verifier.verify_counts(engine, collection))
            return
        from two_tower.models.bundle.bundle import ModelBundle
        from two_tower.models.data import Dataset

        encoder = ModelBundle.load(bundle)
        dataset = Dataset.open(data)
        if repair:
            typer.echo(verifier.repair(engine, collection, dataset, encoder))
        typer.echo(verifier.verify(engine, collection, dataset, encoder))
