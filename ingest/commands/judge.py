"""`ingest judge`: grades by a language model for queries that nobody judged."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from two_tower.models.console import name_next, note, print_pairs, say
from two_tower.models.errors import ConfigError
from two_tower.retriever.commands.flags import Bundle, Path_, Url, at, opened_engine

if TYPE_CHECKING:
    from two_tower.retriever.search.retriever import Retriever

NAMES_WIDTH = 14

Runs = Annotated[
    list[Path] | None,
    typer.Option("--run", help="TREC run file of a system; again for more.", show_default=False),
]

Collection = Annotated[
    str | None,
    typer.Option(help="Collection whose systems rank, beside those of --run.", show_default=False),
]

Systems = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated systems of the collection, as retriever evaluate names them.",
        show_default="all but rank_bm25",
    ),
]

Check = Annotated[
    str | None,
    typer.Option(
        help="Split of DATA, or file of judgements (TREC, BEIR), with 50 or more by people: the "
        "model judges those queries as well, and the agreement is printed and kept.",
        metavar="SPLIT|FILE",
        show_default=False,
    ),
]

PromptFile = Annotated[
    Path | None,
    typer.Option(
        help="Text file with {query} and {passage} in it that asks for a grade from 0 to 3.",
        show_default="the shipped one",
    ),
]


def judge(
    data: Annotated[Path, typer.Argument(help="DATA folder with queries without judgement.")],
    *,
    out: Annotated[Path, typer.Option(help="The DATA folder to make.")],
    llm: Annotated[
        str, typer.Option(help="URL of a service with OpenAI's interface, as http://host:8080/v1.")
    ],
    model: Annotated[str, typer.Option(help="The model's name there.")],
    collection: Collection = None,
    systems: Systems = None,
    bundle: Bundle = None,
    runs: Runs = None,
    check: Check = None,
    prompt: PromptFile = None,
    depth: Annotated[int, typer.Option(min=1, help="Passages of each system and query.")] = 10,
    at_once: Annotated[int, typer.Option(min=1, max=256, help="Calls at the same time.")] = 4,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how much would be asked, and ask nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a DATA folder.")] = False,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Let a language model grade what several systems find for queries that nobody judged.

    The new DATA has everything that DATA has, and the grades in the split judged: measure with
    retriever evaluate NAME DATA2 --split judged. Answers are kept in the cache folder: run the same
    command again after a kill or an error, and nothing is asked twice. The service's key is read
    from TWO_TOWER_API_KEY.
    """
    from two_tower.ingest.dataset.folder import require_free
    from two_tower.ingest.judging.run import open_judge
    from two_tower.models.data import Dataset
    from two_tower.models.endpoint.answer_cache import CachedModel
    from two_tower.models.endpoint.language_model import LanguageModel

    if systems and collection is None:
        raise ConfigError("--systems needs --collection, whose systems they are")
    if not dry_run:
        require_free(out.resolve(), overwrite=force)
    with CachedModel(LanguageModel(llm, model)) as judging:
        with _opened(collection, bundle, url, path) as retriever:
            run = open_judge(
                Dataset.open(data),
                judging,
                retriever=retriever,
                systems=None if systems is None else [name.strip() for name in systems.split(",")],
                runs=runs or [],
                check=check,
                prompt=prompt,
                depth=depth,
            )
        if dry_run:
            typer.echo(run.estimate())
            return
        judged = run.run(out, at_once=at_once, check=check or "", overwrite=force)
    print_pairs([*judged.pairs(), ("DATA", str(out))], width=NAMES_WIDTH)
    note(f"the judgements are those of {model}, not of people")
    if not judged.agreement:
        say("Warning: nobody checked them; add --check SPLIT with 50 judgements of people or more")
    name = collection or "NAME"
    words = ("evaluate", name, out, "--split", "judged", "--out", "REPORT")
    name_next("retriever", *words, *at(url, path))


@contextmanager
def _opened(
    name: str | None, bundle: Path | None, url: str | None, path: Path | None
) -> "Iterator[Retriever | None]":
    """Open a collection while its systems rank; nothing where none is named."""
    if name is None:
        yield None
        return
    from two_tower.retriever.search.bundles import find_bundle, load_bundle
    from two_tower.retriever.search.retriever import Retriever
    from two_tower.retriever.search.settings import SearchSettings

    with opened_engine(url, path) as engine:
        loaded = load_bundle(bundle) or find_bundle(engine, name)
        yield Retriever(engine, name, loaded, settings=SearchSettings())
