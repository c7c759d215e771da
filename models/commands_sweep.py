"""`models sweep`: train over a space of settings and rank what came out."""

from pathlib import Path
from typing import Annotated

import typer


def sweep(
    data: Annotated[Path, typer.Argument(help="DATA folder, as ingest prepare makes it.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the sweep; each trial is a bundle in it.")],
    space: Annotated[
        Path, typer.Option(help="YAML: dotted key -> list of values, or {min, max, log: true}.")
    ],
    config: Annotated[
        str | None, typer.Option(help="YAML file or recipe that the trials change.")
    ] = None,
    trials: Annotated[int, typer.Option(help="Trials at most.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the random search.")] = 0,
    metric: Annotated[str, typer.Option(help="Metric on dev to sort by.")] = "recall@10",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    wandb: Annotated[
        str, typer.Option(help="disabled, offline or online: a run per trial, in one group.")
    ] = "disabled",
) -> None:
    """Train every combination of a small space, or a random sample of a large one.

    The table (TSV, best first) goes to stdout, and to sweep.json and sweep.md in the folder. Run
    the same command again after a kill: finished trials are not done again.
    """
    from two_tower.models.data import Dataset
    from two_tower.models.pipeline import RunOptions
    from two_tower.models.recipe import read_config
    from two_tower.models.sweep import check_metric, plan, read_space, run_sweep, table
    from two_tower.models.tracking import wandb_options

    check_metric(metric)
    options = RunOptions(device, wandb_options(wandb))
    opened = Dataset.open(data)
    base = read_config(config, {}).to_dict()
    chosen = plan(
        base, read_space(space), trials=trials, seed=seed, content_hash=opened.content_hash
    )
    outcomes = run_sweep(
        opened,
        out.resolve(),
        chosen,
        metric=metric,
        options=options,
        say=lambda line: typer.echo(line, err=True),
    )
    for row in table(outcomes):
        typer.echo("\t".join(row))
