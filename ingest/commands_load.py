"""Commands of `ingest` that reach an engine: load, verify, promote, list, drop."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retriever.options import Path_, Url

if TYPE_CHECKING:
    from ingest.collections import Version
    from retriever.engine import Engine

Name = Annotated[str, typer.Argument(help="Collection: its alias or versioned name.")]
Bundle = Annotated[Path, typer.Option(help="Folder that `models train` wrote.")]


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
    with _engine(url, path, create=True) as engine:
        report = loader.load(engine, dataset, encoder, name=collection, prune=prune)
        typer.echo(report)
        typer.echo(verifier.verify(engine, report.collection, dataset, encoder))
        if promote:
            collections.promote(engine, collection, report.collection)
            typer.echo(f"{collection} -> {report.collection}")


def verify(
    name: Name,
    data: Annotated[Path | None, typer.Option(help="DATA to compare with.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Bundle to compare with.")] = None,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Check a collection: its count, and with --data and --bundle every passage and a sample.

    The sample is encoded anew and compared, vectors and payload.
    """
    from ingest import verifier

    if (data is None) != (bundle is None):
        raise typer.BadParameter("--data and --bundle go together")
    with _engine(url, path) as engine:
        collection = engine.resolve(name)
        if data is None or bundle is None:
            typer.echo(verifier.verify_counts(engine, collection))
            return
        from models.bundle import ModelBundle
        from models.data import Dataset

        encoder = ModelBundle.load(bundle)
        typer.echo(verifier.verify(engine, collection, Dataset.open(data), encoder))


def promote(
    name: Annotated[str, typer.Argument(help="Name that searches use.")],
    to: Annotated[
        str | None, typer.Option(help="Versioned collection; the newest by default.")
    ] = None,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Point a name to another version of its collection, in one step."""
    from ingest import collections

    with _engine(url, path) as engine:
        typer.echo(f"{name} -> {collections.promote(engine, name, to)}")


def list_collections(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """List collections, newest version first; * marks the one that the name stands for."""
    from ingest import collections

    with _engine(url, path) as engine:
        found = collections.versions(engine)
    if as_json:
        typer.echo(json.dumps([version.to_dict() for version in found]))
    else:
        typer.echo(_table(found))


def drop(
    name: Name,
    yes: Annotated[
        bool, typer.Option("--yes", help="Also what is in use; of an alias, every version.")
    ] = False,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Delete a version that is not in use, or with --yes a name and all its versions."""
    from ingest import collections

    with _engine(url, path) as engine:
        for collection in collections.drop(engine, name, yes=yes):
            typer.echo(f"Dropped {collection}")


@contextmanager
def _engine(url: str | None, path: Path | None, *, create: bool = False) -> Iterator["Engine"]:
    from retriever.engine import connect

    engine = connect(url=url, path=path, create=create)
    try:
        yield engine
    finally:
        engine.close()


def _table(found: "list[Version]") -> str:
    rows = [["", "NAME", "COLLECTION", "POINTS", "BUNDLE", "AGE"]]
    for version in found:
        rows.append(
            [
                "*" if version.name in version.aliases else "",
                version.name,
                version.collection,
                f"{version.points:,}",
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
