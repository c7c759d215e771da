"""A `Report` as words and tables."""

from collections.abc import Sequence

from two_tower.models.data import PEOPLE
from two_tower.retriever.evaluation.evaluate import Report, SystemResult
from two_tower.retriever.evaluation.significance import ALPHA, PERMUTATIONS, Comparison
from two_tower.retriever.evaluation.systems import SIZE_NOTE
from two_tower.retriever.evaluation.verdict import MEASURE, SPLITS, verdict

BETTER, WORSE, ALIKE = "▲", "▼", " "

UNKNOWN = "-"

LEAST_COST = 0.1

SUREST = 0.8  # share of the queries

FEW = 50  # queries below which hardly any difference is significant

WORTH_LEGEND = (
    f"What each stage gains over the one before it, by the same test; held in: the share of "
    f"{SPLITS} random splits in which both halves of the queries show it."
)


def to_markdown(report: Report) -> str:
    """Return a heading, a row per system with half-widths of the intervals, and comparisons."""
    return "\n\n".join(
        block if isinstance(block, str) else markdown_table(block) for block in blocks(report)
    )


def blocks(report: Report) -> list[str | list[list[str]]]:
    """Return the paragraphs and the tables, these as rows with their head first."""
    paragraphs: list[str | list[list[str]]] = [caption(report), result_rows(report)]
    if report.baseline:
        paragraphs += [legend(report), comparison_rows(report)]
    if report.worths:
        paragraphs += [WORTH_LEGEND, worth_rows(report)]
    return [*paragraphs, *notes(report), *trust(report), *verdicts(report)]


def caption(report: Report) -> str:
    """Return the data, the collection and the meaning of the numbers, as a paragraph."""
    queries = report.systems[0].queries if report.systems else 0
    text = (
        f"{report.data} {report.split}: {queries:,} queries over {report.passages:,} passages "
        f"of {report.collection}, commit {report.commit}. ± is half of the 95% bootstrap interval."
    )
    if queries < FEW:
        text += (
            f" {queries:,} queries are too few to tell systems apart: almost any difference may be "
            f"chance; judge {FEW} or more."
        )
    if report.judge != PEOPLE:
        text += (
            f" These judgements are {report.judge}, not made by people: what is better here may "
            "not be on the queries of people."
        )
    if report.checked_queries:
        text += (
            f" Intervals hold the error of the model that judged, as {report.checked_queries:,} "
            f"queries show that people judged, too: {'. '.join(report.check)}."
        )
    if report.highest_grade > 1:
        text += (
            f" Grades go up to {report.highest_grade}: recall, MRR and MAP count a passage from "
            f"grade {report.relevant_from}, nDCG all grades; what nobody judged counts as 0."
        )
    if report.own_left_out:
        text += (
            f" {report.own_left_out:,} queries are passages themselves: each one's own is left out."
        )
    return text


def notes(report: Report) -> list[str]:
    """Return how sizes are computed, and what was done outside."""
    sources = [f"{s.system}: {s.source}." for s in report.systems if s.source]
    if report.read_by:
        sources.append(
            f"{report.read_by}, behind a URL, had read the queries before: its own time comes on "
            "top of p50 and p95."
        )
    return [f"{SIZE_NOTE}.", *sources] if _has_sizes(report) else sources


def legend(report: Report) -> str:
    """Return the meaning of the marks behind numbers."""
    others = len(report.systems) - 1
    return (
        f"{BETTER} better, {WORSE} worse than {report.baseline}: paired randomisation test over "
        f"queries ({PERMUTATIONS:,} permutations), p < {ALPHA:.0%} after Holm's correction for "
        f"{others} systems per measure. Differences with their 95% interval:"
    )


def result_rows(report: Report) -> list[list[str]]:
    """Return the main table, its head first."""
    measures = list(report.systems[0].metrics) if report.systems else []
    size = ["index MB"] if _has_sizes(report) else []
    rows = [["system", *measures, "p50 ms", "p95 ms", *size]]
    for result in report.systems:
        quality = [_mean(result, measure, report) for measure in measures]
        costs = [result.p50_ms, result.p95_ms, *([result.index_mb] if size else [])]
        numbers = [UNKNOWN if cost is None else f"{cost:,.1f}" for cost in costs]
        rows.append([result.system, *quality, *numbers])
    return rows


def comparison_rows(report: Report) -> list[list[str]]:
    """Return difference, interval and p of each system against the baseline, the head first."""
    measures = list(report.systems[0].metrics)
    body = [
        [result.system, *(_difference(result.comparisons[measure]) for measure in measures)]
        for result in report.systems
        if result.comparisons
    ]
    return [["system", *measures], *body]


def worth_rows(report: Report) -> list[list[str]]:
    """Return what each stage gains over the one before and costs, the head first."""
    head = ["stage", "over", MEASURE, "held in", "ms", "MB", "gain a ms", "gain a 100 MB"]
    rows = [head]
    for worth in report.worths:
        low, high = worth.interval
        p = "p<.001" if worth.p_holm < 0.001 else f"p={worth.p_holm:.3f}"
        rows.append(
            [
                worth.system,
                worth.over,
                f"{worth.difference:+.3f} [{low:+.3f}, {high:+.3f}] {p}",
                f"{worth.held:.0%}",
                UNKNOWN if worth.ms is None else f"{worth.ms:+.1f}",
                UNKNOWN if worth.mb is None else f"{worth.mb:+.1f}",
                _rate(worth.difference, worth.ms),
                _rate(worth.difference * 100, worth.mb),
            ]
        )
    return rows


def trust(report: Report) -> list[str]:
    """Return how far the last system's chances hold, and where a cross-scorer was called for."""
    sentences = [
        f"{row.system}: the cross-scorer read {row.escalated:.0%} of the queries, those whose "
        "first hit was not likely enough without it."
        for row in report.systems
        if row.escalated is not None
    ]
    trusted = [(row.system, row.first_hits) for row in report.systems if row.first_hits]
    for name, hits in trusted[-1:]:
        sentences.append(
            f"{name}: the first hit is right for {hits.right:.1%} of the queries and says "
            f"{hits.said:.1%}; of the {SUREST:.0%} that are surest, {hits.right_at(SUREST):.1%} "
            "are right."
        )
    return sentences


def verdicts(report: Report) -> list[str]:
    """Return one sentence for each stage, and what the order of the candidates could still give."""
    queries = report.systems[0].queries if report.systems else 0
    sentences = [verdict(worth, queries=queries) for worth in report.worths]
    if report.worths and report.headroom is not None:
        best = max(row.metrics[MEASURE] for row in report.systems)
        sentences.append(
            f"headroom: the candidates of the legs in their ideal order have {MEASURE} "
            f"{report.headroom:.3f}, the best system {best:.3f}"
        )
    return [f"{sentence}." for sentence in sentences]


def _rate(gain: float, cost: float | None) -> str:
    """Return a gain for each unit of what it costs; nothing where it costs nothing measurable."""
    return UNKNOWN if cost is None or cost < LEAST_COST else f"{gain / cost:+.4f}"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a table of aligned columns; the first is its head."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    widths = [max(3, first), *(max(4, width) for width in others)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        for row in [rows[0], rule, *rows[1:]]
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _has_sizes(report: Report) -> bool:
    return any(result.index_mb is not None for result in report.systems)


def _mean(result: SystemResult, measure: str, report: Report) -> str:
    """Return a mean, half of its interval and, beside a baseline, the mark of a difference."""
    low, high = result.intervals[measure]
    cell = f"{result.metrics[measure]:.3f} ±{(high - low) / 2:.3f}"
    if not report.baseline:
        return cell
    comparison = result.comparisons.get(measure)
    if comparison is None or not comparison.is_significant:
        return f"{cell} {ALIKE}"
    return f"{cell} {BETTER if comparison.difference > 0 else WORSE}"


def _difference(comparison: Comparison) -> str:
    low, high = comparison.interval
    p = "p<.001" if comparison.p_holm < 0.001 else f"p={comparison.p_holm:.3f}"
    return f"{comparison.difference:+.3f} [{low:+.3f}, {high:+.3f}] {p}"
