"""A `Report` as words and tables."""

from collections.abc import Sequence

from two_tower.retriever.evaluation.evaluate import Report, SystemResult
from two_tower.retriever.evaluation.significance import ALPHA, PERMUTATIONS, Comparison
from two_tower.retriever.evaluation.systems import HOW

BETTER, WORSE, ALIKE = "▲", "▼", " "

UNKNOWN = "-"


def to_markdown(report: Report) -> str:
    """Return a heading, a row per system with half-widths of the intervals, and comparisons."""
    blocks = [caption(report), markdown_table(result_rows(report))]
    if report.baseline:
        blocks += [legend(report), markdown_table(comparison_rows(report))]
    return "\n\n".join([*blocks, *notes(report)])


def caption(report: Report) -> str:
    """Return what was measured, over what, and how it was judged."""
    queries = report.systems[0].queries if report.systems else 0
    text = (
        f"{report.data} {report.split}: {queries:,} queries over {report.passages:,} passages "
        f"of {report.collection}, commit {report.commit}. ± is half of the 95% bootstrap interval."
    )
    if report.highest_grade > 1:
        text += (
            f" Grades go up to {report.highest_grade}: recall, MRR and MAP count a passage from "
            f"grade {report.relevant_from}, nDCG all grades; what nobody judged counts as 0."
        )
    return text


def notes(report: Report) -> list[str]:
    """Return how sizes were found, and where systems from outside come from."""
    sized = any(result.index_mb is not None for result in report.systems)
    sources = [f"{s.system}: {s.source}." for s in report.systems if s.source]
    return [f"{HOW}.", *sources] if sized else sources


def legend(report: Report) -> str:
    """Return what the marks behind numbers mean."""
    others = len(report.systems) - 1
    return (
        f"{BETTER} better, {WORSE} worse than {report.baseline}: paired randomisation test over "
        f"queries ({PERMUTATIONS:,} permutations), p < {ALPHA:.0%} after Holm's correction for "
        f"{others} systems per measure. Differences with their 95% interval:"
    )


def mark(comparison: Comparison | None) -> str:
    """Return the sign of a significant difference, else a space."""
    if comparison is None or not comparison.is_significant:
        return ALIKE
    return BETTER if comparison.difference > 0 else WORSE


def result_rows(report: Report) -> list[list[str]]:
    """Return the main table, its head first."""
    return [_head(report), *(_row(result, report) for result in report.systems)]


def comparison_rows(report: Report) -> list[list[str]]:
    """Return difference, interval and p of each system against the baseline, the head first."""
    measures = list(report.systems[0].metrics)
    body = [
        [result.system, *(_difference(result.comparisons[measure]) for measure in measures)]
        for result in report.systems
        if result.comparisons
    ]
    return [["system", *measures], *body]


def _head(report: Report) -> list[str]:
    measures = list(report.systems[0].metrics) if report.systems else []
    size = ["index MB"] if any(s.index_mb is not None for s in report.systems) else []
    return ["system", *measures, "p50 ms", "p95 ms", *size]


def _row(result: SystemResult, report: Report) -> list[str]:
    cells = []
    for measure, mean in result.metrics.items():
        low, high = result.intervals[measure]
        cell = f"{mean:.3f} ±{(high - low) / 2:.3f}"
        cells.append(f"{cell} {mark(result.comparisons.get(measure))}" if report.baseline else cell)
    costs = [_number(result.p50_ms), _number(result.p95_ms)]
    if "index MB" in _head(report):
        costs.append(_number(result.index_mb))
    return [result.system, *cells, *costs]


def _difference(found: Comparison) -> str:
    low, high = found.interval
    return f"{found.difference:+.3f} [{low:+.3f}, {high:+.3f}] {_p_text(found.p_holm)}"


def _p_text(p: float) -> str:
    return "p<.001" if p < 0.001 else f"p={p:.3f}"


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.1f}"


def markdown_table(rows: Sequence[list[str]]) -> str:
    """Return rows as a table of aligned columns; the first is its head."""
    head, *body = rows
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("| " + " | ".join(_pad(line, widths)) + " |" for line in lines)


def _pad(row: list[str], widths: list[int]) -> list[str]:
    return [
        cell.replace("---", "-" * (width - len(cell) + 3))
        if cell.startswith("---")
        else cell.ljust(width)
        if column == 0
        else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
