"""`ingest verify`."""

from pathlib import Path
from typing import Annotated

import typer

from two_tower.ingest.engine_flags import Name, opened_engine
from two_tower.retriever.commands.flags import Path_, Url


def verify(
    name: Name,
    data: Annotated[Path | None, typer.Option(help="DATA to compare with.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Bundle to compare with.")] = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Compare every passage in full and send again what is not right."
        ),
    ] = False,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Check a collection: its count, and with --data and --bundle every passage and a sample.

    The sample is encoded anew and compared, vectors and payload. In a cluster a passage counts
    where all replicas agree on it; --repair makes them agree again.
    """
    from two_tower.ingest import verifier

    if (data is None) != (bundle is None):
        raise typer.BadParameter("--data and --bundle go together")
    if repair and data is None:
        raise typer.BadParameter("--repair needs --data and --bundle")
    with opened_engine(url, path) as engine:
        collection = engine.resolve(name)
        if data is None or bundle is None:
            typer.echo(verifier.verify_counts(engine, collection))
            return
        from two_tower.models.bundle.bundle import ModelBundle
        from two_tower.models.data import Dataset

        encoder = ModelBundle.load(bundle)
        dataset = Dataset.open(data)
        if repair:
            typer.echo(verifier.repair(engine, collection, dataset, encoder))
        typer.echo(verifier.verify(engine, collection, dataset, encoder))
