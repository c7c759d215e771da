"""Flags that several commands of `retriever` and `ingest` have, and the engine they lead to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from two_tower.retriever.engine.protocol import Engine

Name = Annotated[str, typer.Argument(help="Collection: its alias or versioned name.")]

Bundle = Annotated[
    Path | None,
    typer.Option(
        help="Folder that `models train` wrote; by default it is found by its fingerprint: where "
        "TWO_TOWER_BUNDLE says (a bundle, or a folder of them), or where the load took it from. A "
        "collection of BM25 alone needs none.",
        show_default=False,
    ),
]

Data = Annotated[Path, typer.Argument(help="DATA folder with the judged queries.")]

Split = Annotated[str, typer.Option(help="Which judgements.")]

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="Qdrant server or cluster; QDRANT_URL where neither this nor --path is given. "
        "Its key comes from QDRANT_API_KEY, or the file that QDRANT_API_KEY_FILE names.",
        show_default=False,
    ),
]

Path_ = Annotated[
    Path | None,
    typer.Option("--path", help="Folder of the embedded engine.", show_default=".qdrant"),
]

Settings = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        help="YAML file whose section `search:` says how to search; the default otherwise.",
        show_default=False,
    ),
]


def at(url: str | None, path: Path | None) -> list[str]:
    """Return the flags of a command that shall reach the same engine, without credentials."""
    from two_tower.retriever.engine.address import EngineAddress

    if url:
        return ["--url", str(EngineAddress(url=url))]
    return ["--path", str(path)] if path else []


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
