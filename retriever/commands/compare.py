"""`retriever compare`."""

from pathlib import Path
from typing import Annotated

import typer

from two_tower.models.console import name_next, print_pairs

Log = Annotated[Path, typer.Argument(metavar="LOG", help="Folder of: retriever serve --log.")]


def compare(folder: Log) -> None:
    """Say which of two interleaved ways to search people prefer.

    They were served by `retriever serve --log LOG --against OTHER`. The test may be looked at as
    often as you like, and stopped at any time.
    """
    from two_tower.retriever.behaviour.comparison import ALPHA, Outcome
    from two_tower.retriever.behaviour.comparison import compare as compared

    def verdict(outcome: Outcome) -> str:
        if outcome.p < ALPHA:
            better = outcome.other if outcome.wins > outcome.losses else outcome.own
            decided = outcome.wins + outcome.losses
            share = max(outcome.wins, outcome.losses) / decided
            return f"{better} is better: it wins {share:.0%} of {decided:,} decided searches"
        if outcome.needed is None:
            return "no preference so far, so nothing says how many searches are still needed"
        return (
            f"not sure yet: at the present preference about {outcome.needed:,} more interleaved "
            "searches are needed"
        )

    outcome = compared(folder)
    pairs = [
        ("own", outcome.own),
        ("other", outcome.other),
        ("searches", f"{outcome.searches:,} interleaved, {outcome.clicked:,} with a click"),
        (
            "of other",
            f"{outcome.wins:,} wins, {outcome.losses:,} losses, {outcome.ties:,} ties",
        ),
        ("p", f"{outcome.p:.4f} (mixture sequential probability ratio test, always valid)"),
        ("verdict", verdict(outcome)),
    ]
    if outcome.older:
        pairs.append(("left out", f"{outcome.older:,} earlier experiments in the same log"))
    print_pairs(pairs, width=9)
    name_next("ingest", "prepare", folder, "--corpus", "DATA", "--out", "CLICKS")
