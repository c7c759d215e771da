"""The `ingest` command: sources to DATA, DATA to a collection."""

import typer

from two_tower.ingest.commands import load as commands_load
from two_tower.ingest.commands import load as commands_verify
from two_tower.ingest.commands import prepare as commands_prepare
from two_tower.ingest.commands import versions as commands_collections
from two_tower.ingest.commands import versions as commands_snapshots
from two_tower.models.console import CommandGroup

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turn labelled rows into DATA, and DATA into a verified Qdrant collection.",
)
app.command("prepare")(commands_prepare.prepare)
app.command("load")(commands_load.load)
app.command("verify")(commands_verify.verify)
app.command("promote")(commands_collections.promote)
app.command("rollback")(commands_collections.rollback)
app.command("list")(commands_collections.list_collections)
app.command("drop")(commands_collections.drop)
app.command("snapshot")(commands_snapshots.snapshot)
app.command("restore")(commands_snapshots.restore)
app.command("copy")(commands_snapshots.copy)
