"""`ingest load` and `ingest verify`."""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from two_tower.models.console import name_next
from two_tower.retriever.commands.flags import Name, Path_, Url, at, opened_engine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from two_tower.ingest.loading.loader import LoadSettings
    from two_tower.ingest.loading.points import PassageEncoder
    from two_tower.models.data import Dataset
    from two_tower.retriever.collection.options import CollectionOptions
    from two_tower.retriever.engine.protocol import Engine

LoadBundle = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        help="Folder that `models train` wrote; without it BM25 alone searches, and no vector is "
        "made.",
        envvar="TWO_TOWER_BUNDLE",
        show_default=False,
    ),
]

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

PassageLimit = Annotated[
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

Expand = Annotated[
    Path | None,
    typer.Option(
        help="DATA that `ingest generate` made: BM25 reads its queries beside the texts.",
        show_default=False,
    ),
]

TakeOver = Annotated[
    bool,
    typer.Option("--take-over", help="Load although another load seems to run; it will stop."),
]


Device = Annotated[
    str,
    typer.Option(
        help="Where a transformer reads: auto (a GPU, if torch sees one), cpu, cuda or cuda:1."
    ),
]

Part = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Load only that one of N parts of DATA, beside other loaders on a server; `ingest "
        "finish NAME` when all are there.",
    ),
]


def load(
    data: Annotated[Path, typer.Argument(help="DATA folder that `ingest prepare` wrote.")],
    collection: Annotated[str, typer.Option(help="Name that searches will use.")],
    bundle: LoadBundle = None,
    options: Options = None,
    expand: Expand = None,
    where: Where = None,
    limit: PassageLimit = None,
    part: Part = None,
    prune: Prune = False,
    promote: Promote = True,
    dry_run: DryRun = False,
    rate_limit: RateLimit = None,
    retry_for: RetryFor = 120.0,
    take_over: TakeOver = False,
    device: Device = "auto",
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Load the passages of DATA into a collection; run it again to go on or to update.

    Each bundle gets a collection of its own beside the others, named after both. Only missing and
    changed passages are sent, and only those with another title or text are encoded. The name
    moves to the new collection when it has been verified. With --where or --limit the collection
    is complete when it holds that selection; the next load may select more, or everything.
    What --options changes of a collection that is there changes in place, and is said, or refused.
    Where the bundle learnt what a cosine is worth beside BM25 on other passages, queries cut from
    these say it anew, before the name moves.
    """
    from two_tower.ingest.adoption.adopt import require_documents_model
    from two_tower.ingest.changes.collection import Collection
    from two_tower.ingest.loading import loader
    from two_tower.ingest.loading.selection import Selection, select
    from two_tower.models.bundle.devices import check_device
    from two_tower.models.bundle.no_tower import NoTower
    from two_tower.retriever.search.bundles import load_bundle
    from two_tower.retriever.search.settings import read_file

    if part and (prune or dry_run):
        raise typer.BadParameter("--part goes neither with --prune nor with --dry-run")
    check_device(device)
    selection = Selection(tuple(where or ()), limit)
    if prune:
        selection.require_no_prune()
    settings = loader.LoadSettings(prune, rate_limit, retry_for, take_over)
    storage = read_file(options).collection if options else None
    dataset = select(_opened(data, expand), selection)
    trained = load_bundle(bundle, device=device)
    if trained and bundle:
        require_documents_model(trained, bundle)
    if dry_run:
        _plan(dataset, trained or NoTower(), collection, storage, url=url, path=path, prune=prune)
        said = {"--bundle": bundle, "--expand": expand, "--options": options, "--limit": limit}
        more = (*_flags(said, where or ()), *["--prune"] * prune, "--collection", collection)
        name_next("ingest", "load", data, *more, *at(url, path))
        return
    if part:
        with opened_engine(url, path, create=True) as engine:
            _load_part(engine, dataset, trained or NoTower(), part, collection, storage, settings)
        name_next("ingest", "finish", collection, *at(url, path))
        return
    loaded = Collection.load(
        collection,
        dataset,
        bundle=trained,
        url=url,
        path=path,
        options=storage,
        settings=settings,
        promote=promote,
        device=device,
        notify=typer.echo,
    )
    loaded.close()
    if promote:
        name_next("retriever", "search", collection, "QUERY", *at(url, path))
    else:
        name_next("ingest", "promote", collection, *at(url, path))


def _flags(said: "Mapping[str, object]", where: "Sequence[str]") -> list[object]:
    """Return the words that say the same once more."""
    flags = [word for pair in said.items() if pair[1] is not None for word in pair]
    return flags + [word for rule in where for word in ("--where", rule)]


def _load_part(
    engine: "Engine",
    dataset: "Dataset",
    encoder: "PassageEncoder",
    part: str,
    name: str,
    options: "CollectionOptions | None",
    settings: "LoadSettings",
) -> None:
    from two_tower.ingest.loading.parts import load_part, read_part

    slice_ = read_part(part)
    report = load_part(
        engine, dataset, encoder, slice_, name=name, options=options, settings=settings
    )
    done = f"{name}: part {slice_} has been loaded before; nothing was sent"
    typer.echo(done if report is None else f"part {slice_} of {report}")


def _opened(data: Path, expand: Path | None) -> "Dataset":
    """Open DATA, with the generated queries of its passages where there are some to be read."""
    from two_tower.ingest.loading.expansion import ExpandedData
    from two_tower.ingest.loading.selection import cache
    from two_tower.models.data import Dataset

    dataset = Dataset.open(data)
    return ExpandedData(dataset, Dataset.open(expand)) if expand else cache(dataset)


def _plan(
    dataset: "Dataset",
    encoder: "PassageEncoder",
    name: str,
    options: "CollectionOptions | None",
    *,
    url: str | None,
    path: Path | None,
    prune: bool,
) -> None:
    """Print what a load would do; an embedded engine that is not there yet is not made."""
    from two_tower.ingest.loading import loader
    from two_tower.ingest.loading.estimate import estimate
    from two_tower.ingest.loading.setup import option_changes, stored_options
    from two_tower.retriever.engine.address import EngineAddress

    folder = EngineAddress.find(url=url, path=path).path
    with ExitStack() as until_done:
        is_new = folder is not None and not folder.exists()
        if is_new:
            path = Path(until_done.enter_context(TemporaryDirectory()), "edge")
        engine = until_done.enter_context(opened_engine(url, path, create=is_new))
        report = loader.plan(engine, dataset, encoder, name=name, prune=prune)
        stored = stored_options(engine, report.collection, dataset, encoder)
        changes: list[str] = []
        if options is not None and engine.collection_exists(report.collection):
            changes = option_changes(report.collection, stored, options)
        for content in (report.outcomes, *changes):
            typer.echo(f"{report.collection} would have {content}")
        storage, points = options or stored, report.points
        embedded = engine.is_embedded
        typer.echo(estimate(dataset, encoder, options=storage, points=points, embedded=embedded))


def verify(
    name: Name,
    data: Annotated[Path | None, typer.Option(help="DATA to compare with.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Bundle to compare with.")] = None,
    expand: Expand = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Compare every passage in full and send again what is not right."
        ),
    ] = False,
    device: Device = "auto",
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Check a collection: its count, and with --data (and --bundle) every passage and a sample.

    The sample is encoded anew and compared, vectors and payload. In a cluster a passage counts
    where all replicas agree on it; --repair makes them agree again.
    """
    from two_tower.ingest.loading import verify as verifier

    if bundle and not data:
        raise typer.BadParameter("--bundle needs --data")
    if repair and not data:
        raise typer.BadParameter("--repair needs --data and --bundle; for BM25 alone, --data")
    with opened_engine(url, path) as engine:
        collection = engine.resolve(name)
        if data is None:
            typer.echo(verifier.verify_counts(engine, collection))
            name_next("retriever", "search", name, "QUERY", *at(url, path))
            return
        from two_tower.ingest.adoption.adopt import encoder_for
        from two_tower.models.bundle.no_tower import NoTower
        from two_tower.retriever.collection.schema import read_metadata
        from two_tower.retriever.search.bundles import find_bundle, load_bundle

        metadata = read_metadata(engine, collection)
        given = load_bundle(bundle, device=device)
        trained = given or find_bundle(engine, collection, device=device)
        encoder: PassageEncoder = trained
        if not isinstance(trained, NoTower):
            encoder = encoder_for(engine, metadata, trained)
        dataset = _opened(data, expand)
        if repair:
            typer.echo(verifier.repair(engine, collection, dataset, encoder))
        typer.echo(verifier.verify(engine, collection, dataset, encoder))
    name_next("retriever", "search", name, "QUERY", *at(url, path))
