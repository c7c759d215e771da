"""The tables and the picture of what `peers.py` measured."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from two_tower.models.drawing import COLOURS, drawing, save

Row = dict[str, Any]
GROWTH = {
    "encode, passages/s": ("encode", "per_second"),
    "BM25, p50 ms": ("bm25", "p50_ms"),
    "hybrid search, p50 ms": ("search", "p50_ms"),
    "ingest, s": ("ingest", "seconds"),
}


def pick(rows: Sequence[Row], section: str, size: int) -> list[Row]:
    """Return the rows of one section at one size."""
    return [row for row in rows if (row["section"], row["passages"]) == (section, size)]


def sizes(rows: Sequence[Row], section: str) -> list[int]:
    """Return the sizes that a section was measured at."""
    return sorted({row["passages"] for row in rows if row["section"] == section})


def to_markdown(report: Row) -> str:
    """Return every table, each at the largest size, and the growth of all."""
    rows, largest = report["rows"], max(row["passages"] for row in report["rows"])
    parts = [encode_table(pick(rows, "encode", largest)), bm25_table(pick(rows, "bm25", largest))]
    local = [row["passages"] for row in rows if "local" in row["system"]]
    for size in sorted({max(local, default=largest), largest}):
        parts.append(search_table(rows, size))
    return "\n\n".join([*parts, growth_table(rows)])


def encode_table(rows: list[Row]) -> str:
    """Return what encoding costs, as times of the first row."""
    first = rows[0]
    return table(
        f"{first['passages']:,} passages",
        rows,
        {
            "passages/s": lambda row: f"{row['per_second']:,}",
            "of ours": lambda row: ratio(row["per_second"] / first["per_second"]),
            "one query, p50 ms": lambda row: f"{row['p50_ms']:.2f}",
            "recall@10": lambda row: share(row.get("recall@10")),
            "MRR@10": lambda row: share(row.get("mrr@10")),
        },
    )


def bm25_table(rows: list[Row]) -> str:
    """Return what BM25 gives and costs, as times of the first row."""
    first = rows[0]
    judged = max(row.get("judged", 0) for row in rows)
    return table(
        f"BM25, {first['passages']:,} passages",
        rows,
        {
            "build, s": lambda row: f"{row['build_s']:.1f}",
            "p50 ms": lambda row: f"{row['p50_ms']:.1f}",
            "of ours": lambda row: ratio(row["p50_ms"] / first["p50_ms"]),
            "queries/s": lambda row: f"{row['per_second']:,.0f}",
            f"nDCG@10 ({first['queries']:,} queries)": lambda row: share(row["ndcg@10"]),
            "recall@100": lambda row: share(row["recall@100"]),
            f"nDCG@10 (all {judged:,})": lambda row: share(row.get("all_ndcg@10")),
            "recall@100 ": lambda row: share(row.get("all_recall@100")),
        },
    )


def search_table(rows: list[Row], size: int) -> str:
    """Return what hybrid search gives and costs at one size, as times of the first row."""
    found = pick(rows, "search", size)
    first = found[0]
    ingested = {row["system"]: row for row in pick(rows, "ingest", size)}
    return table(
        f"hybrid search, {size:,} passages",
        found,
        {
            "p50 ms": lambda row: f"{row['p50_ms']:.1f}",
            "p95 ms": lambda row: f"{row['p95_ms']:.1f}",
            "of ours": lambda row: ratio(row["p50_ms"] / first["p50_ms"]),
            f"recall@10 ({first['queries']:,} queries)": lambda row: share(row["recall@10"]),
            "MRR@10": lambda row: share(row["mrr@10"]),
            "ingest, passages/s": lambda row: rate(ingested.get(row["system"])),
            "with indexes, s": lambda row: seconds(ingested.get(row["system"])),
        },
    )


def growth_table(rows: list[Row]) -> str:
    """Return one row for each system and job, one column for each size."""
    columns = sorted({row["passages"] for row in rows})
    lines = [["", "", *(f"{size:,}" for size in columns)], ["---", "---", *["---:"] * len(columns)]]
    for label, (section, key) in GROWTH.items():
        for system, found in series(rows, section, key).items():
            if len(found) > 1:
                lines.append([label, system, *(number(found.get(size)) for size in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def series(rows: Sequence[Row], section: str, key: str) -> dict[str, dict[int, float]]:
    """Return system -> size -> value, the systems in their order."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["section"] == section:
            found.setdefault(row["system"], {})[row["passages"]] = row[key]
    return found


def table(label: str, rows: Sequence[Row], columns: dict[str, Callable[[Row], str]]) -> str:
    """Return a Markdown table, one line for each row."""
    lines = [f"| {label} | {' | '.join(columns)} |", "| --- " + "| ---: " * len(columns) + "|"]
    for row in rows:
        lines.append(f"| {row['system']} | {' | '.join(form(row) for form in columns.values())} |")
    return "\n".join(lines)


def ratio(value: float) -> str:
    """Return a factor to read."""
    return f"{value:.1f}x" if value >= 1 else f"{value:.2g}x"


def share(value: float | None) -> str:
    """Return a measure, or nothing where it was not taken."""
    return "" if value is None else f"{value:.3f}"


def rate(row: Row | None) -> str:
    """Return passages per second, or nothing where the points were another row's."""
    return "" if row is None else f"{row['per_second']:,}"


def seconds(row: Row | None) -> str:
    """Return how long it took until nothing was built any more."""
    return "" if row is None else f"{row['indexed_s']:.1f}"


def number(value: float | None) -> str:
    """Return a number with as many digits as it is worth."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


@drawing()
def plot(report: Row, target: Path) -> None:
    """Draw the growth, one panel for each job, both axes by powers of ten."""
    from matplotlib.figure import Figure

    rows = report["rows"]
    systems = list(dict.fromkeys(row["system"] for row in rows))
    columns = sorted({row["passages"] for row in rows})
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    axes = figure.subplots(2, 2)
    for axis, (label, (section, key)) in zip(axes.flat, GROWTH.items(), strict=True):
        for system, found in series(rows, section, key).items():
            if len(found) > 1:
                style = "o-" if system.startswith(("ours", "mean")) else "s--"
                color = COLOURS[systems.index(system) % len(COLOURS)]
                axis.plot(list(found), list(found.values()), style, label=system, color=color)
        axis.set(title=label, xscale="log", yscale="log", xlabel="passages")
        axis.set_xticks(columns, [f"{size:,}" for size in columns])
        axis.yaxis.set_major_formatter("{x:,g}")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    queries = max(row.get("queries", 0) for row in rows)
    figure.suptitle(f"{report['source']}, {queries} queries, {report['cores']} cores")
    target.parent.mkdir(parents=True, exist_ok=True)
    save(figure, target, dpi=110)
