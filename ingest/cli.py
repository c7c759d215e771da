"""The `ingest` command: sources to DATA, DATA to a collection."""

from two_tower.ingest.commands.adopt import adopt
from two_tower.ingest.commands.change import add, delete
from two_tower.ingest.commands.generate import generate
from two_tower.ingest.commands.judge import judge
from two_tower.ingest.commands.load import load, verify
from two_tower.ingest.commands.prepare import prepare
from two_tower.ingest.commands.versions import (
    copy,
    drop,
    finish,
    list_collections,
    promote,
    restore,
    rollback,
    snapshot,
)
from two_tower.models.console import application

app = application("Turn labelled rows into DATA, and DATA into a verified Qdrant collection.")
app.command()(prepare)
app.command()(generate)
app.command()(judge)
app.command()(load)
app.command()(add)
app.command()(delete)
app.command()(verify)
app.command()(finish)
app.command()(promote)
app.command()(rollback)
app.command("list")(list_collections)
app.command()(drop)
app.command()(snapshot)
app.command()(restore)
app.command()(copy)
app.command()(adopt)


if __name__ == "__main__":
    app()
