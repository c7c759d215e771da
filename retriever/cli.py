"""The `retriever` command: search a collection, look into it, measure, tune and serve it.

What a command does stands in `retriever/commands`, which imports what is heavy when it runs.
"""

from two_tower.models.console import application
from two_tower.retriever.commands.calibrate import calibrate
from two_tower.retriever.commands.collection import fields, info, similar
from two_tower.retriever.commands.compare import compare
from two_tower.retriever.commands.evaluate import evaluate
from two_tower.retriever.commands.search import search
from two_tower.retriever.commands.serve import serve
from two_tower.retriever.commands.tune import tune

app = application("Search a collection that `ingest load` made, and measure how well it does.")
app.command()(search)
app.command()(similar)
app.command()(info)
app.command()(fields)
app.command()(evaluate)
app.command()(tune)
app.command()(calibrate)
app.command()(serve)
app.command()(compare)


if __name__ == "__main__":
    app()
