"""The command `models mine`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from two_tower.models.errors import ConfigError

if TYPE_CHECKING:
    from two_tower.models.negatives import MiningConfig
    from two_tower.models.negatives_file import Teacher

Data = Annotated[Path, typer.Argument(help="DATA folder, as ingest prepare makes it.")]
Out = Annotated[Path, typer.Option(help="Parquet file to write.")]
BundlePath = Annotated[
    Path | None, typer.Option("--bundle", help="Bundle whose towers rank; needed for dense.")
]
Source = Annotated[
    str | None, typer.Option(help="Who ranks: bm25, dense or both (default with a bundle).")
]
Split = Annotated[str, typer.Option(help="Split whose queries get negatives.")]
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


def mine(
    data: Data,
    out: Out,
    *,
    bundle: BundlePath = None,
    source: Source = None,
    split: Split = "train",
    per_query: PerQuery = None,
    ranks: Ranks = None,
    max_share: MaxShare = None,
    margin: Margin = None,
    max_score: MaxScore = None,
    teacher: TeacherName = None,
) -> None:
    """Mine hard negatives: passages ranked high for a query that do not answer it.

    Guards leave out what may be an unlabelled answer. Scores are cosines for dense and BM25 for
    bm25. Train with them: models train DATA --negatives FILE.
    """
    from two_tower.models.bundle import ModelBundle
    from two_tower.models.data import Dataset
    from two_tower.models.mining import mine_file
    from two_tower.models.negatives import report_lines

    first, last = _parse_ranks(ranks)
    guards = {"max_share": max_share, "margin": margin, "max_score": max_score}
    depth = {"per_query": per_query, "first_rank": first, "last_rank": last}
    config = _config({"source": source or ("both" if bundle else "bm25"), **depth, **guards})
    if "dense" in config.sources and bundle is None:
        raise ConfigError(f"--source is {config.source}, which needs towers: add --bundle BUNDLE")
    counts = mine_file(
        Dataset.open(data),
        out,
        split=split,
        config=config,
        bundle=ModelBundle.load(bundle) if bundle else None,
        teacher=_teacher(teacher) if teacher else None,
    )
    typer.echo("\n".join(report_lines(counts)))
    typer.echo(str(out))


def _parse_ranks(ranks: str | None) -> tuple[int | None, int | None]:
    if ranks is None:
        return None, None
    first, colon, last = ranks.partition(":")
    if not (colon and first.isdigit() and last.isdigit()):
        raise ConfigError(f"--range is {ranks!r}, expected FIRST:LAST, as in 10:100")
    return int(first), int(last)


def _config(values: dict[str, Any]) -> "MiningConfig":
    from two_tower.models.config import from_mapping
    from two_tower.models.negatives import MiningConfig

    given = {key: value for key, value in values.items() if value is not None}
    return from_mapping(MiningConfig, given, where="mining.")


def _teacher(name: str) -> "Teacher":
    from two_tower.models.negatives_file import Teacher
    from two_tower.models.teacher import score_pairs

    return Teacher(name, lambda queries, passages: score_pairs(name, queries, passages))
