"""`retriever calibrate`."""

from pathlib import Path
from typing import Annotated

import typer

from two_tower.models.console import name_next, note, print_pairs, say
from two_tower.retriever.commands.flags import Bundle, Name, Path_, Split, Url, at, opened_engine

Judged = Annotated[
    Path | None,
    typer.Argument(
        metavar="[DATA]",
        help="DATA folder with 30 or more judged queries; without it, queries are cut from the "
        "passages.",
    ),
]

Forget = Annotated[
    bool, typer.Option("--forget", help="Go back to the weight that the bundle brings.")
]


def calibrate(
    name: Name,
    data: Judged = None,
    *,
    bundle: Bundle = None,
    split: Split = "dev",
    forget: Forget = False,
    url: Url = None,
    path: Path_ = None,
) -> None:
    """Learn what a cosine is worth beside BM25 on this collection, and keep it there.

    A weight that was learnt on other texts may trust the tower too much here. Judged queries also
    say how likely a hit answers, and that anything here does. Searches that are opened afterwards
    use all of it; the cross-scorer and everything else stay as they are.
    """
    from two_tower.models.data import Dataset
    from two_tower.retriever.calibration import calibrate as calibration
    from two_tower.retriever.calibration.chances import UNLIKELY, store_chances
    from two_tower.retriever.evaluation.measures import judged_queries
    from two_tower.retriever.search.bundles import find_bundle, load_bundle
    from two_tower.retriever.search.chances import judgements_of
    from two_tower.retriever.search.retriever import Retriever
    from two_tower.retriever.search.settings import SearchSettings

    dataset = Dataset.open(data) if data else None
    queries, qrels = judged_queries(dataset, split) if dataset else ([], [])
    with opened_engine(url, path) as engine:
        loaded = load_bundle(bundle) or find_bundle(engine, name)
        retriever = Retriever(engine, name, loaded, settings=SearchSettings())
        if forget:
            calibration.forget(retriever)
            typer.echo(f"{retriever.collection} uses the weights of the bundle again")
            return
        found = calibration.calibrate(retriever, queries, qrels)
        known = judgements_of(dataset, split) if dataset and found.source == "judged" else ""
        calibration.store(retriever, found, judgements=known)
        check = store_chances(retriever, queries, qrels) if found.source == "judged" else None
    if queries and found.source == "cut":
        say(
            f"Warning: fewer than 30 of the {len(queries)} judged queries have an answer among "
            "their candidates; queries cut from the passages say the weight instead"
        )
    kind = "judged" if found.source == "judged" else "cut from passages"
    pairs = [
        ("queries", f"{found.queries:,} {kind}"),
        ("weight", f"{found.before:.1f} -> {found.after:.1f} points of BM25 for a cosine of 1"),
        (
            "MRR",
            f"BM25 {found.bm25_mrr:.3f}, before {found.before_mrr:.3f}, now {found.after_mrr:.3f}",
        ),
    ]
    if check:
        pairs.append(("chance", f"first hits: said {check.said:.3f}, right {check.right:.3f}"))
        doubt = f"{check.doubted:.1%} of the judged queries, {check.refused:.1%} of made ones"
        pairs.append(("doubt", f"an answer is less than {UNLIKELY:.0%} likely for {doubt}"))
    print_pairs(pairs, width=9)
    if found.source == "cut":
        note("Such queries favour BM25, so their MRR only compares weights with each other.")
        note("They say nothing about chances: for these, give DATA with judged queries.")
    name_next("retriever", "evaluate", name, data or "DATA", "--out", "REPORT", *at(url, path))
