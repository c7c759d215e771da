"""Options that every command which reaches an engine has in common."""

from pathlib import Path
from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(help="Collection: its alias or versioned name.")]

Bundle = Annotated[
    Path,
    typer.Option(help="Folder that `models train` wrote.", envvar="TWO_TOWER_BUNDLE"),
]

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
