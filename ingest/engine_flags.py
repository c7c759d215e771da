"""What the commands of `ingest` that reach an engine share."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from two_tower.retriever.engine.protocol import Engine

Name = Annotated[str, typer.Argument(help="Collection: its alias or versioned name.")]
Bundle = Annotated[Path, typer.Option(help="Folder that `models train` wrote.")]


@contextmanager
def opened_engine(
    url: str | None, path: Path | None, *, create: bool = False, api_key: str | None = None
) -> Iterator["Engine"]:
    """Connect for the length of a `with` block."""
    from two_tower.retriever.engine.connect import connect

    engine = connect(url=url, path=path, create=create, api_key=api_key)
    try:
        yield engine
    finally:
        engine.close()
