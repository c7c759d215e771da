"""`ingest generate`: passages to queries that a language model writes."""

from pathlib import Path
from typing import Annotated

import typer

from two_tower.models.console import name_next, note, print_pairs, say

NAMES_WIDTH = 14

RoundTripBundle = Annotated[
    Path | None,
    typer.Option(
        "--bundle", help="Bundle that makes the round trip.", show_default="BM25 makes it"
    ),
]

AtMost = Annotated[
    int | None,
    typer.Option(
        min=1, help="Write for so many passages, drawn over all documents.", show_default="all"
    ),
]

RoundTrip = Annotated[
    int,
    typer.Option(
        min=0, help="Keep a query where a search has its passage among the best so many; 0: all."
    ),
]

Table = Annotated[
    Path | None,
    typer.Option("--csv", help="Also write a table: id, text, query_1, …", show_default=False),
]


def generate(
    data: Annotated[Path, typer.Argument(help="DATA folder that `ingest prepare` wrote.")],
    *,
    out: Annotated[Path, typer.Option(help="The DATA folder to make.")],
    llm: Annotated[
        str, typer.Option(help="URL of a service with OpenAI's interface, as http://host:8080/v1.")
    ],
    model: Annotated[str, typer.Option(help="The model's name there.")],
    prompt: Annotated[
        str, typer.Option(help="web, claims, or a text file with {passage} in it.")
    ] = "web",
    per_passage: Annotated[int, typer.Option(min=1, max=50, help="Queries for a passage.")] = 5,
    at_most: AtMost = None,
    round_trip: RoundTrip = 3,
    bundle: RoundTripBundle = None,
    dev_share: Annotated[
        float, typer.Option(min=0, max=0.9, help="Of the passages, held out as generated-dev.")
    ] = 0.1,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="Of the model's draw.")] = 0.8,
    max_tokens: Annotated[int, typer.Option(min=4, help="Of a query.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Of both draws.")] = 0,
    at_once: Annotated[int, typer.Option(min=1, max=256, help="Calls at the same time.")] = 4,
    table: Table = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how much would be asked, and ask nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a DATA folder.")] = False,
) -> None:
    """Let a language model write queries for the passages of DATA, and keep those that find them.

    The new DATA has the same passages, and generated queries in the splits train and generated-dev;
    queries of people stay where they are. Answers are kept in the cache folder: run the same
    command again after a kill or an error, and nothing is asked twice. The service's key is read
    from TWO_TOWER_API_KEY.
    """
    from two_tower.ingest.generation.generate import GenerationConfig, estimate
    from two_tower.ingest.generation.prompt import read_prompt
    from two_tower.ingest.generation.run import generate as run_generation
    from two_tower.models.data import Dataset
    from two_tower.models.endpoint.answer_cache import CachedModel
    from two_tower.models.endpoint.language_model import LanguageModel

    config = GenerationConfig(
        per_passage=per_passage,
        at_most=at_most,
        round_trip=round_trip,
        dev_share=dev_share,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
    )
    if dry_run:
        with CachedModel(LanguageModel(llm, model)) as writer:
            typer.echo(estimate(Dataset.open(data), read_prompt(prompt), writer, config))
        return
    report = run_generation(
        data,
        out,
        llm=llm,
        model=model,
        prompt=prompt,
        config=config,
        bundle=bundle,
        at_once=at_once,
        table=table,
        overwrite=force,
    )
    print_pairs([*report.pairs(), ("DATA", str(out))], width=NAMES_WIDTH)
    note(f"the queries are those of {model}, not of people")
    if report.kept:
        name_next("models", "train", out, "--config", "genq", "--out", "BUNDLE")
    else:
        say("Warning: no query is left; look at what falls with --round-trip 0 and --csv FILE")
