"""The `models` command."""

from pathlib import Path
from typing import Annotated, Any

import typer

from two_tower.models.commands_mine import mine
from two_tower.models.commands_sweep import sweep
from two_tower.models.console import CommandGroup
from two_tower.models.recipe import recipe_names

RECIPES = "the recipe's"

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train two-tower models and look at what was trained.",
)


@app.callback()
def main() -> None:
    """Train two-tower models and look at what was trained."""


Data = Annotated[Path, typer.Argument(help="DATA folder, as ingest prepare makes it.")]
Out = Annotated[Path, typer.Option(help="Bundle folder to make.")]
Config = Annotated[
    str | None,
    typer.Option(
        help=f"YAML file, or the name of a shipped recipe ({', '.join(recipe_names())}).",
        show_default="fast without its cross-scorer",
    ),
]
Tower = Annotated[
    str | None,
    typer.Option(help="Kind of tower: mean, gru, lstm or transformer.", show_default=RECIPES),
]
Loss = Annotated[
    str | None, typer.Option(help="Loss: in_batch, triplet or margin_mse.", show_default=RECIPES)
]
Shared = Annotated[
    bool | None,
    typer.Option(
        "--shared-towers/--separate-towers",
        help="One tower for both sides, or two.",
        show_default=RECIPES,
    ),
]
Cbow = Annotated[
    bool | None,
    typer.Option("--cbow/--skip-gram", help="How Word2Vec learns.", show_default=RECIPES),
]
Epochs = Annotated[
    int | None, typer.Option(help="Epochs over the labelled pairs.", show_default=RECIPES)
]
PretrainEpochs = Annotated[
    int | None,
    typer.Option(help="Epochs of inverse cloze over the corpus; 0 for none.", show_default=RECIPES),
]
Negatives = Annotated[
    Path | None, typer.Option(help="Hard negatives to learn from, as models mine makes them.")
]
Start = Annotated[
    Path | None,
    typer.Option(help="Bundle to begin from: its tokenizer, and its towers as far as they fit."),
]
Seed = Annotated[
    int | None, typer.Option(help="Seed of every random choice.", show_default=RECIPES)
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Wandb = Annotated[str, typer.Option(help="disabled, offline or online.")]
Force = Annotated[
    bool, typer.Option("--force", help="Replace a bundle; drop a run with other settings.")
]


@app.command()
def train(
    data: Data,
    out: Out,
    *,
    config: Config = None,
    tower: Tower = None,
    loss: Loss = None,
    shared: Shared = None,
    cbow: Cbow = None,
    epochs: Epochs = None,
    pretrain_epochs: PretrainEpochs = None,
    negatives: Negatives = None,
    start: Start = None,
    seed: Seed = None,
    device: Device = "auto",
    wandb: Wandb = "disabled",
    force: Force = False,
) -> None:
    """Train a bundle from DATA. Run the same command again after a kill, and it goes on.

    Flags win over the configuration. Checkpoints, metrics.jsonl and environment.json are kept in
    <out>.run beside the bundle.
    """
    flags: dict[str, Any] = {
        "tower.kind": tower,
        "tower.shared": shared,
        "labelled.loss": loss,
        "labelled.epochs": epochs,
        "pretrain.epochs": pretrain_epochs,
        "word2vec.cbow": cbow,
        "seed": seed,
    }
    from two_tower.models.beginning import Inputs
    from two_tower.models.bundle import ModelBundle
    from two_tower.models.data import Dataset
    from two_tower.models.pipeline import RunOptions, train_bundle
    from two_tower.models.recipe import read_config
    from two_tower.models.tracking import wandb_options

    bundle = train_bundle(
        Dataset.open(data),
        out,
        config=read_config(config, flags),
        options=RunOptions(device, wandb_options(wandb), force),
        inputs=Inputs(negatives, ModelBundle.load(start) if start else None),
        say=lambda line: typer.echo(line, err=True),
    )
    dev = bundle.card["dev"]["dense"]
    typer.echo(f"{out} {bundle.fingerprint}")
    typer.echo(" ".join(f"{name}={value:.4f}" for name, value in dev.items()))


app.command()(mine)


app.command()(sweep)


@app.command()
def show(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole card.")] = False,
    curves: Annotated[
        Path | None, typer.Option(help="Draw loss and dev metrics per epoch into this .png.")
    ] = None,
) -> None:
    """Print what a bundle is, where it came from and how good it was on dev."""
    import json

    from two_tower.models.bundle import ModelBundle
    from two_tower.models.card import describe

    loaded = ModelBundle.load(bundle)
    if as_json:
        typer.echo(json.dumps(loaded.card, ensure_ascii=False))
    else:
        typer.echo(describe(loaded.card, loaded.config))
    if curves is not None:
        from two_tower.models.curves import save_curves

        save_curves(bundle, curves)
        typer.echo(f"curves of the run: {curves}", err=True)


if __name__ == "__main__":
    app()
