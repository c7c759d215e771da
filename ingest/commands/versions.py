"""Commands of `ingest` for collections that are there.

They are promote, rollback, list, drop, snapshot, restore and copy.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from two_tower.models.console import Rows, name_next, note, print_table, say
from two_tower.models.errors import ConfigError
from two_tower.retriever.commands.flags import Name, Path_, Split, Url, at, opened_engine

if TYPE_CHECKING:
    from two_tower.ingest.versions.versions import Version
    from two_tower.retriever.engine.address import EngineAddress
    from two_tower.retriever.engine.protocol import Engine

FROM_KEY, TO_KEY = "QDRANT_FROM_API_KEY", "QDRANT_TO_API_KEY"

Condition = Annotated[
    str | None,
    typer.Option(
        "--if",
        metavar="MEASURE better|not worse",
        help="What the version must be beside the present one, e.g. 'mrr@10 not worse'.",
    ),
]

Judged = Annotated[
    Path | None, typer.Option("--data", help="DATA with the judged queries for --if.")
]

Alias = Annotated[str, typer.Argument(help="Name that searches use.")]

Promote = Annotated[
    bool, typer.Option("--promote", help="Point the name to it once it is verified.")
]


def promote(
    name: Alias,
    to: Annotated[
        str | None, typer.Option(help="Versioned collection; the newest by default.")
    ] = None,
    condition: Condition = None,
    data: Judged = None,
    split: Split = "dev",
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Point a name to another version of its collection, in one step.

    With --if, only where a paired test on judged queries says so of the version that the name
    stands for now; otherwise nothing changes, and the exit status is 1.
    """
    from two_tower.ingest.versions import versions

    if (condition is None) != (data is None):
        raise ConfigError("--if and --data belong together: what must hold, and on which queries")
    with opened_engine(url, path) as engine:
        if condition is not None and data is not None:
            _require(engine, name, to, condition=condition, data=data, split=split)
        typer.echo(f"{name} -> {versions.promote(engine, name, to)}")
    _name_search(name, url, path)


def finish(name: Alias, url: Url = None, path: Path_ = None) -> None:
    """End a load in parts: check that all are there, count the points, and move the name.

    It names the parts that are missing, and then nothing changes.
    """
    from two_tower.ingest.versions.finishing import finish as finish_parts

    with opened_engine(url, path) as engine:
        report = finish_parts(engine, name, notify=typer.echo)
        typer.echo(report)
        typer.echo(f"{name} -> {report.collection}")
    _name_search(name, url, path)


def _require(
    engine: "Engine", name: str, to: str | None, *, condition: str, data: Path, split: str
) -> None:
    """Exit with 1 where the version is not what the condition asks of it."""
    from two_tower.ingest.versions import conditions, versions
    from two_tower.models.data import Dataset

    asked = conditions.read_condition(condition)
    new, _ = versions.choose_version(engine, name, to)
    old = versions.current_version(engine, name)
    if old in (None, new):
        note(f"{name} stands for {old or 'nothing'} now; there is nothing to compare with")
        return
    outcome = conditions.compare_versions(
        engine, new, str(old), Dataset.open(data), split=split, condition=asked
    )
    note(outcome.says)
    if not outcome.holds:
        say(f"Error: {condition!r} does not hold for {new}; {name} stays {old}")
        raise typer.Exit(1)


def rollback(name: Alias, url: Url = None, path: Path_ = None) -> None:
    """Point a name back to the version it stood for before; once more undoes that."""
    from two_tower.ingest.versions import versions

    with opened_engine(url, path) as engine:
        typer.echo(f"{name} -> {versions.rollback(engine, name)}")
    _name_search(name, url, path)


def _name_search(name: str, url: str | None, path: Path | None) -> None:
    name_next("retriever", "search", name, "QUERY", *at(url, path))


def _name_promoted(
    collection: str, url: str | None, path: Path | None, *, is_promoted: bool
) -> None:
    """Name a search of a new collection, or the command that gives it its name."""
    from two_tower.retriever.collection.schema import base_name

    if is_promoted:
        _name_search(base_name(collection), url, path)
    else:
        to = ["--to", collection]
        name_next("ingest", "promote", base_name(collection), *to, *at(url, path))


def list_collections(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """List collections, newest version first.

    * marks the one that the name stands for, - the one that `ingest rollback` would return to;
    a load that was not finished shows how many points there are of how many, and which of its parts
    wait for `ingest finish`.
    """
    from two_tower.ingest.versions import versions
    from two_tower.retriever.engine.address import EngineAddress

    with opened_engine(url, path) as engine:
        listed = versions.versions(engine)
    if as_json:
        typer.echo(json.dumps([version.to_dict() for version in listed]))
    elif listed:
        print_table(_rows(listed), _aligned, align="lllrlr", keys=2)
        waiting = [version.name for version in listed if version.awaits_finish]
        if waiting:
            name_next("ingest", "finish", waiting[0], *at(url, path))
        else:
            _name_search(listed[0].name or listed[0].collection, url, path)
    else:
        where = EngineAddress.find(url=url, path=path)
        say(
            f"No collection of ingest load at {where}; to make one run: "
            "ingest load DATA --bundle BUNDLE --collection NAME"
        )


def _rows(listed: "Sequence[Version]") -> list[list[str]]:
    previous = {version.previous for version in listed if version.in_use}
    rows = [["", "NAME", "COLLECTION", "POINTS", "BUNDLE", "AGE"]]
    for version in listed:
        expected = "" if version.complete else f" of {version.metadata.expected_points:,}"
        if version.of:
            expected += f"; parts {', '.join(map(str, version.parts))} of {version.of}"
        rows.append(
            [
                "*" if version.in_use else "-" if version.collection in previous else "",
                version.name,
                version.collection,
                "damaged" if version.is_damaged else f"{version.points:,}{expected}",
                version.metadata.bundle_fingerprint[:12] if version.metadata.has_tower else "none",
                _age(version.metadata.age_s),
            ]
        )
    return rows


def _age(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _aligned(rows: Rows) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def drop(
    name: Name,
    yes: Annotated[
        bool, typer.Option("--yes", help="Also what is in use; of an alias, every version.")
    ] = False,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Delete a version that is not in use, or with --yes a name and all its versions."""
    from two_tower.ingest.versions import versions
    from two_tower.retriever.errors import CollectionNotFound

    with opened_engine(url, path) as engine:
        try:
            for collection in versions.drop(engine, name, yes=yes):
                typer.echo(f"Dropped {collection}")
        except CollectionNotFound as error:
            if not yes:
                raise
            note(f"Nothing to drop: {error}")  # as when an earlier call was stopped at its end
    name_next("ingest", "list", *at(url, path))


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
    from two_tower.ingest.versions import snapshots

    with opened_engine(url, path) as engine:
        saved = snapshots.snapshot(engine, name, out)
    typer.echo(
        f"{saved.file}: {saved.points:,} points of {saved.collection}, "
        f"{saved.file.stat().st_size / 2**20:,.1f} MiB"
    )
    name_next("ingest", "restore", saved.file, *at(url, path))


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
    from two_tower.ingest.versions import snapshots, versions
    from two_tower.retriever.collection.schema import base_name

    with opened_engine(url, path, create=True) as engine:
        restored = snapshots.restore(engine, file, name=collection, again=promote)
        typer.echo(f"{restored.collection}: restored and verified {restored.points:,} points")
        if promote:
            name = base_name(restored.collection)
            typer.echo(f"{name} -> {versions.promote(engine, name, restored.collection)}")
    _name_promoted(restored.collection, url, path, is_promoted=promote)


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
    from two_tower.ingest.versions import copying, versions
    from two_tower.retriever.collection.schema import base_name
    from two_tower.retriever.engine.address import EngineAddress, read_key
    from two_tower.retriever.search.settings import read_file

    if (to_path is None) == (to_url is None):
        raise typer.BadParameter("give one of --to-path and --to-url")
    _require_two(
        EngineAddress.find(url=from_url, path=from_path),
        EngineAddress.find(url=to_url, path=to_path),
    )
    storage = read_file(options).collection if options else None
    with (
        opened_engine(from_url, from_path, api_key=read_key(FROM_KEY)) as source,
        opened_engine(to_url, to_path, api_key=read_key(TO_KEY), create=True) as target,
    ):
        report = copying.copy(source, target, name, options=storage)
        typer.echo(report)
        if promote:
            alias = base_name(report.collection)
            typer.echo(f"{alias} -> {versions.promote(target, alias, report.collection)}")
    _name_promoted(report.collection, to_url, to_path, is_promoted=promote)


def _require_two(source: "EngineAddress", target: "EngineAddress") -> None:
    """Refuse one place as both, and one key for two servers: it would be shown to the wrong one."""
    from two_tower.models.errors import ConfigError
    from two_tower.retriever.engine.address import read_key

    if str(source) == str(target):
        raise ConfigError(f"found {source} as both source and target; expected two engines")
    if source.url and target.url and read_key() and not (read_key(FROM_KEY) and read_key(TO_KEY)):
        raise ConfigError(
            f"found QDRANT_API_KEY and two servers; set {FROM_KEY} and {TO_KEY}, or these names "
            "with _FILE, so that neither server is sent the other's key"
        )
