"""The `ingest` command: sources to DATA, DATA to a collection."""

import typer

from ingest import commands_load, commands_prepare
from models.console import CommandGroup

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turn labelled rows into DATA, and DATA into a verified Qdrant collection.",
)
app.command("prepare")(commands_prepare.prepare)
app.command("load")(commands_load.load)
app.command("verify")(commands_load.verify)
app.command("promote")(commands_load.promote)
app.command("list")(commands_load.list_collections)
app.command("drop")(commands_load.drop)
