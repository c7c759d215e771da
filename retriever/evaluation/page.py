"""REPORT of `retriever evaluate`: a folder of files, and a page that stands alone.

report.html    tables, plots, queries side by side; no script, no request; light and dark
report.md      the tables
report.json    the means, with intervals and comparisons
per_query.tsv  every measure of every query and system
runs/          what each system ranks, as TREC run files
"""

import json
import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from two_tower.models.files import write_bytes
from two_tower.retriever.evaluation import report as words
from two_tower.retriever.evaluation.contrast import Contrasts
from two_tower.retriever.evaluation.evaluate import Evaluation, Report
from two_tower.retriever.evaluation.plots import (
    Dot,
    Interval,
    interval_chart,
    line_chart,
    point_chart,
    share_chart,
    to_svg,
)
from two_tower.retriever.evaluation.systems import FROM_RUN
from two_tower.retriever.evaluation.trec import write_run
from two_tower.retriever.evaluation.verdict import MEASURE
from two_tower.retriever.search.snippets import printable

DEPTHS = {"recall@1": 1, "recall@3": 3, "recall@10": 10, "recall@100": 100}

LONGEST_TEXT = 600

NUMBER_INTERVAL_MARK = re.compile(r"(\S+) (±\S+|\[.*\])( \S+|)\s*")


def write_report(evaluation: Evaluation, contrasts: Contrasts, folder: Path) -> None:
    """Write all files of a report into `folder`, making it where needed."""
    report = evaluation.report
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    _remove_rankings(folder)
    for system, rankings in evaluation.rankings.items():
        file = _run_file(folder, system)
        write_run(file, rankings, tag=file.stem)
    texts = {
        "per_query.tsv": _to_tsv(evaluation),
        "report.html": _to_html(report, contrasts),
        "report.md": words.to_markdown(report) + "\n",
        "report.json": json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n",
    }
    for name, text in texts.items():
        write_bytes(folder / name, text.encode())


def _remove_rankings(folder: Path) -> None:
    """Remove the rankings that an earlier report wrote; the run files that it read stay."""
    try:
        stored = Report.from_dict(json.loads((folder / "report.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return
    for row in stored.systems:
        if not row.source.startswith(FROM_RUN):
            _run_file(folder, row.system).unlink(missing_ok=True)


def _run_file(folder: Path, system: str) -> Path:
    name = re.sub(r"\W", "-", system)
    return folder / "runs" / f"{name}.trec"


def _to_tsv(evaluation: Evaluation) -> str:
    """Return one line per query and system with every measure, tab-separated."""
    measures = list(evaluation.report.systems[0].metrics)
    lines = ["\t".join(["query_id", "system", *measures])]
    for row, query in enumerate(evaluation.queries):
        for system, values in evaluation.values.items():
            numbers = (f"{values[measure][row]:.6g}" for measure in measures)
            lines.append("\t".join([query.query_id, system, *numbers]))
    return "\n".join([*lines, ""])


def _to_html(report: Report, contrasts: Contrasts) -> str:
    """Return the whole page."""
    return render(
        "evaluation/page.html.jinja",
        title=f"{report.collection}, {report.split}: {len(report.systems)} systems",
        report=report,
        caption=words.caption(report),
        result_rows=words.result_rows(report),
        legend=words.legend(report),
        comparison_rows=words.comparison_rows(report),
        worth_legend=words.WORTH_LEGEND,
        worth_rows=words.worth_rows(report),
        verdicts=words.verdicts(report),
        notes=words.notes(report),
        figures=_figures(report),
        contrasts=contrasts,
        measure=MEASURE,
        longest_text=LONGEST_TEXT,
    )


def render(template: str, **values: object) -> str:
    """Fill a template of `retriever/`: text from outside becomes one escaped line, never markup."""
    environment = Environment(
        loader=PackageLoader("two_tower.retriever", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(str(value)),
    )
    environment.filters["number_interval_mark"] = _number_interval_mark
    return environment.get_template(template).render(values)


def _number_interval_mark(cell: str) -> tuple[str, ...] | None:
    """Return the parts of a cell that holds a number with its interval, None for any other."""
    parts = NUMBER_INTERVAL_MARK.fullmatch(cell)
    return parts.groups() if parts else None


def _figures(report: Report) -> list[tuple[Markup, str]]:
    """Return the plots with their captions: quality, difference, depth, quality against time."""
    rows, queries = report.systems, f"{report.systems[0].queries:,} queries"
    means = [Interval(s.system, s.metrics[MEASURE], *s.intervals[MEASURE]) for s in rows]
    chart = interval_chart(means, x_label=f"{MEASURE}, mean over {queries}, 0 to 1")
    charts = [(chart, f"{MEASURE} with 95% intervals.")]
    if report.baseline:
        compared = [(s.system, s.comparisons[MEASURE]) for s in rows if s.comparisons]
        gaps = [Interval(system, c.difference, *c.interval) for system, c in compared]
        x_label = f"{MEASURE} minus that of {report.baseline}, {queries}"
        chart = interval_chart(gaps, x_label=x_label, is_difference=True)
        caption = f"Difference from {report.baseline} with its 95% interval, query by query."
        charts.append((chart, caption))
    depths = {
        s.system: [Dot(s.system, depth, s.metrics[name]) for name, depth in DEPTHS.items()]
        for s in rows
    }
    y_label = f"recall@k, mean of {queries}"
    chart = line_chart(depths, x_label="depth k, passages", y_label=y_label)
    charts.append((chart, "Recall against depth."))
    curves = {s.system: [Dot("", *p) for p in s.first_hits.curve] for s in rows if s.first_hits}
    if curves:
        y_label = f"share of first hits that are right, {queries}"
        chart = share_chart(curves, x_label="share of the queries, surest first", y_label=y_label)
        charts.append((chart, "How often the first hit is right where it is surest."))
    timed = [Dot(s.system, s.p50_ms, s.metrics[MEASURE]) for s in rows if s.p50_ms]
    if timed:
        y_label = f"{MEASURE}, mean of {queries}"
        x_label = "p50 of one query, ms"
        chart = point_chart({"": timed}, is_named=True, x_label=x_label, y_label=y_label)
        charts.append((chart, "Quality against time per query; up and left is better."))
    return [(to_svg(chart), caption) for chart, caption in charts]
