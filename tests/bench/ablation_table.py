"""What ablation.json holds, as Markdown tables."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

ZERO_SHOT = ("nfcorpus", "npl_vaswani", "scifact", "wikiqa")

Measured = Mapping[str, Any]


class Column(NamedTuple):
    """A column: its head, and its number in one seed's sets (set -> measure -> value)."""

    head: str
    value: Callable[[Mapping[str, Mapping[str, float]]], float]


def _of(name: str, measure: str) -> Callable[[Mapping[str, Mapping[str, float]]], float]:
    return lambda sets: sets[name][measure]


def _zero_shot(sets: Mapping[str, Mapping[str, float]]) -> float:
    return fmean(sets[name]["ndcg@10"] for name in ZERO_SHOT)


COLUMNS = (
    *(
        Column(f"dev {name}", _of("dev", name))
        for name in ("recall@1", "recall@3", "recall@10", "recall@100", "mrr@10")
    ),
    Column("dl19 ndcg@10", _of("dl19", "ndcg@10")),
    *(Column(f"{name} ndcg@10", _of(name, "ndcg@10")) for name in ZERO_SHOT),
    Column("zero-shot mean", _zero_shot),
)
BRIEF = (
    *(
        ("tower", Column(f"tower: {name}", _of("dev", name)))
        for name in ("recall@1", "recall@10", "recall@100")
    ),
    ("hybrid", Column("with BM25: recall@1", _of("dev", "recall@1"))),
    ("hybrid", Column("MRR@10", _of("dev", "mrr@10"))),
    ("hybrid", Column("dl19 nDCG@10", _of("dl19", "ndcg@10"))),
    ("hybrid", Column("zero-shot nDCG@10", _zero_shot)),
)
ENGINE = (
    *(
        Column(name.replace("mrr", "MRR"), _of("dev", name))
        for name in ("recall@1", "recall@3", "recall@10", "recall@100", "mrr@10")
    ),
    Column("dl19 nDCG@10", _of("dl19", "ndcg@10")),
    Column("zero-shot nDCG@10", _zero_shot),
)
BRIEF_COSTS = ("seeds", "seconds")
COSTS = (*BRIEF_COSTS, "M parameters", "bundle MB")
ENGINES = {"learnt": "hybrid", "cross": "with cross-scorer"}
SYSTEMS = {
    "tower": "The tower alone",
    "hybrid": "BM25 + 15 x cosine",
    "learnt": "BM25 + learnt weight x cosine",
    "cross": "With the cross-scorer",
}


def to_markdown(report: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return a table for each system: the rows that have it, and BM25 alone.

    Args:
        report: the content of ablation.json.
        names: the rows to show, in order; those without a measurement are left out.
    """
    measured = {
        name: list(report["rows"][name].values()) for name in names if name in report["rows"]
    }
    parts = []
    for system, caption in SYSTEMS.items():
        shown = {name: seeds for name, seeds in measured.items() if _has(seeds, system)}
        table = [_head(), *(_row(name, seeds, system) for name, seeds in shown.items())]
        if "bm25" in report:
            table.append(_bm25_row(report["bm25"]))
        if shown:
            parts.append("\n".join([caption, "", *aligned(table)]))
    return "\n\n".join(parts)


def to_brief(report: Mapping[str, Any]) -> str:
    """Return the first table of docs/evaluation.md: every measured row, the figures that decide.

    Args:
        report: the content of ablation.json.
    """
    table = [["changed", *(column.head for _, column in BRIEF), *BRIEF_COSTS]]
    for name, found in report["rows"].items():
        table.append([name, *_brief(list(found.values()), BRIEF)])
    return "\n".join(aligned(table))


def to_brief_engines(report: Mapping[str, Any]) -> str:
    """Return the second table there: the rows whose weights are learnt, as they search.

    Args:
        report: the content of ablation.json.
    """
    table = [["engine", *(column.head for column in ENGINE), *BRIEF_COSTS]]
    for name, found in report["rows"].items():
        seeds = list(found.values())
        for system, label in ENGINES.items():
            if _has(seeds, system):
                columns = [(system, column) for column in ENGINE]
                table.append([f"{name}: {label}", *_brief(seeds, columns)])
    return "\n".join(aligned(table))


def _brief(seeds: Sequence[Measured], columns: Sequence[tuple[str, Column]]) -> list[str]:
    values = [
        spread([column.value(_scores(one, system)) for one in seeds]) for system, column in columns
    ]
    return [*values, str(len(seeds)), _seconds(seeds)]


def _has(seeds: Sequence[Measured], system: str) -> bool:
    return all(system in found for one in seeds for found in one["sets"].values())


def _seconds(seeds: Sequence[Measured]) -> str:
    return f"{min(one['seconds'] + one['start_seconds'] for one in seeds):.0f}"


def _scores(one: Measured, system: str) -> dict[str, Mapping[str, float]]:
    return {key: found[system] for key, found in one["sets"].items()}


def spread(values: Sequence[float]) -> str:
    """Return the mean and, of two numbers or more, ± the sample standard deviation."""
    mean = f"{fmean(values):.3f}"
    return f"{mean} ±{stdev(values):.3f}" if len(values) > 1 else mean


def _head() -> list[str]:
    return ["row", *(column.head for column in COLUMNS), *COSTS]


def _row(name: str, seeds: Sequence[Measured], system: str) -> list[str]:
    sets = [_scores(one, system) for one in seeds]
    costs = [
        str(len(seeds)),
        _seconds(seeds),
        f"{seeds[0]['parameters'] / 1e6:.2f}",
        f"{seeds[0]['bundle_mb']:.1f}",
    ]
    return [name, *(spread([column.value(one) for one in sets]) for column in COLUMNS), *costs]


def _bm25_row(sets: Mapping[str, Mapping[str, float]]) -> list[str]:
    values = [spread([column.value(sets)]) for column in COLUMNS]
    return ["BM25 alone", *values, *[""] * len(COSTS)]


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; the first column is text, the others are numbers."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    rows = [table[0], rule, *table[1:]]
    return ["| " + " | ".join(_pad(row, widths)) + " |" for row in rows]


def _pad(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *rest = row
    return [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]
