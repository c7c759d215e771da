"""`ingest adopt`: a collection that somebody else filled becomes one that can be searched."""

import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from two_tower.ingest.commands.prepare import NAMES_WIDTH, Force, Language, summary
from two_tower.models.console import name_next, print_pairs
from two_tower.retriever.commands.flags import Path_, Url, at, opened_engine

if TYPE_CHECKING:
    from two_tower.ingest.adoption.foreign import ForeignCollection

Collection = Annotated[
    str,
    typer.Argument(
        help="Collection that something else than `ingest load` filled; NAME:VECTOR where it has "
        "several dense vectors.",
        metavar="COLLECTION[:VECTOR]",
    ),
]

Out = Annotated[Path | None, typer.Option(help="Make a DATA folder of its passages.")]

Bundle = Annotated[
    Path | None,
    typer.Option(
        help="Make it searchable with this bundle, as models train --documents makes them."
    ),
]


Queries = Annotated[
    Path | None,
    typer.Option(
        help="Table of judged queries that go into DATA: columns query and passage_id, perhaps "
        "relevance and split."
    ),
]


def adopt(
    collection: Collection,
    out: Out = None,
    queries: Queries = None,
    bundle: Bundle = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name that searches will use.", show_default="COLLECTION-adopted"),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Field of the text (usual names are found); a.b: b in a.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Field of the title, likewise.")] = None,
    passage_id: Annotated[
        str | None,
        typer.Option(
            "--id",
            help="Field of the passage id; '' for the point's id.",
            show_default="passage_id, _id, doc_id or id where all differ, else the point's id",
        ),
    ] = None,
    language: Language = None,
    force: Force = False,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Look at a collection that somebody else filled, make DATA of it, make it searchable.

    Without --out and --bundle it only says what it found. With --bundle it makes a copy with all
    that searches need, verifies it and points the name to it; run it again to go on, or after the
    collection has changed. The collection itself is never changed.
    """
    from two_tower.ingest.adoption import adopt as adoption
    from two_tower.ingest.adoption.foreign import ForeignCollection
    from two_tower.ingest.loading.verify import verify
    from two_tower.ingest.versions.versions import promote
    from two_tower.models.bundle.bundle import ModelBundle
    from two_tower.models.language import ENGLISH

    if queries and not out:
        raise typer.BadParameter("--queries needs --out")
    with ExitStack() as until_done:
        engine = until_done.enter_context(opened_engine(url, path))
        foreign = ForeignCollection.open(
            engine, collection, text=text, title=title, passage_id=passage_id
        )
        name = name or f"{foreign.collection}-adopted"
        loaded = ModelBundle.load(bundle) if bundle else None
        if loaded:
            adoption.require_possible(engine, foreign, name=name, dim=loaded.dim)
        print_pairs(_found(foreign), width=NAMES_WIDTH)
        if not (out or loaded):
            name_next("ingest", "adopt", foreign.address, "--out", "DATA", *at(url, path))
            return
        started = time.monotonic()
        folder = out or Path(until_done.enter_context(TemporaryDirectory()), "DATA")
        if language is None and loaded:
            language = loaded.card.get("data", {}).get("language")
        data = adoption.write_data(
            foreign, folder, queries=queries, language=language or ENGLISH, overwrite=force
        )
        if out:
            pairs = summary(data.manifest["counts"])
            pairs.append(("DATA", f"{out} in {time.monotonic() - started:.1f} s"))
            print_pairs(pairs, width=NAMES_WIDTH)
        if loaded is None:
            documents = ["--documents", foreign.address, *at(url, path)]
            name_next("models", "train", out, *documents, "--out", "BUNDLE")
            return
        report = adoption.adopt(engine, foreign, data, loaded, name=name)
        typer.echo(report)
        encoder = adoption.AdoptedEncoder(loaded, foreign)
        typer.echo(verify(engine.with_retry(), report.collection, data, encoder))
        typer.echo(f"{name} -> {promote(engine, name, report.collection)}")
    name_next("retriever", "search", name, "QUERY", *at(url, path))


def _found(foreign: "ForeignCollection") -> list[tuple[str, str]]:
    """Return what was found as names and values."""
    vector, fields = foreign.vector, foreign.fields
    return [
        ("collection", f"{foreign.collection}, {foreign.points:,} points"),
        ("vector", f"{vector.name or 'without a name'}, {vector.dim} dims, {vector.distance}"),
        ("text", fields.text),
        ("title", fields.title or "none"),
        ("url", fields.url or "none"),
        ("passage id", fields.passage_id or "the point's id"),
    ]
