"""`ingest add` and `ingest delete`: a collection changed passage by passage."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from two_tower.models.console import name_next, say
from two_tower.retriever.commands.flags import Bundle, Name, Path_, Url, at


def add(
    name: Name,
    file: Annotated[
        Path,
        typer.Argument(help="Passages, in any form that `ingest prepare` reads, or DATA."),
    ],
    bundle: Bundle = None,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Add the passages of a file; one whose id is there already takes the place of the old one.

    They can be found when the command ends. Queries and judgements in the file are passed over.
    """
    from two_tower.ingest.changes.collection import Collection
    from two_tower.ingest.dataset.folder import MANIFEST
    from two_tower.ingest.dataset.writer import DatasetWriter
    from two_tower.ingest.sources.choose import open_source
    from two_tower.models.data import Dataset

    with (
        Collection.open(name, bundle=bundle, url=url, path=path) as collection,
        TemporaryDirectory() as folder,
    ):
        if (file / MANIFEST).is_file():
            typer.echo(collection.add_data(file))
            return
        source = open_source(str(file), texts=collection.text_fields)
        with DatasetWriter(Path(folder, "DATA"), source=source.name, merge=False) as writer:
            source.write_to(writer)
        typer.echo(collection.add_data(Dataset.open(Path(folder, "DATA"))))
        for reason, count in writer.counts["rejected"].items():
            say(f"Warning: {count:,} set aside: {reason}")
    name_next("retriever", "search", name, "QUERY", *at(url, path))


def delete(
    name: Name,
    passage_ids: Annotated[list[str], typer.Argument(help="Ids of passages.")],
    bundle: Bundle = None,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Delete passages by their ids; an id that is not there is passed over."""
    from two_tower.ingest.changes.collection import Collection

    with Collection.open(name, bundle=bundle, url=url, path=path) as collection:
        deleted = collection.delete(passage_ids)
        typer.echo(f"{collection.name}: {deleted:,} of {len(set(passage_ids)):,} deleted")
    name_next("retriever", "search", name, "QUERY", *at(url, path))
