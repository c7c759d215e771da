"""The `models` command."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from two_tower.models.console import (
    Rows,
    application,
    name_next,
    note,
    print_json,
    print_pairs,
    print_table,
)
from two_tower.models.errors import ConfigError
from two_tower.models.progress import working
from two_tower.models.training.recipe import recipe_names

app = application("Train two-tower models and look at what was trained.")

RECIPE = "the recipe's"  # shown as the default

NAMES_WIDTH = 13

Data = Annotated[Path, typer.Argument(help="DATA folder, as ingest prepare makes it.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
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
    typer.Option(
        help="Kind of tower: mean, gru, lstm, transformer or endpoint.", show_default=RECIPE
    ),
]
LossName = Annotated[
    str | None,
    typer.Option(help="Loss: in_batch, triplet or margin_mse.", show_default=RECIPE),
]
Shared = Annotated[
    bool | None,
    typer.Option(
        "--shared-towers/--separate-towers",
        help="One tower for both sides, or two.",
        show_default=RECIPE,
    ),
]
Cbow = Annotated[
    bool | None,
    typer.Option("--cbow/--skip-gram", help="How Word2Vec learns.", show_default=RECIPE),
]
Epochs = Annotated[
    int | None, typer.Option(help="Epochs over the labelled pairs.", show_default=RECIPE)
]
PretrainEpochs = Annotated[
    int | None,
    typer.Option(help="Epochs of inverse cloze over the corpus; 0 for none.", show_default=RECIPE),
]
Negatives = Annotated[
    Path | None, typer.Option(help="Hard negatives to learn from, as models mine makes them.")
]
Start = Annotated[
    Path | None,
    typer.Option(help="Bundle to begin from: its tokenizer, and its towers as far as they fit."),
]
Only = Annotated[
    str | None,
    typer.Option(
        help="Learn these parts alone, comma-separated: query, fusion, cross; the others are those "
        "of --start.",
        show_default="all",
    ),
]
Documents = Annotated[
    str | None,
    typer.Option(
        help="Learn a query tower for the vectors that a Qdrant collection has of DATA's passages; "
        "NAME:VECTOR where it has several. Without --config: light, by the vectors alone, or with "
        "--embeddings the model there.",
        metavar="COLLECTION[:VECTOR]",
    ),
]
Url = Annotated[
    str | None,
    typer.Option(help="Qdrant server with --documents; QDRANT_URL otherwise.", show_default=False),
]
EnginePath = Annotated[
    Path | None,
    typer.Option(
        "--path", help="Folder of the embedded engine with --documents.", show_default=".qdrant"
    ),
]
Embeddings = Annotated[
    str | None,
    typer.Option(
        help="OpenAI-style server whose model reads passages and queries, as "
        "http://localhost:8000/v1; with --config light passages alone. Its key comes from "
        "TWO_TOWER_API_KEY.",
        metavar="URL",
        show_default=False,
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option("--model", help="The model's name there.", metavar="NAME", show_default=False),
]
Seed = Annotated[int | None, typer.Option(help="Seed of every random choice.", show_default=RECIPE)]
Wandb = Annotated[str, typer.Option(help="disabled, offline or online.")]
Force = Annotated[
    bool, typer.Option("--force", help="Replace a bundle; drop a run with other settings.")
]
MustBeat = Annotated[
    str | None,
    typer.Option(
        metavar="bm25|tfidf",
        help="Take the bundle only where an engine with it is better than that stage, by nDCG@10 "
        "and a paired test on split dev.",
    ),
]


@app.command()
def train(
    data: Data,
    out: Out,
    *,
    config: Config = None,
    tower: Tower = None,
    loss: LossName = None,
    shared: Shared = None,
    cbow: Cbow = None,
    epochs: Epochs = None,
    pretrain_epochs: PretrainEpochs = None,
    negatives: Negatives = None,
    start: Start = None,
    only: Only = None,
    documents: Documents = None,
    embeddings: Embeddings = None,
    model: ModelName = None,
    seed: Seed = None,
    device: Device = "auto",
    wandb: Wandb = "disabled",
    must_beat: MustBeat = None,
    force: Force = False,
    url: Url = None,
    path: EnginePath = None,
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
        "documents.url": embeddings,
        "documents.model": model,
        "seed": seed,
    }
    from two_tower.models.training.train import train as train_to

    if embeddings and config is None:
        config = "endpoint"
    bundle = train_to(
        data,
        out,
        config=config,
        changes=flags,
        negatives=negatives,
        start=start,
        only=None if only is None else [part.strip() for part in only.split(",")],
        documents=documents,
        url=url,
        path=path,
        device=device,
        wandb=wandb,
        force=force,
        must_beat=must_beat,
        notify=note,
    )
    typer.echo(f"{out} {bundle.fingerprint}")
    if dev := bundle.card["dev"].get("dense"):
        typer.echo(" ".join(f"{name}={value:.4f}" for name, value in dev.items()))
    else:
        note(
            "not learnt, for want of labelled queries: the towers' last phase, the weights of the "
            "fusion, a cross-scorer; nothing was measured (--queries of ingest prepare adds some)"
        )
    name_next("ingest", "load", data, "--bundle", out, "--collection", "NAME")


MinedOut = Annotated[Path, typer.Option(help="Parquet file to write.")]
RankingBundle = Annotated[
    Path | None, typer.Option("--bundle", help="Bundle whose towers rank; needed for dense.")
]
Source = Annotated[
    str | None, typer.Option(help="Who ranks: bm25, dense or both (default with a bundle).")
]
SplitName = Annotated[str, typer.Option(help="Split whose queries get negatives.")]
PerQuery = Annotated[int | None, typer.Option(help="Negatives per query at most.")]
Ranks = Annotated[str | None, typer.Option("--range", help="Ranks to look at, as in 10:100.")]
MaxShare = Annotated[
    float | None, typer.Option(help="Leave out what scores above this share of the answer's score.")
]
Margin = Annotated[
    float | None, typer.Option(help="Leave out what scores less than this below the answer.")
]
MaxScore = Annotated[float | None, typer.Option(help="Leave out what scores above this.")]
TeacherName = Annotated[
    str | None, typer.Option(help="Model whose scores to add, by name or folder.")
]
TeacherUrl = Annotated[
    str | None,
    typer.Option(
        help="OpenAI-style server of embeddings that knows --teacher by that name.",
        show_default=False,
    ),
]


@app.command()
def mine(
    data: Data,
    out: MinedOut,
    *,
    bundle: RankingBundle = None,
    source: Source = None,
    split: SplitName = "train",
    per_query: PerQuery = None,
    ranks: Ranks = None,
    max_share: MaxShare = None,
    margin: Margin = None,
    max_score: MaxScore = None,
    teacher: TeacherName = None,
    teacher_url: TeacherUrl = None,
) -> None:
    """Mine hard negatives: passages ranked high for a query that do not answer it.

    Guards leave out what may be an unlabelled answer. Scores are cosines for dense and BM25 for
    bm25. Train with them: models train DATA --negatives FILE.
    """
    from two_tower.models.bundle.bundle import ModelBundle
    from two_tower.models.config import from_mapping, with_values
    from two_tower.models.data import Dataset
    from two_tower.models.examples.mining import PairScorer, mine_file
    from two_tower.models.examples.negatives import MiningConfig, report_lines
    from two_tower.models.training.train import engine_analyzer

    first, last = _parse_ranks(ranks)
    flags = {
        "source": source or ("both" if bundle else "bm25"),
        "per_query": per_query,
        "first_rank": first,
        "last_rank": last,
        "max_share": max_share,
        "margin": margin,
        "max_score": max_score,
    }
    config = from_mapping(MiningConfig, with_values({}, flags), where="mining.")
    if "dense" in config.sources and bundle is None:
        raise ConfigError(f"--source is {config.source}, which needs towers: add --bundle BUNDLE")
    scorer = None
    if teacher_url and not teacher:
        raise ConfigError("--teacher-url needs --teacher, the model's name there")
    if teacher:
        from two_tower.models.objectives.distillation import score_pairs

        scorer = PairScorer(teacher, partial(score_pairs, teacher, url=teacher_url))
    dataset, towers = Dataset.open(data), ModelBundle.load(bundle) if bundle else None
    counts = mine_file(
        dataset,
        out,
        split=split,
        config=config,
        analyzer=engine_analyzer(dataset.language, towers),
        bundle=towers,
        teacher=scorer,
    )
    typer.echo("\n".join(report_lines(counts)))
    typer.echo(str(out))
    name_next("models", "train", data, "--negatives", out, "--out", "BUNDLE")


@app.command()
def sweep(
    data: Data,
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
    device: Device = "auto",
    wandb: Annotated[
        str, typer.Option(help="disabled, offline or online: a run per trial, in one group.")
    ] = "disabled",
) -> None:
    """Train every combination of a small space, or a random sample of a large one.

    The table (TSV, best first) goes to stdout, and to sweep.json and sweep.md in the folder. Run
    the same command again after a kill: finished trials are not done again. A random sample needs
    the extra: pip install 'two-tower-search[sweep]'.
    """
    from two_tower.models.data import Dataset
    from two_tower.models.training.recipe import read_config
    from two_tower.models.training.run import RunOptions
    from two_tower.models.training.sweep import plan, read_space, run_sweep, table
    from two_tower.models.training.tracking import wandb_options
    from two_tower.models.training.train import engine_analyzer

    options = RunOptions(device, wandb_options(wandb))
    dataset = Dataset.open(data)
    base, content_hash = read_config(config, {}).to_dict(), dataset.content_hash
    outcomes = run_sweep(
        dataset,
        out.resolve(),
        plan(base, read_space(space), trials=trials, seed=seed, content_hash=content_hash),
        metric=metric,
        analyzer=engine_analyzer(dataset.language),
        options=options,
        notify=note,
    )
    print_table(table(outcomes))
    if outcomes and outcomes[0].metrics:
        best = out / outcomes[0].trial
        name_next("ingest", "load", data, "--bundle", best, "--collection", "NAME")


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

    from two_tower.models.bundle.bundle import ModelBundle
    from two_tower.models.bundle.card import describe, dev_rows

    loaded = ModelBundle.load(bundle)
    if as_json:
        print_json(json.dumps(loaded.card, ensure_ascii=False))
    else:
        print_pairs(describe(loaded.card, loaded.config), width=NAMES_WIDTH)
        typer.echo()
        if rows := dev_rows(loaded.card):
            print_table(rows, _aligned)
    if curves is not None:
        from two_tower.models.training.curves import save_curves

        save_curves(bundle, curves)
        note(f"curves of the run: {curves}")
    if not as_json:
        name_next("ingest", "load", "DATA", "--bundle", bundle, "--collection", "NAME")


@app.command()
def export(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    *,
    form: Annotated[str, typer.Option("--as", help="sentence-transformers or onnx.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
) -> None:
    """Write a bundle's towers for another library; README.md in the folder says how to load them.

    It needs the extra: pip install 'two-tower-search[transformer]'.
    """
    from two_tower.models.bundle.bundle import ModelBundle
    from two_tower.models.export.export import export_bundle

    with working("exporting"):
        export_bundle(ModelBundle.load(bundle), out, form=form)
    typer.echo(str(out))
    name_next("cat", out / "README.md")


def _parse_ranks(ranks: str | None) -> tuple[int | None, int | None]:
    if ranks is None:
        return None, None
    first, colon, last = ranks.partition(":")
    if not (colon and first.isdigit() and last.isdigit()):
        raise ConfigError(f"--range is {ranks!r}, expected FIRST:LAST, as in 10:100")
    return int(first), int(last)


def _aligned(rows: Rows) -> str:
    return "\n".join(
        f"{name:<{NAMES_WIDTH}}" + " ".join(f"{cell:>10}" for cell in cells)
        for name, *cells in rows
    )


if __name__ == "__main__":
    app()
